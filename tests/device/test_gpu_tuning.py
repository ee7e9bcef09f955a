"""Tuning on a real driver: the oracle sees a wrong kernel, faster sizes are remembered, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from halfbyte.formats import Format, get_format
from halfbyte.gpu.checks.limits import measure
from halfbyte.gpu.device.device import Device, open_device
from halfbyte.gpu.lowering.lower import Lowerer
from halfbyte.gpu.shaders import rules, template
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.gpu.shaders.variants import KernelConfig, choose
from halfbyte.gpu.tuning.harness import DECODE, PREFILL, SAMPLING, Harness
from halfbyte.gpu.tuning.probe import SHORT_RUNS, Probe
from halfbyte.gpu.tuning.store import load_choices
from halfbyte.gpu.tuning.tune import tune
from halfbyte.models.spec import ModelSpec
from tests.models.tiny import tiny

TOKENS = 160


@cache
def model() -> ModelSpec:
    """A model of two layers."""
    return tiny("llama-3.2-3b").spec


def formats(name: str) -> Format:
    """4-bit matrices."""
    return get_format("q4g32" if len(model().shapes[name]) == 2 else "f32")


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    """A device of our own."""
    opened = open_device(software=True)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def probe(device: Device) -> Probe:
    """The model's probe, for one token and many."""
    config = choose(device.capabilities)
    return Probe(device, model(), formats, config, tokens=TOKENS, context=256, kv_dtype="f16", runs=SHORT_RUNS)


def tuned(device: Device, **sizes: dict[str, int]) -> KernelConfig:
    """The usual kernels but for some families, in all their rows."""

    class Everywhere(dict[str, Any]):
        def get(self, row: str, default: Any = None) -> Any:
            return sizes.get(row.partition(" ")[0], default)

    return choose(device.capabilities, tuning=Tuning(Everywhere()))


def test_other_sizes_agree_with_the_oracle(device: Device, probe: Probe) -> None:
    assert 0 < probe.usual_error < 0.02
    other = tuned(device, attend={"KEYS": 1, "SPLIT_KEYS": 64}, merge={"WG": 128}, norm={"WG": 64}, sample={"WG": 64})
    assert probe.right(other)


@pytest.mark.parametrize(
    ("kernel", "text", "wrong"),
    [
        ("attend", "total0 += p0", "total0 += 1.5 * p0"),
        ("gemm", "sum0_1 +=", "sum0_1 += 0.2 +"),
        ("sample_stats", "a.z > b.z", "a.z < b.z"),
    ],
)
def test_a_kernel_that_is_a_little_wrong_is_seen(
    kernel: str, text: str, wrong: str, device: Device, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    compose = template.compose

    def sabotaged(name: str, constants: Any) -> str:
        source = compose(name, constants)
        assert name != kernel or text in source
        return source.replace(text, wrong, 1) if name == kernel else source

    monkeypatch.setattr(template, "compose", sabotaged)
    fresh = Lowerer(probe._gpu.plan, device.capabilities, probe._gpu.config)
    monkeypatch.setattr(probe._gpu, "lowerer", fresh)
    assert not probe.right(choose(device.capabilities))


def test_every_row_that_a_phase_looks_up_can_be_timed(device: Device) -> None:
    bench = Harness(device, model(), formats, tokens=TOKENS, layers=1)
    assert bench.method == "timestamps"
    families = {phase: {family for family, _ in bench.rows(phase).values()} for phase in (DECODE, PREFILL, SAMPLING)}
    assert families[DECODE] - {"norm", "merge"} == {"embed", "gemv", "attend"}
    assert families[PREFILL] == {"embed", "gemm", "attend_tiled", "norm"}
    assert families[SAMPLING] == {"sample"}
    usual = bench.program(SAMPLING, bench.config)
    row, (family, shape) = next(iter(bench.rows(SAMPLING).items()))
    sizes = rules.FAMILIES[family].candidates(bench.config, shape)[0]
    config = replace(bench.config, tuning=Tuning({row: sizes}))
    before, after = bench.differing(SAMPLING, config, bench.program(SAMPLING, config), usual)
    assert len(before.dispatches) == len(after.dispatches) == 2
    assert 0 < bench.seconds(before) < 5
    untimed = open_device(software=True, limits=replace(device.capabilities, timestamps=False))
    assert Harness(untimed, model(), formats, tokens=TOKENS, layers=1).method == "differences"


def test_a_row_is_timed_where_it_begins_to_differ_from_another(device: Device) -> None:
    """Attention over few and over many keys may share a kernel, until one of them takes other sizes."""
    bench = Harness(device, replace(model(), context=2048), formats, tokens=TOKENS, layers=1)
    usual = bench.program(DECODE, bench.config)
    rows = {row: shape for row, (family, shape) in bench.rows(DECODE).items() if family == "attend"}
    assert {shape["long"] for shape in rows.values()} == {False, True}
    for row, shape in rows.items():
        config = replace(bench.config, tuning=Tuning({row: rules.attend.candidates(bench.config, shape)[0]}))
        for entry in bench.differing(DECODE, config, bench.program(DECODE, config), usual):
            assert "attend" in {dispatch.label for dispatch in entry.dispatches}


def test_a_short_tuning_is_remembered(device: Device, tmp_path: Path) -> None:
    file = tmp_path / "tuning.json"
    found = list(tune(device, model(), formats, tokens=TOKENS, budget_s=0.1, short=True, path=file))
    kept = load_choices(device, file)
    assert kept.rows
    assert kept.rows.keys() == {result.row for result in found if hasattr(result, "row")}
    assert all(measured.tried >= 1 and measured.usual_s > 0 for measured in kept.rows.values())
    assert len(kept.short) == 1


def test_limits_are_measured(device: Device) -> None:
    found = measure(device)
    assert 1e6 < found.copy_bandwidth < 1e14
    assert 1e6 < found.read_bandwidth < 1e14
    assert 1e6 < found.int8_rate < 1e16
    assert all(1e-8 < seconds < 0.1 for seconds in (found.dispatch_s, found.encode_s, found.round_trip_s))
