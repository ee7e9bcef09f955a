"""Every executor runs every op: one, few and many tokens of two sequences, even and ragged shapes, with outliers.

What is expected comes from the definitions in `halfbyte.reference.ops`, over all tokens at once; executors get the
first tokens, then the rest. A new op fails here until it has a case and every executor runs it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from halfbyte.cpu.executor import CpuExecutor
from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import Weight, get_format
from halfbyte.gpu.checks.oracle import Oracle
from halfbyte.gpu.device.device import Device, open_device
from halfbyte.gpu.run.executor import GpuExecutor
from halfbyte.gpu.shaders.capabilities import BASELINE
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.plan import Batch, CacheGroup, Executor, Plan, StateGroup, Tensor, cache, ops
from halfbyte.plan.memory import plan_memory
from halfbyte.plan.plan import (
    LOGITS,
    STATE_ADAPTERS,
    STATE_IDS,
    STATE_POSITIONS,
    STATE_ROPE_SETS,
    STATE_ROWS,
    STATE_SEQUENCES,
    Kind,
)
from halfbyte.reference.executor import ReferenceExecutor
from halfbyte.reference.ops import run_op
from tests.device.gpu import software_gpu

TOKENS, WORDS = 70, 50
BLOCK, COLUMNS = 16, 6
BEFORE = (20, 27)
"""Tokens of the two sequences that come first, where a case is about the tokens after them."""
COUNTS = {"one": (0, 1), "few": (2, 3), "mixed": (1, 15), "many": (30, 40)}
"""New tokens of the two sequences; in `mixed` one goes on while the other is a prompt."""
STATES = 4
FIRST_STATES = np.array([[1, 1], [3, 0]], np.int32)
NEXT_STATES = np.array([[1, 1], [0, 2]], np.int32)
"""What the sequences go on from, and leave: the first the same again, the second another one each time."""
TOLERANCE = 2e-5
"""Of the largest value: float32 sums of the same products in another order."""

OPS = [
    each
    for name, each in vars(ops).items()
    if isinstance(each, type) and issubclass(each, ops.Op) and each is not ops.Op and not name.startswith("_")
]


@dataclass(frozen=True)
class Shape:
    """Sizes of a case; `pairs` are the rotated pairs of a head."""

    width: int
    rows: int
    heads: int
    kv_heads: int
    head_dim: int
    pairs: int
    window: int | None = None
    softcap: float | None = None


SHAPES = {
    "even": Shape(64, 96, 4, 2, 64, 32),
    "ragged": Shape(37, 51, 6, 2, 20, 7, window=19, softcap=5.0),
}


@dataclass
class Sketch:
    """A plan in the making, and its weights; what an op reads are embeddings with outliers."""

    shape: Shape
    cache_dtype: str = "f32"
    tensors: dict[str, Tensor] = field(default_factory=dict)
    stored: dict[str, Weight] = field(default_factory=dict)
    steps: list[ops.Op] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.shape.width)
        self.constants: dict[str, NDArray[np.float32]] = {}
        for name in (STATE_IDS, STATE_POSITIONS, STATE_SEQUENCES, STATE_ROPE_SETS, STATE_ROWS, STATE_ADAPTERS):
            self.tensor(name, TOKENS, kind="state", dtype="i32")
        self.tensor("blocks", 2, COLUMNS, kind="state", dtype="i32")
        pages = (2 * COLUMNS, self.shape.kv_heads, BLOCK, self.shape.head_dim)
        self.caches = tuple(self.tensor(name, *pages, kind="cache", dtype=self.cache_dtype) for name in ("k", "v"))
        self.states: list[str] = []

    def tensor(self, name: str, *shape: int, kind: Kind = "activation", dtype: str = "f32") -> str:
        self.tensors[name] = Tensor(name, shape, dtype, kind, 4 * math.prod(shape))
        return name

    def weight(self, name: str, *shape: int, form: str = "f32") -> str:
        values = self.random.standard_normal(shape).astype(np.float32)
        values[..., ::11] *= 20
        encoded = Weight(get_format(form), shape, get_format(form).encode(values))
        self.stored[name], self.tensors[name] = encoded, Tensor(name, shape, form, "weight", encoded.nbytes)
        return name

    def vector(self, name: str, size: int) -> str:
        return self.weight(name, size)

    def small(self, name: str, size: int) -> str:
        """A vector of values that an exponential function can take."""
        values = self.random.uniform(-2, 1, size).astype(np.float32)
        self.stored[name] = Weight(get_format("f32"), (size,), {"": values})
        self.tensors[name] = Tensor(name, (size,), "f32", "weight", values.nbytes)
        return name

    def add(self, step: ops.Op) -> str:
        self.steps.append(step)
        return step.outputs[0]

    def embedded(self, width: int, name: str = "x", scale: float = 0.5) -> str:
        table = self.weight(f"{name}.table", WORDS, width)
        return self.add(ops.Embed(STATE_IDS, table, self.tensor(name, TOKENS, width), scale))

    def state(self, name: str, *shape: int) -> tuple[str, str, str, str]:
        """The fields of an op that keeps states of this shape: twice as many as there are sequences."""
        self.states.append(self.tensor(name, STATES, *shape, kind="cache"))
        return name, STATE_POSITIONS, STATE_SEQUENCES, self.tensor("states", 2, 2, kind="state", dtype="i32")

    @property
    def heads(self) -> tuple[int, int, int]:
        return self.shape.heads, self.shape.kv_heads, self.shape.head_dim

    @property
    def qkv_width(self) -> int:
        return (self.shape.heads + 2 * self.shape.kv_heads) * self.shape.head_dim

    def table(self) -> str:
        sets = np.linspace(1, 0.01, 2 * self.shape.pairs, dtype=np.float32).reshape(2, -1)
        self.constants["inv_freq"] = sets
        self.tensor("inv_freq", *sets.shape, kind="constant")
        out = self.tensor("rope_table", TOKENS, 2, self.shape.pairs)
        return self.add(ops.RopeTable(STATE_POSITIONS, STATE_ROPE_SETS, "inv_freq", out, 1.25))

    def attended(self, q: str) -> str:
        shape = self.shape
        out = self.tensor("attended", TOKENS, shape.heads * shape.head_dim)
        scale = 0.05 / math.sqrt(shape.head_dim)
        return self.add(
            ops.Attention(
                *self.heads, q, *self.caches, STATE_POSITIONS, STATE_SEQUENCES, "blocks", out, scale, shape.window,
                shape.softcap,
            )
        )  # fmt: skip

    def plan(self, out: str) -> Plan:
        """The plan whose logits are the rows of `out` that are wanted."""
        self.add(ops.Rows(out, STATE_ROWS, self.tensor(LOGITS, TOKENS, self.tensors[out].shape[1], kind="output")))
        group = CacheGroup("blocks", COLUMNS, self.shape.window, ((self.caches[0], self.caches[1]),))
        return plan_memory(
            Plan(
                TOKENS, TOKENS, 2, BLOCK * COLUMNS, BLOCK, self.tensors, tuple(self.steps), (group,), self.constants,
                states=StateGroup("states", tuple(self.states)) if self.states else None,
            )
        )  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """The `WeightSource` of a sketch."""

    weights: dict[str, Weight]

    def weight(self, name: str) -> Weight:
        """The weight called `name`."""
        return self.weights[name]

    def release(self, name: str) -> None:
        """Nothing is mapped here."""


Case = Callable[[Sketch], str]


def _embed(s: Sketch) -> str:
    return s.embedded(s.shape.width)


def _norm(s: Sketch, *, residual: bool = False, scale: float = 1.0) -> str:
    x, width = s.embedded(s.shape.width), s.shape.width
    other = s.embedded(width, "other") if residual else None
    return s.add(ops.RmsNorm(x, s.vector("norm", width), s.tensor("out", TOKENS, width), 1e-5, 1.0, other, scale))


def _linear(
    s: Sketch, *, form: str = "f32", more: tuple[int, ...] = (), bias: bool = False, residual: bool = False
) -> str:
    """A product with one matrix, or with `more` of so many rows stacked below it."""
    x, rows = s.embedded(s.shape.width), (s.shape.rows, *more)
    weights = tuple(s.weight(f"w{i}", count, s.shape.width, form=form) for i, count in enumerate(rows))
    biases = tuple(s.vector(f"b{i}", count) for i, count in enumerate(rows)) if bias else ()
    other = s.embedded(sum(rows), "other") if residual else None
    return s.add(ops.Linear(x, weights, s.tensor("out", TOKENS, sum(rows)), other, biases))


def _low_rank(s: Sketch, heights: tuple[int, ...], *, rank: int, begins: tuple[int, ...], kept: bool = False) -> str:
    """Two adapters for parts of an output of `rows` values; `kept`: the product is read again."""
    x, y, width = s.embedded(s.shape.width), s.embedded(s.shape.rows, "y"), s.shape.width
    a = tuple(s.weight(f"a{i}", 2 * rank, width, form="f16") for i in range(len(heights)))
    b = tuple(s.weight(f"b{i}", 2 * height, rank, form="f16") for i, height in enumerate(heights))
    scales = tuple(s.vector(f"s{i}", 2) for i in range(len(heights)))
    out = s.add(ops.LowRank(x, y, a, b, scales, STATE_ADAPTERS, s.tensor("out", TOKENS, s.shape.rows), begins))
    return s.add(ops.Add(out, y, s.tensor("sum", TOKENS, s.shape.rows))) if kept else out


def _gated_linear(s: Sketch, activation: Any) -> str:
    x = s.embedded(s.shape.width)
    weights = tuple(s.weight(name, s.shape.rows, s.shape.width) for name in ("gate", "up"))
    return s.add(ops.GatedLinear(x, weights, s.tensor("out", TOKENS, s.shape.rows), activation))


def _gated_activation(s: Sketch, activation: Any) -> str:
    x = s.embedded(2 * s.shape.width)
    return s.add(ops.GatedActivation(x, s.tensor("out", TOKENS, s.shape.width), activation))


def _add(s: Sketch) -> str:
    x, y = s.embedded(s.shape.width), s.embedded(s.shape.width, "other")
    return s.add(ops.Add(x, y, s.tensor("out", TOKENS, s.shape.width)))


def _qk_norm(s: Sketch, *, whole: bool = False, v_norm: bool = False) -> str:
    qkv, dim = s.embedded(s.qkv_width, "qkv"), s.shape.head_dim
    heads = (s.shape.heads, s.shape.kv_heads) if whole else (1, 1)
    norms = (s.vector(name, count * dim) for name, count in zip(("q_norm", "k_norm"), heads, strict=True))
    out = s.tensor("out", TOKENS, s.qkv_width)
    return s.add(ops.QkNorm(*s.heads, qkv, *norms, out, 1e-5, 1.0, whole, v_norm))


def _queries(s: Sketch) -> str:
    """Queries alone, normed and turned."""
    width, heads = s.shape.heads * s.shape.head_dim, (s.shape.heads, 0, s.shape.head_dim)
    norm, normed = s.vector("q_norm", s.shape.head_dim), s.tensor("normed", TOKENS, width)
    s.add(ops.QkNorm(*heads, s.embedded(width, "q"), norm, norm, normed, 1e-5))
    return s.add(ops.Rope(*heads, normed, s.table(), STATE_POSITIONS, s.tensor("out", TOKENS, width)))


def _rope(s: Sketch, *, mixing: bool = False, beta: float = 0.0) -> str:
    qkv, size = s.embedded(s.qkv_width, "qkv"), _mixed(s) if mixing else 1
    out = s.tensor("out", TOKENS, s.qkv_width)
    return s.add(ops.Rope(*s.heads, qkv, s.table(), STATE_POSITIONS, out, size, beta, 2))


def _mixed(s: Sketch) -> int:
    """The largest Hadamard rotation that fits the heads."""
    return s.shape.head_dim & -s.shape.head_dim


def _kv_write(s: Sketch) -> str:
    qkv = s.embedded(s.qkv_width, "qkv")
    s.add(ops.KvWrite(*s.heads, qkv, STATE_POSITIONS, STATE_SEQUENCES, "blocks", *s.caches))
    return s.attended(qkv)


def _rope_kv_write(s: Sketch, *, normed: bool, mixing: bool = False, beta: float = 0.0, v_norm: bool = False) -> str:
    qkv, dim = s.embedded(s.qkv_width, "qkv"), s.shape.head_dim
    norms = (s.vector("q_norm", dim), s.vector("k_norm", dim)) if normed else (None, None)
    out = s.tensor("q", TOKENS, s.shape.heads * dim)
    paging = STATE_POSITIONS, STATE_SEQUENCES, "blocks"
    s.add(
        ops.RopeKvWrite(
            *s.heads, qkv, s.table(), *paging, *s.caches, out, *norms, 1e-5, 1.0, _mixed(s) if mixing else 1, beta, 2,
            v_norm,
        )
    )  # fmt: skip
    return s.attended(out)


def _conv(s: Sketch, *, taps: int, gated: bool) -> str:
    channels = s.shape.width
    x, weight = s.embedded((3 if gated else 1) * channels + 5), s.weight("kernels", channels, 1, taps)
    state = s.state("inputs", taps - 1, channels)
    return s.add(ops.CausalConv(*state, x, weight, s.tensor("out", TOKENS, channels), gated))


def _delta_rule(s: Sketch, *, per_key: int, tiled: bool = False) -> str:
    """Three key heads, and so many value heads for each."""
    heads, k_dim, v_dim = 3 * per_key, s.shape.head_dim, s.shape.head_dim - 3
    qkv, gates = s.embedded(6 * k_dim + heads * v_dim, "qkv", 3.0), s.embedded(2 * heads + 5, "gates")
    decays = s.small("a_log", heads), s.small("dt_bias", heads)
    out, state = s.tensor("out", TOKENS, heads * v_dim), s.state("matrices", heads, k_dim, v_dim)
    return s.add(ops.GatedDeltaRule(*state, qkv, gates, *decays, out, 3, heads, k_dim, v_dim, 3, tiled))


def _gated_norm(s: Sketch) -> str:
    width = s.shape.heads * s.shape.head_dim
    x, gate = s.embedded(width), s.embedded(width + 9, "gate")
    return s.add(ops.GatedNorm(x, gate, s.vector("norm", s.shape.head_dim), s.tensor("out", TOKENS, width), 7, 1e-5))


def _gate_columns(s: Sketch, activation: Any) -> str:
    x, y = s.embedded(s.shape.width), s.embedded(s.shape.width + 11, "columns")
    return s.add(ops.GateColumns(x, y, s.tensor("out", TOKENS, s.shape.width), 5, activation))


def _scale(s: Sketch) -> str:
    x = s.embedded(s.shape.width)
    return s.add(ops.Scale(x, s.vector("factor", 1), s.tensor("out", TOKENS, s.shape.width)))


def _split_gates(s: Sketch) -> str:
    x = s.embedded(s.qkv_width + s.shape.heads * s.shape.head_dim)
    return s.add(ops.SplitGates(*s.heads, x, s.tensor("out", TOKENS, s.qkv_width)))


def _gate_heads(s: Sketch) -> str:
    width = s.shape.heads * s.shape.head_dim
    x, gates = s.embedded(width), s.embedded(s.qkv_width + width, "gates")
    return s.add(ops.GateHeads(*s.heads, x, gates, s.tensor("out", TOKENS, width)))


def _softcap(s: Sketch) -> str:
    x = s.embedded(s.shape.width)
    return s.add(ops.Softcap(x, s.tensor("out", TOKENS, s.shape.width), 3.0))


CASES: dict[type[ops.Op], dict[str, Case]] = {
    ops.Embed: {"plain": _embed},
    ops.RopeTable: {"read by a rotation": _rope},
    ops.RmsNorm: {
        "plain": _norm,
        "residual": lambda s: _norm(s, residual=True),
        "scaled": lambda s: _norm(s, scale=0.3),
    },
    ops.Linear: {
        "plain": _linear,
        "residual": lambda s: _linear(s, residual=True),
        "stacked": lambda s: _linear(s, more=(33, 7)),
        "bias": lambda s: _linear(s, bias=True),
        "stacked with biases and a residual": lambda s: _linear(s, more=(33, 7), bias=True, residual=True),
        "f16": lambda s: _linear(s, form="f16"),
        "packed with biases": lambda s: _linear(s, form="q8g32", more=(33, 7), bias=True),
    },
    ops.LowRank: {
        "whole": lambda s: _low_rank(s, (s.shape.rows,), rank=8, begins=(0,)),
        "parts": lambda s: _low_rank(s, (20, 7), rank=5, begins=(3, 31)),
        "beside what is read again": lambda s: _low_rank(s, (20, 7), rank=33, begins=(3, 31), kept=True),
    },
    ops.GatedLinear: {name: lambda s, name=name: _gated_linear(s, name) for name in ("silu", "gelu_tanh")},
    ops.GatedActivation: {name: lambda s, name=name: _gated_activation(s, name) for name in ("silu", "gelu_tanh")},
    ops.Add: {"plain": _add},
    ops.QkNorm: {
        "plain": _qk_norm,
        "of all heads together": lambda s: _qk_norm(s, whole=True),
        "of values too": lambda s: _qk_norm(s, v_norm=True),
        "of queries alone": _queries,
    },
    ops.Rope: {
        "plain": _rope,
        "mixing": lambda s: _rope(s, mixing=True),
        "growing": lambda s: _rope(s, beta=0.5),
    },
    ops.KvWrite: {"read by attention": _kv_write},
    ops.RopeKvWrite: {
        "plain": lambda s: _rope_kv_write(s, normed=False),
        "normed": lambda s: _rope_kv_write(s, normed=True),
        "mixing": lambda s: _rope_kv_write(s, normed=True, mixing=True),
        "growing": lambda s: _rope_kv_write(s, normed=True, beta=0.5),
        "normed values": lambda s: _rope_kv_write(s, normed=True, v_norm=True),
    },
    ops.Attention: {"of what was written": _kv_write},
    ops.CausalConv: {
        f"{taps} inputs{' gated' if gated else ''}": lambda s, taps=taps, gated=gated: _conv(s, taps=taps, gated=gated)
        for taps in (2, 3, 4)
        for gated in (False, True)
    },
    ops.GatedDeltaRule: {
        "a value head for each key head": lambda s: _delta_rule(s, per_key=1),
        "two value heads": lambda s: _delta_rule(s, per_key=2),
        "two tiled value heads": lambda s: _delta_rule(s, per_key=2, tiled=True),
    },
    ops.GatedNorm: {"plain": _gated_norm},
    ops.GateColumns: {name: lambda s, name=name: _gate_columns(s, name) for name in ("silu", "gelu_tanh")},
    ops.Scale: {"plain": _scale},
    ops.SplitGates: {"plain": _split_gates},
    ops.GateHeads: {"plain": _gate_heads},
    ops.Rows: {"of an embedding": _embed},
    ops.Softcap: {"plain": _softcap},
}


def on_gpu(
    plan: Plan, stored: Stored, *, off: tuple[str, ...] = ("int8",), device: Device | None = None
) -> GpuExecutor:
    return GpuExecutor(plan, stored, device=device or software_gpu(), off=off, tuning=Tuning())


EXECUTORS: dict[str, Callable[[Plan, Stored], Executor]] = {
    "reference": ReferenceExecutor,
    "cpu": lambda plan, weights: CpuExecutor(plan, weights, threads=1, activations="f32"),
    "gpu": on_gpu,
    "gpu of a browser": lambda plan, stored: on_gpu(plan, stored, device=software_gpu(baseline=True)),
}


def batch(
    counts: tuple[int, int], start: tuple[int, int] = (0, 0), *, states: NDArray[np.int32] | None = None
) -> Batch:
    """So many tokens of each sequence from its `start` on, the logits of all wanted, the last token's first."""
    sequences = np.repeat(np.arange(2, dtype=np.int32), counts)
    positions = np.concatenate([np.arange(s, s + n) for s, n in zip(start, counts, strict=True)]).astype(np.int32)
    ids = ((7 * positions + 13 * sequences) % WORDS).astype(np.int32)
    blocks = np.random.default_rng(1).permutation(2 * COLUMNS).astype(np.int32).reshape(2, COLUMNS)
    rows = np.arange(len(ids), dtype=np.int32)[::-1].copy()
    tables = {"blocks": blocks} | ({"states": states} if states is not None else {})
    adapters = np.where(sequences == 0, positions % 3, 2).astype(np.int32)
    return Batch(ids, positions, sequences, sequences, tables, rows, int(counts[0] == 1), adapters=adapters)


