"""Every weight format on a GPU: products with few and many columns and embeddings, in ragged shapes, with outliers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import Weight, get_format
from halfbyte.gpu.device.device import Device
from halfbyte.gpu.lowering.columns import capacity, columns_for
from halfbyte.gpu.lowering.context import LoweringContext
from halfbyte.gpu.lowering.lower import lower_section
from halfbyte.gpu.lowering.passes import Section
from halfbyte.gpu.lowering.program import Extent, Output, Ref, padded
from halfbyte.gpu.lowering.state import StateLayout
from halfbyte.gpu.run.bind import Binder
from halfbyte.gpu.run.bound import Buffer
from halfbyte.gpu.run.pipelines import Pipelines
from halfbyte.gpu.run.recorder import Recorder
from halfbyte.gpu.run.weights import WeightStore
from halfbyte.gpu.shaders import rules
from halfbyte.gpu.shaders.shader import ShaderSet
from halfbyte.gpu.shaders.variants import choose
from halfbyte.plan import Plan, ops
from halfbyte.plan.plan import Tensor
from halfbyte.reference.ops import run_op
from tests.blocks import RUN_AS_THEY_ARE, stored
from tests.device.gpu import software_gpu

PACKED = ("q4g32z", "q4g64", "q3g32z", "q3g128", "q8g32", "q8g64", *RUN_AS_THEY_ARE)
TOKENS = 70
TOLERANCE = 1e-5
"""Of the largest value: float32 sums of the same products in another order."""


class Bench:
    """Steps over given weights and one input `x`, on the software GPU and in NumPy.

    Args:
        columns: Of `x`.
        weights: Name → format and rows. Values have outliers, one of them in the last column.
        size: Of the values.
        off: Kernel variants not to use.
        wide: Whether to use the wide tiles of devices with more workgroup memory than this one.
        int8: Whether kernels may use int8. Then products read a norm of `x`, whose values are such that the int8
            blocks it is rounded to are near to exact.
    """

    def __init__(
        self,
        columns: int,
        weights: Mapping[str, tuple[str, int]],
        *,
        size: float = 1.0,
        int8: bool = False,
        off: tuple[str, ...] = (),
        wide: bool = False,
        baseline: bool = False,
    ) -> None:
        random = np.random.default_rng(columns)
        self._device = software_gpu(baseline=baseline)
        self.stored = {name: _weight(form, (rows, columns), size, random) for name, (form, rows) in weights.items()}
        self.stored["norm"] = Weight(get_format("f32"), (columns,), {"": np.full(columns, 0.75, np.float32)})
        tensors = {n: Tensor(n, w.shape, w.format.name, "weight", w.nbytes) for n, w in self.stored.items()}
        tensors["n"] = Tensor("n", (TOKENS, columns), "f32", "activation", 0)
        plan = Plan(TOKENS, TOKENS, 1, 1, 32, tensors, (), (), {})
        layout = StateLayout.of(plan)
        self.ids = random.integers(0, min(rows for _, rows in weights.values()), TOKENS, np.int32)
        state = np.zeros(layout.size, np.int32)
        state[layout.offsets["IDS"] :][:TOKENS] = self.ids
        capabilities = self._device.capabilities
        config = choose(capabilities, off=off if int8 else (*off, "int8"))
        config = replace(config, wide_tiles=wide or config.wide_tiles)
        self._context = LoweringContext(plan, capabilities, config, layout, ShaderSet())
        self._int8 = int8
        self._x = (_whole_steps if int8 else _outliers)(columns, random)
        rows = np.full((128, padded(columns)), 9, np.float32)
        rows[:TOKENS, :columns] = self._x
        self._input = Output(Ref("cache", "x"), columns, padded(columns))
        shared = {Ref("state"): self._upload(state), self._input.ref: self._upload(rows)}
        store = WeightStore(self._device, self)
        self._binder = Binder(self._device, self._context, Pipelines(self._device), store, shared)

    def weight(self, name: str) -> Weight:
        """The `WeightSource` protocol."""
        return self.stored[name]

    def release(self, name: str) -> None:
        """Nothing is mapped here."""

    def check(self, step: Any, tokens: int) -> None:
        """Run a step that reads `x` and writes `out` for some tokens, and compare."""
        arrays = {"x": self._x[:tokens], "ids": self.ids[:tokens]}
        steps = [NORM, replace(step, x="n")] if self._int8 else [step]
        for each in steps:
            made = run_op(each, lambda n: arrays[n] if n in arrays else self.stored[n].decode())
            assert made is not None
            arrays[each.outputs[0]] = made
        error = np.abs(self._run(steps, tokens) - arrays["out"]).max() / np.abs(arrays["out"]).max()
        assert error < TOLERANCE, f"{type(step).__name__} of {tokens}: {error:.1e}"

    def _run(self, steps: list[Any], tokens: int) -> np.ndarray:
        columns = columns_for(tokens)
        section = Section(self._context, steps, columns, capacity(columns, TOKENS))
        program = self._binder.bind(lower_section(section, f"{tokens}", {"x": self._input}, keep="out"))
        Recorder(self._device).submit(program.commands(Extent(tokens, tokens, 1)))
        out = program.output
        values = self._device.read(out.buffer.handle, tokens * out.stride * 4).view(np.float32)
        return values.reshape(tokens, out.stride)[:, : out.width]

    def _upload(self, values: np.ndarray) -> Buffer:
        handle = self._device.buffer(values.nbytes)
        self._device.write(handle, 0, values)
        return Buffer(handle)


def _outliers(columns: int, random: np.random.Generator) -> np.ndarray:
    x = random.standard_normal((TOKENS, columns)).astype(np.float32)
    x[:, ::7] *= 20
    return x


def _whole_steps(columns: int, random: np.random.Generator) -> np.ndarray:
    """Rows whose blocks of 32 are whole multiples of a 127th of their largest value, some blocks 20 times larger."""
    codes = random.integers(-127, 128, (TOKENS, padded(columns) // 32, 32)).astype(np.float32)
    codes[:, :, 5] = 127
    steps = random.uniform(0.5, 1, codes.shape[:2]) * random.choice([1, 20], codes.shape[:2])
    rows: np.ndarray = (codes * steps[..., None].astype(np.float32)).reshape(TOKENS, -1)[:, :columns]
    return rows


def _weight(name: str, shape: tuple[int, int], size: float, random: np.random.Generator) -> Weight:
    values = random.standard_normal(shape).astype(np.float32) / np.float32(shape[1] ** 0.5) + np.float32(0.02)
    values[::5, 3::17] *= 20
    values[::3, -1] *= 20
    weight = stored(name, values * np.float32(size), random)
    if name.startswith("q8g"):
        weight.parts[".q"][1, : shape[1] : 9] = 0x80
    return weight


NORM = ops.RmsNorm("x", "norm", "n", 1e-6)
LINEAR = ops.Linear("x", ("a", "b"), "out")
GATED = ops.GatedLinear("x", ("a", "b"), "out", "silu")


@pytest.mark.parametrize("baseline", [False, True], ids=["subgroups", "plain"])
@pytest.mark.parametrize("name", PACKED)
def test_packed_weights_times_int8(name: str, baseline: bool) -> None:
    bench = Bench(330, {"a": (name, 33), "b": (name, 40)}, int8=True, baseline=baseline)
    for tokens in (1, 3, TOKENS):
        bench.check(LINEAR, tokens)
    other = Bench(96, {"a": (name, 37), "b": (name, 37)}, int8=True, baseline=baseline)
    for tokens in (1, 2, 8, TOKENS):
        other.check(GATED, tokens)


SEVERAL = (9, 16, 17, 32, 33, 64)
"""Rows beyond those of matrix × vector kernels: the first and the last of each size."""


@pytest.mark.parametrize("off", [(), ("sliced-k",)], ids=["sliced", "whole"])
@pytest.mark.parametrize("name", PACKED)
def test_packed_weights_times_int8_of_several_rows(name: str, off: tuple[str, ...]) -> None:
    """Blocks that do not fill the last stage, and outputs that do not fill the last tile."""
    bench = Bench(330, {"a": (name, 33), "b": (name, 40)}, int8=True, off=off)
    for tokens in SEVERAL:
        bench.check(LINEAR, tokens)
    other = Bench(1056, {"a": (name, 37), "b": (name, 37)}, int8=True, off=off)
    for tokens in SEVERAL:
        other.check(GATED, tokens)


@pytest.mark.parametrize("cores", [rules.CORES, 2, 1], ids=["narrow tiles", "large workgroups", "many workgroups"])
@pytest.mark.parametrize("name", ["q4g32z", "q4_k", "q6_k", "q2_k"])
def test_packed_weights_times_int8_of_several_rows_on_a_large_device(
    name: str, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One format without offsets, one with them, one with two scales in a block, and one with two of both."""
    monkeypatch.setattr(rules, "CORES", cores)
    bench = Bench(1056, {"a": (name, 31), "b": (name, 31)}, int8=True, wide=True)
    for tokens in (16, 32, 64):
        bench.check(LINEAR, tokens)
        bench.check(GATED, tokens)


