"""A browser makes every compute pipeline of every family of models, and refuses those that are wrong."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from halfbyte.gpu.lowering.lower import lower
from halfbyte.gpu.lowering.program import Lowered
from halfbyte.gpu.lowering.serial import from_json, to_json
from halfbyte.gpu.shaders.capabilities import BASELINE, Capabilities
from halfbyte.gpu.shaders.variants import choose
from halfbyte.gpu.shaders.wgsl import demands, standard
from halfbyte.models.catalog import CATALOG, catalog_spec
from halfbyte.plan import make_plan
from halfbyte.synthetic import SyntheticWeights
from tests.browser.conftest import ask

PAGE = Path(__file__).with_name("pipelines.html")
FLAGS = (
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-dawn-features=disable_robustness,disable_workgroup_init",
)
"""The last one only spares SwiftShader's compiler code that the browser would add."""

RIGHT = """
@group(0) @binding(0) var<storage, read_write> out: array<u32>;
var<workgroup> sums: array<u32, 4096>;
@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) i: u32) {
    sums[i] = out[i] | (out[i + 1u] & 7u);
    out[i] = sums[i];
}
"""
WRONG = {
    "an unknown name": RIGHT.replace("7u", "seven"),
    "operators mixed": RIGHT.replace("(out[i + 1u] & 7u)", "out[i + 1u] & 7u"),
    "an extension that is not enabled": RIGHT.replace("| (", "| subgroupAdd("),
    "an attribute of wgpu's": RIGHT.replace("@group(0)", "@coherent @group(0)"),
    "257 invocations": RIGHT.replace("(256)", "(257)"),
    "too much workgroup memory": RIGHT.replace("4096", "4097"),
    "nine buffers": "".join(f"@group(0) @binding({i}) var<storage, read> b{i}: array<u32>;\n" for i in range(1, 9))
    + RIGHT,
}


DEVICES = {"baseline": (BASELINE, ()), "with subgroups": (replace(BASELINE, subgroup=32), ("subgroups",))}


NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")
LARGEST = {config["model_type"]: name for name, config in CATALOG.items()}
"""The last model of each family, which is its largest."""


def lowered(name: str, capabilities: Capabilities) -> Lowered:
    """The programs of a model with a layer of each kind, as JSON carries them to a page."""
    spec = catalog_spec(name).one_of_each()
    plan = make_plan(spec, SyntheticWeights(spec, "q4g32").format, tokens=1024, context=4096)
    return from_json(to_json(lower(plan, capabilities, choose(capabilities))))


def made(programs: dict[str, str], features: tuple[str, ...] = ()) -> Any:
    """What the browser says about programs, on a device with the default limits."""
    return ask(PAGE, {"features": features, "programs": programs}, FLAGS)


def test_the_page_says_which_programs_are_wrong() -> None:
    answer = made({"right": RIGHT, **WRONG})
    assert answer["made"] == 1
    assert answer["refused"].keys() == WRONG.keys()
    assert "unresolved value 'seven'" in answer["refused"]["an unknown name"]
    assert "storage buffers (9)" in answer["refused"]["nine buffers"]


def test_an_extension_in_use_is_enabled_at_the_head() -> None:
    with_subgroups = standard(WRONG["an extension that is not enabled"])
    assert with_subgroups.startswith("enable subgroups;\n")
    assert standard(RIGHT + "// f16, subgroups") == RIGHT + "// f16, subgroups"
    assert standard("var<private> x: f16;") == "enable f16;\nvar<private> x: f16;"
    assert made({"subgroups": with_subgroups}, ("subgroups",)) == {"made": 1, "refused": {}}


@pytest.mark.parametrize("device", DEVICES)
def test_every_pipeline_of_every_family_is_made(device: str) -> None:
    """One of those that differ only in numbers: what these may be, `tests/unit/test_webgpu_limits.py` looks at."""
    capabilities, features = DEVICES[device]
    programs: dict[str, tuple[str, str]] = {}
    for name in LARGEST.values():
        for shader in lowered(name, capabilities).shaders:
            code = standard(shader.code)
            programs.setdefault(NUMBER.sub("", code), (f"{len(programs)}, {name}: {shader.kernel}", code))
    answer = made(dict(programs.values()), features)
    assert answer == {"made": len(programs), "refused": {}}
    assert len(programs) > 150


@pytest.mark.parametrize("name", [name for name in WRONG if name[0].isdigit() or "much" in name or "nine" in name])
def test_limits_are_counted_as_the_browser_counts_them(name: str) -> None:
    assert not demands(RIGHT).exceeded(BASELINE)
    assert len(demands(WRONG[name]).exceeded(BASELINE)) == 1
