"""Programs of every model of the catalog stay within the limits of WebGPU, whatever its weights are stored in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest

from halfbyte.errors import DeviceError
from halfbyte.gpu.lowering.lower import lower
from halfbyte.gpu.lowering.program import Dispatch, Extent, Lowered
from halfbyte.gpu.run import budget
from halfbyte.gpu.shaders.capabilities import BASELINE, Capabilities
from halfbyte.gpu.shaders.variants import choose
from halfbyte.gpu.shaders.wgsl import demands, standard
from halfbyte.models.catalog import CATALOG, catalog_spec
from halfbyte.plan import Plan, make_plan
from halfbyte.synthetic import SyntheticWeights

DEVICES = {
    "any browser": BASELINE,
    "with subgroups": replace(BASELINE, subgroup=32),
    "with small subgroups": replace(BASELINE, subgroup=8),
    "with large workgroups": replace(BASELINE, subgroup=32, invocations=1024, workgroup_storage=32768),
    "with ten buffers": replace(
        BASELINE, subgroup=32, invocations=1024, workgroup_storage=32768, storage_buffers=10, coherent=True
    ),
}
WEIGHTS = ("q4g32", "q6_k", "bf16")
"""Formats of two buffers, of three, and one that is not packed."""
MOST_WORKGROUPS = 65535
"""Along each axis, by default."""


def planned(name: str, weights: str, capabilities: Capabilities) -> Plan:
    """The plan of a model's first layers that `load` would make: all its context, where a buffer has room for that."""
    several = CATALOG[name].get("sliding_window") or CATALOG[name]["model_type"] in (
        "lfm2",
        "qwen3_5_text",
        "gemma4_text",
    )
    spec = catalog_spec(name, layers=6 if several else 2)
    formats = SyntheticWeights(spec, weights).format
    device = SimpleNamespace(capabilities=capabilities)
    plan = make_plan(spec, formats, tokens=1024)
    tokens, context = budget.batch_tokens(plan, device), min(plan.context, budget.fitting_tokens(plan, device, None))
    return make_plan(spec, formats, tokens=tokens, context=context)


@cache
def lowered(name: str, weights: str, device: str) -> tuple[Plan, Lowered]:
    """A model's programs, made as if its weights were many."""
    plan = planned(name, weights, DEVICES[device])
    return plan, lower(plan, DEVICES[device], replace(choose(DEVICES[device]), far_nbytes=0))


def buffers(programs: Lowered) -> Iterator[tuple[str, int]]:
    """Every buffer and its bytes."""
    yield from programs.buffers.items()
    yield from ((name, 4 * vector.size) for name, vector in programs.vectors.items())
    yield from ((name, 4 * len(values)) for name, values in programs.constants.items())
    yield from ((name, cache.block_nbytes * cache.blocks) for name, cache in programs.caches.items())
    for name, matrix in programs.matrices.items():
        yield from ((name, piece.nbytes(array)) for piece in matrix.pieces for array in piece.pitch)


def dispatches(programs: Lowered) -> Iterator[Dispatch]:
    """Everything that may run."""
    for program in programs.programs.values():
        for dispatch in program.dispatches:
            yield from (each for each in (dispatch, dispatch.long) if each)


LARGEST = {config["model_type"]: name for name, config in CATALOG.items()}
"""The last model of each family, which is its largest."""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", LARGEST.values())
def test_programs_stay_within_a_devices_limits(name: str, weights: str, device: str) -> None:
    capabilities = DEVICES[device]
    plan, programs = lowered(name, weights, device)
    assert {number for each in dispatches(programs) for number in each.shaders} == set(range(len(programs.shaders)))
    assert not {s.kernel: why for s in programs.shaders if (why := demands(s.code).exceeded(capabilities))}
    assert not {name: nbytes for name, nbytes in buffers(programs) if nbytes > capabilities.largest}
    most = Extent(plan.tokens, plan.rows, plan.context)
    assert all(axis.at(most) <= MOST_WORKGROUPS for each in dispatches(programs) for axis in each.grid)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kv_dtype", ["q8", "q4"])