@pytest.mark.parametrize("name", PACKED)
def test_packed_weights_times_int8_that_a_dispatch_before_made(name: str) -> None:
    Bench(330, {"a": (name, 33), "b": (name, 40)}, int8=True, off=("fused-rounding",)).check(LINEAR, 1)
    Bench(96, {"a": (name, 37), "b": (name, 37)}, int8=True, off=("fused-rounding",)).check(GATED, 1)


@pytest.mark.parametrize("baseline", [False, True], ids=["subgroups", "plain"])
@pytest.mark.parametrize("name", ["f32", "f16", "bf16", *PACKED])
def test_weights_times_float32(name: str, baseline: bool) -> None:
    bench = Bench(90, {"a": (name, 33), "b": (name, 40)}, baseline=baseline)
    for tokens in (1, 3, 9, 32, 33, TOKENS):
        bench.check(LINEAR, tokens)
    Bench(264, {"a": (name, 37), "b": (name, 37)}, baseline=baseline).check(GATED, 1)


@pytest.mark.parametrize("name", ["f16", "q4g32z"])
def test_weights_times_float32_of_several_rows_on_a_large_device(name: str) -> None:
    bench = Bench(330, {"a": (name, 37), "b": (name, 37)}, wide=True)
    for tokens in (16, 32, 64):
        bench.check(LINEAR, tokens)
        bench.check(GATED, tokens)


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", *PACKED])
def test_embeddings(name: str) -> None:
    for columns in (90, 512):
        Bench(columns, {"a": (name, 41)}).check(ops.Embed("ids", "a", "out", scale=1.5), TOKENS)