def keys(batch: Batch) -> NDArray[np.int32]:
    """A number for each token of a batch, the same in every batch."""
    return batch.sequences * 1000 + batch.positions


def defined(plan: Plan, weights: Stored, whole: Batch) -> NDArray[np.float32]:
    """The logits of a batch by the definition of each op."""
    values: dict[str, Any] = {t.name: cache.empty(t.dtype, t.shape) for t in plan.of_kind("cache")}
    values |= {**plan.constants, **whole.state()}
    for step in plan.steps:
        made = run_op(step, lambda name: values[name] if name in values else weights.weight(name).decode())
        if made is not None:
            values[step.outputs[0]] = made
    return np.asarray(values[LOGITS])


def test_every_op_has_a_case() -> None:
    assert len(OPS) == 22
    assert set(CASES) == set(OPS)


@pytest.mark.parametrize("tokens", COUNTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(("op", "case"), [(op, case) for op in OPS for case in CASES.get(op, ["none"])])
def test_an_executor_runs_an_op(op: type[ops.Op], case: str, executor: str, shape: str, tokens: str) -> None:
    sketch = Sketch(SHAPES[shape])
    plan, weights = sketch.plan(CASES[op][case](sketch)), Stored(sketch.stored)
    assert op in map(type, plan.steps)
    counts = COUNTS[tokens]
    written, then = (FIRST_STATES, NEXT_STATES) if plan.states else (None, None)
    whole = batch((BEFORE[0] + counts[0], BEFORE[1] + counts[1]), states=written)
    new = batch(counts, BEFORE, states=then)
    expected = defined(plan, weights, whole)
    made = EXECUTORS[executor](plan, weights)
    assert made.plan.steps == plan.steps
    made.run(batch(BEFORE, states=written))
    wanted = expected[np.isin(keys(whole), keys(new))[::-1]]
    got = made.run(new)
    assert np.abs(wanted).max() > 0.1
    assert np.abs(got - wanted).max() / np.abs(wanted).max() < TOLERANCE


def test_the_cpu_refuses_states_that_are_not_there_and_sequences_in_pieces() -> None:
    sketch = Sketch(SHAPES["ragged"])
    made = EXECUTORS["cpu"](sketch.plan(_conv(sketch, taps=3, gated=True)), Stored(sketch.stored))
    for wrong in (-1, STATES):
        with pytest.raises(ValueError, match=rf"state {wrong} of sequence 1 is not in 0 … {STATES - 1}"):
            made.run(batch((2, 3), states=np.array([[0, 0], [wrong, 1]], np.int32)))
    mixed = batch((2, 3), states=FIRST_STATES)
    order = np.array([0, 2, 1, 3, 4])
    with pytest.raises(ValueError, match="the tokens of sequence 0 are no neighbours"):
        made.run(replace(mixed, sequences=mixed.sequences[order], positions=mixed.positions[order]))


HEADS = {
    "one query head each": Shape(64, 96, 2, 2, 128, 64),
    "eight share a key head": Shape(64, 96, 8, 1, 64, 32),
    "whole runs of 32": Shape(64, 96, 6, 2, 96, 48, window=19),
    "wide": Shape(64, 96, 2, 1, 256, 128, softcap=5.0),
    "ragged": Shape(37, 51, 6, 2, 20, 7, window=33, softcap=5.0),
    "odd": Shape(37, 51, 3, 3, 33, 16),
}
CACHED = {"written as it is": _kv_write, "rotated first": lambda s: _rope_kv_write(s, normed=True, mixing=True)}
FLIPPED = 5e-3
"""Of the largest value, where what is rounded was computed first: differences in the last bit may give another code."""


@pytest.mark.parametrize("shape", HEADS)
@pytest.mark.parametrize("dtype", ["q8", "q4"])
@pytest.mark.parametrize("case", CACHED)
@pytest.mark.parametrize("executor", [name for name in EXECUTORS if name != "reference"])
def test_an_executor_rounds_to_the_cache_as_the_reference_does(
    executor: str, case: str, dtype: str, shape: str
) -> None:
    """Many tokens of two sequences, then one, few and many more."""
    sketch = Sketch(HEADS[shape], dtype)
    plan, weights = sketch.plan(CACHED[case](sketch)), Stored(sketch.stored)
    steps = ((20, 27), *COUNTS.values())
    ends = list(itertools.accumulate(steps, lambda one, other: (one[0] + other[0], one[1] + other[1])))
    whole = batch(ends[-1])
    expected, exact = (defined(each, weights, whole) for each in (plan, with_exact_caches(plan)))
    largest = np.abs(expected).max()
    assert np.abs(exact - expected).max() > largest * 10 * TOLERANCE, "the case does not show the rounding"
    made = EXECUTORS[executor](plan, weights)
    for counts, start in zip(steps, ((0, 0), *ends), strict=False):
        new = batch(counts, start)
        wanted = expected[np.isin(keys(whole), keys(new))[::-1]]
        apart = np.abs(made.run(new) - wanted).max() / largest
        assert apart < (TOLERANCE if case == "written as it is" else FLIPPED)


def with_exact_caches(plan: Plan) -> Plan:
    """The plan with caches of float32."""
    exact = {tensor.name: replace(tensor, dtype="f32") for tensor in plan.of_kind("cache")}
    return replace(plan, tensors=plan.tensors | exact)


@dataclass(frozen=True)
class Reversed(ops.Op):
    """An op that no executor knows."""

    reads = ("x",)
    x: str
    out: str


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_unknown_op_is_a_sentence_that_names_it(executor: str) -> None:
    sketch = Sketch(SHAPES["even"])
    width = sketch.shape.width
    out = sketch.add(Reversed(sketch.embedded(width), sketch.tensor("out", TOKENS, width)))
    with pytest.raises(UnsupportedModelError, match=r"^the \w+ .*\bReversed\b"):
        EXECUTORS[executor](sketch.plan(out), Stored(sketch.stored)).run(batch((1, 0)))


@pytest.mark.parametrize("tokens", COUNTS)
def test_biases_of_a_matrix_in_pieces_lie_where_its_rows_do(tokens: str) -> None:
    """The second of the stacked matrices is cut."""
    small = open_device(software=True, limits=replace(BASELINE, max_binding=100_000))
    sketch = Sketch(SHAPES["even"])
    plan = sketch.plan(_linear(sketch, more=(400,), bias=True, residual=True))
    gpu = on_gpu(plan, Stored(sketch.stored), device=small)
    expected = defined(plan, Stored(sketch.stored), new := batch(COUNTS[tokens]))
    assert np.abs(gpu.run(new) - expected).max() / np.abs(expected).max() < TOLERANCE


@pytest.mark.parametrize("off", [(), ("fused-rounding",), ("fused-rounding", "deferred-norm")], ids=" and ".join)
@pytest.mark.parametrize("tokens", COUNTS)
def test_biases_come_before_the_int8_blocks_of_what_follows(tokens: str, off: tuple[str, ...]) -> None:
    """A product with a bias and a residual, a norm, and a product with biases that reads int8 blocks of it."""
    sketch, width = Sketch(SHAPES["even"]), SHAPES["even"].width
    x = sketch.embedded(width)
    for i in range(2):
        weights, bias = (sketch.weight(f"w{i}", width, width, form="q8g32"),), (sketch.vector(f"b{i}", width),)
        summed = sketch.tensor(f"sum{i}", TOKENS, width)
        x = sketch.add(ops.Linear(x, weights, summed, x, bias))
        x = sketch.add(ops.RmsNorm(x, sketch.vector(f"norm{i}", width), sketch.tensor(f"x{i}", TOKENS, width), 1e-5))
    plan, stored = sketch.plan(x), Stored(sketch.stored)
    new = batch(COUNTS[tokens])
    expected = Oracle(plan, stored, int8=True).run(new)
    got = on_gpu(plan, stored, off=off).run(new)
    assert np.abs(got - expected).max() / np.abs(expected).max() < 0.01