@pytest.mark.parametrize("name", ["phi-4-mini", "phi-3.5-mini", "gemma-3-1b"])
def test_a_rounded_cache_stays_within_a_devices_limits(name: str, kv_dtype: str, device: str) -> None:
    """Heads of 128, 96 and 256 values; rounding takes no more buffers, and no fusion is lost to it."""
    capabilities, spec = DEVICES[device], catalog_spec(name, layers=6)
    usual, rounded = (
        make_plan(spec, SyntheticWeights(spec, "q4g32").format, tokens=64, context=4096, kv_dtype=dtype)
        for dtype in ("f16", kv_dtype)
    )
    before, programs = (lower(plan, capabilities, choose(capabilities)) for plan in (usual, rounded))
    assert not {s.kernel: why for s in programs.shaders if (why := demands(s.code).exceeded(capabilities))}
    counts = [{name: len(each.dispatches) for name, each in found.programs.items()} for found in (before, programs)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("name", "kv_dtype", "nbytes"),
    [
        ("llama-3.2-1b", "f16", 128),
        ("llama-3.2-1b", "q8", 68),
        ("llama-3.2-1b", "q4", 36),
        ("phi-3.5-mini", "f16", 192),
        ("phi-3.5-mini", "q8", 104),
        ("phi-3.5-mini", "q4", 56),
    ],
)
def test_a_smaller_cache_leaves_room_for_a_longer_context(name: str, kv_dtype: str, nbytes: int) -> None:
    """Heads of 64 and of 96 values; the three scales of the latter take two words."""
    spec = catalog_spec(name)
    formats = SyntheticWeights(spec).format
    usual, rounded = (make_plan(spec, formats, context=8192, kv_dtype=dtype) for dtype in ("f16", kv_dtype))
    heads = sum(2 * attention.kv_heads for attention in spec.attentions)
    assert budget.needs(rounded).cache == 8192 * heads * nbytes
    device = SimpleNamespace(capabilities=replace(BASELINE, max_binding=2 << 30, max_buffer=2 << 30))
    free = budget.needs(usual).nbytes - budget.needs(usual).cache // 2
    half = budget.needs(usual).cache // 2 // (heads * nbytes)
    assert budget.fitting_tokens(rounded, device, free) == min(8192, half // 32 * 32)


def test_what_is_not_standard_is_there_only_where_a_device_has_it() -> None:
    texts = {device: [s.code for s in lowered("phi-4-mini", "q4g32", device)[1].shaders] for device in DEVICES}
    for device, capabilities in DEVICES.items():
        assert any("@coherent" in code for code in texts[device]) == capabilities.coherent
        headed = any(standard(code).startswith("enable subgroups;") for code in texts[device])
        assert headed == bool(capabilities.subgroup)


SIGNS = {
    "ahead0": "read-ahead",
    "x_norm": "fused-rounding",
    "part0_0": "fused-merge",
    "newest_chunk": "fused-attention",
}


@pytest.mark.parametrize(
    ("name", "buffers", "used"),
    [
        ("phi-4-mini", 32, {"read-ahead", "fused-rounding", "fused-merge", "fused-attention"}),
        ("gemma-3-1b", 32, {"read-ahead", "fused-rounding", "fused-merge", "fused-attention"}),
        ("phi-4-mini", 8, {"fused-attention"}),
        ("gemma-3-1b", 8, set()),
    ],
)
def test_fusions_are_used_as_far_as_there_are_buffers(name: str, buffers: int, used: set[str]) -> None:
    """The norms of Gemma's heads take two more."""
    device = replace(DEVICES["with ten buffers"], storage_buffers=buffers)
    programs = lower(planned(name, "q4g32", device), device, replace(choose(device), far_nbytes=0))
    text = "".join(shader.code for shader in programs.shaders)
    assert {variant for sign, variant in SIGNS.items() if sign in text} == used


def test_a_device_with_too_few_buffers_for_any_variant_is_refused() -> None:
    poor = replace(BASELINE, storage_buffers=3)
    plan = planned("phi-4-mini", "q4g32", poor)
    with pytest.raises(DeviceError, match=r"^the GPU has not the \d storage buffers that the kernel \w+ takes"):
        lower(plan, poor, choose(poor))