@pytest.mark.parametrize("name", ["f16", *PACKED])
def test_scales_below_the_normal_numbers_of_float16(name: str) -> None:
    """They are as exact as others; drivers may take such numbers for zero."""
    size = {"iq4_nl": 2**-9, "iq4_xs": 2**-3}.get(name, 2**-9 if name.endswith("_k") else 2**-15)
    bench = Bench(288, {"a": (name, 33)}, size=size)
    bench.check(ops.Linear("x", ("a",), "out"), 1)


def test_matrices_in_several_formats_are_one_product() -> None:
    step = ops.Linear("x", ("a", "b", "c"), "out")
    for formats in (("q4_k", "q6_k", "q3g32z"), ("q8g64", "f16", "q4g32z")):
        bench = Bench(288, {name: (form, 13) for name, form in zip("abc", formats, strict=True)}, int8=True)
        for tokens in (1, TOKENS):
            bench.check(step, tokens)


def test_weights_arrive_in_pieces_that_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written but not handed over takes host memory: all of a model's weights, if it were never waited for."""
    monkeypatch.setattr("halfbyte.gpu.run.weights.CHUNK_NBYTES", 100_000)
    waiting, most = 0, 0
    write, flush = Device.write, Device.flush

    def counted(self: Device, buffer: Any, offset: int, values: np.ndarray) -> None:
        nonlocal waiting, most
        waiting += values.nbytes
        most = max(most, waiting)
        write(self, buffer, offset, values)

    def arrived(self: Device) -> None:
        nonlocal waiting
        waiting = 0
        flush(self)

    monkeypatch.setattr(Device, "write", counted)
    monkeypatch.setattr(Device, "flush", arrived)
    bench = Bench(500, {"a": ("bf16", 700), "b": ("q6_k", 300)})
    waiting = most = 0
    bench.check(ops.Linear("x", ("a", "b"), "out"), 1)
    assert 100_000 <= most < 200_000


def test_a_format_without_kernels_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"cannot read weights in q4_0"):
        Bench(256, {"a": ("q4_0", 4)}).check(ops.Linear("x", ("a",), "out"), 1)
