"""Every op of the CPU executor against the NumPy oracle: formats, ragged shapes, hostile values, instruction sets.

Activations come in through an `Embed` of a float32 table, results go out through `Rows`, so that each case is a small
plan that both executors run.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from halfbyte.cpu import CpuExecutor, _native
from halfbyte.errors import UnsupportedModelError, UsageError
from halfbyte.formats import Weight, get_format
from halfbyte.formats.ggml import BLOCKS
from halfbyte.plan import Batch, Plan, Tensor
from halfbyte.plan.cache import head_nbytes
from halfbyte.plan.memory import plan_memory
from halfbyte.plan.ops import (
    Add,
    Attention,
    Embed,
    GatedActivation,
    GatedLinear,
    KvWrite,
    Linear,
    Op,
    QkNorm,
    RmsNorm,
    Rope,
    RopeKvWrite,
    RopeTable,
    Rows,
    Softcap,
)
from halfbyte.plan.plan import LOGITS, STATE_IDS, STATE_POSITIONS, STATE_ROPE_SETS, STATE_ROWS, STATE_SEQUENCES, Kind
from halfbyte.reference.executor import ReferenceExecutor
from tests.blocks import HALVES, RUN_AS_THEY_ARE, block_format, put_halves
from tests.blocks import stored as stored_in

PACKED = [
    "q3g32", "q3g32z", "q3g64z", "q3g128", "q4g32", "q4g32z", "q4g64", "q4g64z", "q4g128", "q4g128z", "q8g32", "q8g64",
    "q8g128", *RUN_AS_THEY_ARE,
]  # fmt: skip
FORMATS = ["f32", "f16", "bf16", *PACKED]
TOKENS = [1, 2, 7, 33]
COLUMNS = [40, 96, 1152]
ROWS = [1, 17, 33, 100]
HEADS = [(4, 1, 20), (8, 2, 64), (6, 6, 33), (40, 1, 16), (3, 1, 96)]
CACHES = ["f32", "f16", "q8", "q4"]
PAGING = (STATE_POSITIONS, STATE_SEQUENCES, "blocks")


@pytest.fixture(params=_native.isas())
def isa(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def hostile(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    """Normal values, one in fifty of them 20 times as large."""
    rng = np.random.default_rng([seed, rows, columns])
    factors = np.where(rng.random((rows, columns)) < 0.02, 20, 1)
    return (rng.standard_normal((rows, columns)) * factors).astype(np.float32)


@dataclass
class Case:
    """A plan in the making, and its weights."""

    tokens: int
    context: int = 128
    block_size: int = 8
    sequences: int = 1
    columns: int = 16
    steps: list[Op] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    stored: dict[str, Weight] = field(default_factory=dict)
    constants: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    released: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in (STATE_IDS, STATE_POSITIONS, STATE_SEQUENCES, STATE_ROPE_SETS, STATE_ROWS):
            self.tensor(name, (self.tokens,), "state", "i32")
        self.tensor("blocks", (self.sequences, self.columns), "state", "i32")

    def tensor(self, name: str, shape: tuple[int, ...], kind: Kind = "activation", dtype: str = "f32") -> str:
        nbytes = math.prod(shape[:-1]) * (head_nbytes(dtype, shape[-1]) if kind == "cache" else 4 * shape[-1])
        self.tensors[name] = Tensor(name, shape, dtype, kind, nbytes)
        return name

    def out(self, width: int) -> str:
        return self.tensor(f"out{len(self.tensors)}", (self.tokens, width))

    def weight(self, name: str, values: NDArray[np.float32], stored: str = "f32") -> str:
        self.stored[name] = weight = stored_in(stored, values, np.random.default_rng(list(values.shape)))
        self.tensors[name] = Tensor(name, values.shape, stored, "weight", weight.nbytes)
        return name

    def activation(self, values: NDArray[np.float32]) -> str:
        """An activation whose row for token id i is values[i]."""
        table = self.weight(f"table{len(self.tensors)}", values)
        return self.add(Embed(STATE_IDS, table, self.out(values.shape[1])))

    def caches(self, heads: tuple[int, int, int], blocks: int, dtype: str) -> tuple[str, str]:
        shape = (blocks, heads[1], self.block_size, heads[2])
        return self.tensor("k_cache", shape, "cache", dtype), self.tensor("v_cache", shape, "cache", dtype)

    def rope_table(self, dim: int) -> str:
        frequencies = np.float32(1000.0) ** (-np.arange(dim // 2, dtype=np.float32) / (dim // 2))
        self.constants["inv_freq"] = np.stack([frequencies, frequencies / 3])
        self.tensor("inv_freq", self.constants["inv_freq"].shape, "constant")
        out = self.tensor("rope", (self.tokens, 2, dim // 2))
        return self.add(RopeTable(STATE_POSITIONS, STATE_ROPE_SETS, "inv_freq", out, 1.25))

    def add(self, step: Op) -> str:
        self.steps.append(step)
        return step.outputs[0]

    def plan(self, result: str) -> Plan:
        shape = self.tensors[result].shape
        self.tensor(LOGITS, (self.tokens, math.prod(shape[1:])), "output")
        self.add(Rows(result, STATE_ROWS, LOGITS))
        steps = tuple(self.steps)
        capacities = (self.tokens, self.tokens, self.sequences, self.context, self.block_size)
        return Plan(*capacities, self.tensors, steps, (), self.constants)

    def release(self, name: str) -> None:
        self.released.append(name)


@dataclass(frozen=True)
class Source:
    """The weights of a case as a `WeightSource`."""

    case: Case

    def weight(self, name: str) -> Weight:
        return self.case.stored[name]

    def release(self, name: str) -> None:
        self.case.released.append(name)


def batch(
    tokens: int, *, first_id: int = 0, start: int = 0, sequence: int = 0, rope_set: int = 0,
    blocks: NDArray[np.int32] | None = None, rows: int | None = None,
) -> Batch:  # fmt: skip
    """Ids and positions that count up from `first_id` and `start`, logits for the last `rows` tokens (all if None)."""
    return Batch(
        token_ids=np.arange(first_id, first_id + tokens, dtype=np.int32),
        positions=np.arange(start, start + tokens, dtype=np.int32),
        sequences=np.full(tokens, sequence, np.int32),
        rope_sets=np.full(tokens, rope_set, np.int32),
        block_tables={"blocks": np.arange(16, dtype=np.int32)[None] if blocks is None else blocks},
        logit_rows=np.arange(tokens - (tokens if rows is None else rows), tokens, dtype=np.int32),
    )


def check(
    case: Case, result: str, isa: str, *, tolerance: float = 1e-5, threads: int = 2, batches: list[Batch] | None = None,
    activations: str = "f32",
) -> None:  # fmt: skip
    """Run the case on both executors; results may differ by `tolerance` of the largest value."""
    plan = case.plan(result)
    cpu = CpuExecutor(plan, Source(case), threads=threads, isa=isa, activations=activations)
    reference = ReferenceExecutor(plan, Source(case))
    for fed in batches or [batch(case.tokens)]:
        expected = reference.run(fed)
        expected = expected.reshape(len(expected), -1)
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(cpu.run(fed), expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("stored", FORMATS)
def test_products_of_ragged_shapes(stored: str, isa: str) -> None:
    for tokens in TOKENS:
        for columns in COLUMNS:
            case = Case(tokens)
            x = case.activation(hostile(tokens, columns))
            weights = tuple(case.weight(f"w{n}", hostile(n, columns, n), stored) for n in ROWS)
            check(case, case.add(Linear(x, weights, case.out(sum(ROWS)))), isa)


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 13, 14, 15, 29])
def test_products_at_the_edges_of_register_tiles(tokens: int, isa: str) -> None:
    for stored in ("q4g64z", "f16"):
        case = Case(tokens)
        weight = case.weight("w", hostile(32, 300), stored)
        check(case, case.add(Linear(case.activation(hostile(tokens, 300)), (weight,), case.out(32))), isa)


@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("tokens", [1, 6])
def test_long_rows_keep_their_precision(stored: str, tokens: int, isa: str) -> None:
    case, columns = Case(tokens), 17_920
    values = hostile(tokens, columns)
    weight = case.weight("w", hostile(16, columns), stored)
    plan = case.plan(case.add(Linear(case.activation(values), (weight,), case.out(16))))
    expected = values.astype(np.float64) @ case.stored["w"].decode().astype(np.float64).T
    got = CpuExecutor(plan, Source(case), threads=1, isa=isa, activations="f32").run(batch(tokens))
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).mean()


def eight_bits(tokens: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    """Activations that 8 bits hold exactly: in each block of 32, whole multiples of a step, up to ±127 of them."""
    rng = np.random.default_rng([seed, tokens, columns])
    codes = rng.integers(-127, 128, (tokens, -(-columns // 32), 32))
    codes[:, :, 0] = rng.choice([-127, 127], codes.shape[:2])
    steps = np.exp2(rng.integers(-9, 4, codes.shape[:2]))[..., None]
    return np.ascontiguousarray((codes * steps).reshape(tokens, -1)[:, :columns], np.float32)


@pytest.mark.parametrize("stored", PACKED)
def test_8_bit_products_are_exact_where_8_bits_hold_the_activations(stored: str, isa: str) -> None:
    for tokens in (*TOKENS, 8, 9, 12, 13, 25):
        for columns in COLUMNS:
            case = Case(tokens)
            x = case.activation(eight_bits(tokens, columns))
            weights = tuple(case.weight(f"w{n}", hostile(n, columns, n), stored) for n in ROWS)
            check(case, case.add(Linear(x, weights, case.out(sum(ROWS)))), isa, activations="int8", threads=1)


@pytest.mark.parametrize("stored", PACKED)
def test_an_8_bit_product_of_a_token_is_the_same_in_any_company(stored: str, isa: str) -> None:
    case, most, columns = Case(64), 64, 200
    x, weight = hostile(most, columns), case.weight("w", hostile(50, columns, 1), stored)
    plan = case.plan(case.add(Linear(case.activation(x), (weight,), case.out(50))))
    executor = CpuExecutor(plan, Source(case), threads=2, isa=isa)
    alone = np.concatenate([executor.run(batch(1, first_id=token)).copy() for token in range(most)])
    for tokens in (2, 5, 7, 8, 9, 16, 17, 33, 64):
        np.testing.assert_array_equal(executor.run(batch(tokens)), alone[:tokens])


def test_8_bit_products_of_the_largest_codes_do_not_overflow(isa: str) -> None:
    for stored in PACKED:
        case, columns = Case(1), 17_920
        x = case.activation(np.full((1, columns), -127, np.float32))
        signs = np.repeat([[1.0], [-1.0]], 8, axis=0).astype(np.float32)
        weight = case.weight("w", np.broadcast_to(signs, (16, columns)).copy(), stored)
        if stored in HALVES:
            case.stored[weight] = largest_codes(stored, columns)
        check(case, case.add(Linear(x, (weight,), case.out(16))), isa, activations="int8")


def largest_codes(stored: str, columns: int) -> Weight:
    """Rows all of whose bits but those of the scales are set, then rows with none; scales of q6_k are ±127."""
    form = block_format(stored)
    blocks = np.repeat(np.array([0xFF, 0], np.uint8), 8 * form.row_bytes(columns)).reshape(-1, form.block_bytes)
    put_halves(stored, blocks, np.full((len(blocks), len(HALVES[stored])), 0.5))
    if stored == "q6_k":
        blocks[:, 192:208] = np.where(blocks[:, :1] > 0, 127, 129)
    return Weight(form, (16, columns), {BLOCKS: blocks.reshape(16, -1)})


def test_8_bit_activations_round_to_nearest_in_blocks_of_32(isa: str) -> None:
    case, values = Case(9), hostile(9, 70)
    values[3, 32:64] = 0
    values[4, :32] *= 1e-36
    blocks = np.pad(values, ((0, 0), (0, 26))).reshape(9, 3, 32)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / 127
    codes = np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 1e-30))
    rounded = (codes * scale).reshape(9, -1)[:, :70].astype(np.float32)
    weight = case.weight("w", hostile(40, 70), "q4g32z")
    plan = case.plan(case.add(Linear(case.activation(values), (weight,), case.out(40))))
    expected = rounded @ case.stored["w"].decode().T
    got = CpuExecutor(plan, Source(case), threads=2, isa=isa, activations="int8").run(batch(9))
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_activations_that_are_not_finite_show_in_every_product_of_their_token(isa: str) -> None:
    case, values = Case(3), hostile(3, 64)
    values[1, 40] = np.inf
    weight = case.weight("w", hostile(16, 64), "q4g32")
    plan = case.plan(case.add(Linear(case.activation(values), (weight,), case.out(16))))
    got = CpuExecutor(plan, Source(case), threads=1, isa=isa).run(batch(3))
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[[0, 2]]).all()


def test_unknown_activations_are_refused() -> None:
    case = Case(1)
    plan = case.plan(case.activation(hostile(1, 8)))
    with pytest.raises(UsageError, match="'int4' are unknown"):
        CpuExecutor(plan, Source(case), activations="int4")


def test_more_tokens_than_one_pass_takes(isa: str) -> None:
    case = Case(300, context=300)
    weight = case.weight("w", hostile(70, 64), "q4g32")
    check(case, case.add(Linear(case.activation(hostile(300, 64)), (weight,), case.out(70))), isa)


@pytest.mark.parametrize("tokens", TOKENS)
def test_a_product_onto_its_residual_may_mix_formats(tokens: int, isa: str) -> None:
    case = Case(tokens)
    x, residual = case.activation(hostile(tokens, 96)), case.activation(hostile(tokens, 150, 5))
    weights = (
        case.weight("a", hostile(17, 96), "q4g32"),
        case.weight("b", hostile(33, 96, 1), "f16"),
        case.weight("c", hostile(100, 96, 2), "q4g128z"),
    )
    check(case, case.add(Linear(x, weights, case.out(150), residual)), isa, threads=3)


@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("residual", [False, True])
def test_a_product_adds_the_biases_of_its_stacked_weights(stored: str, residual: bool, isa: str) -> None:
    for activations, values in (("f32", hostile), ("int8", eight_bits)):
        for tokens in TOKENS:
            case = Case(tokens)
            x = case.activation(values(tokens, 96))
            onto = case.activation(hostile(tokens, sum(ROWS), 5)) if residual else None
            weights = tuple(case.weight(f"w{n}", hostile(n, 96, n), stored) for n in ROWS)
            bias = tuple(case.weight(f"b{n}", 100 * hostile(1, n, n)[0]) for n in ROWS)
            check(case, case.add(Linear(x, weights, case.out(sum(ROWS)), onto, bias)), isa, activations=activations)


@pytest.mark.parametrize("stored", ["f16", "bf16"])
def test_a_bias_may_be_stored_in_16_bits(stored: str, isa: str) -> None:
    case = Case(3)
    bias = case.weight("b", hostile(1, 40)[0], stored)
    weight = case.weight("w", hostile(40, 64), "q4g32")
    check(case, case.add(Linear(case.activation(hostile(3, 64)), (weight,), case.out(40), None, (bias,))), isa)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_products(tokens: int, activation: str, isa: str) -> None:
    for stored in ("q4g32", "bf16"):
        for inner in (33, 96):
            case = Case(tokens)
            x = case.activation(hostile(tokens, 72))
            gate_up = (case.weight("gate_up", hostile(2 * inner, 72), stored),)
            apart = tuple(case.weight(name, hostile(inner, 72, len(name)), stored) for name in ("gate", "up"))
            one = case.add(GatedLinear(x, gate_up, case.out(inner), activation))  # type: ignore[arg-type]
            other = case.add(GatedLinear(x, apart, case.out(inner), activation))  # type: ignore[arg-type]
            check(case, case.add(Add(one, other, case.out(inner))), isa)


@pytest.mark.parametrize("stored", FORMATS)
def test_embedding_rows(stored: str, isa: str) -> None:
    for columns in (1, 40, 96, 130):
        case = Case(7)
        table = case.weight("table", hostile(19, columns), stored)
        out = case.add(Embed(STATE_IDS, table, case.out(columns), 3.5))
        check(case, out, isa, tolerance=1e-7, batches=[batch(7, first_id=12)])


@pytest.mark.parametrize("width", [1, 15, 16, 40, 1152])
@pytest.mark.parametrize("residual", [False, True])
def test_rms_norm(width: int, residual: bool, isa: str) -> None:
    case = Case(5)
    x = case.activation(hostile(5, width))
    other = case.activation(hostile(5, width, 1)) if residual else None
    weight = case.weight("norm", hostile(1, width, 2)[0])
    check(case, case.add(RmsNorm(x, weight, case.out(width), 1e-6, 1.0, other)), isa)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_activations_where_exponentials_overflow(activation: str, isa: str) -> None:
    case = Case(3)
    gate = np.concatenate([np.linspace(-150, 150, 301), [0.0, 1e-4, -1e-4]]).astype(np.float32)
    x = case.activation(np.tile(np.concatenate([gate, np.ones_like(gate)]), (3, 1)))
    gated = case.add(GatedActivation(x, case.out(len(gate)), activation))  # type: ignore[arg-type]
    check(case, gated, isa, tolerance=1e-7)


def test_softcap(isa: str) -> None:
    case = Case(3)
    check(case, case.add(Softcap(case.activation(hostile(3, 100) * 30), case.out(100), 30.0)), isa, tolerance=1e-6)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("fused", [False, True])
def test_qk_norm_rope_and_cache(heads: tuple[int, int, int], fused: bool, isa: str) -> None:
    """The cache is seen through attention; only 3/4 of a head is rotated."""
    count, kv_count, size = heads
    case = Case(9, columns=16)
    dim = size * 3 // 4 // 2 * 2
    qkv = case.activation(hostile(9, (count + 2 * kv_count) * size))
    table = case.rope_table(dim)
    k_cache, v_cache = case.caches(heads, 16, "f32")
    norms = case.weight("q_norm", hostile(1, size)[0]), case.weight("k_norm", hostile(1, size, 1)[0])
    if fused:
        q = case.add(
            RopeKvWrite(
                *heads, qkv, table, *PAGING, k_cache, v_cache, case.out(count * size), *norms, eps=1e-5, offset=1.0
            )
        )
    else:
        qkv = case.add(QkNorm(*heads, qkv, *norms, case.out((count + 2 * kv_count) * size), 1e-5, 1.0))
        q = case.add(Rope(*heads, qkv, table, STATE_POSITIONS, case.out((count + 2 * kv_count) * size)))
        case.add(KvWrite(*heads, q, *PAGING, k_cache, v_cache))
    out = case.add(Attention(*heads, q, k_cache, v_cache, *PAGING, case.out(count * size), size**-0.5))
    check(case, out, isa, batches=[batch(9), batch(5, start=40, rope_set=1)])


def attention_case(
    heads: tuple[int, int, int],
    dtype: str,
    window: int | None,
    softcap: float | None,
    columns: int,
    block_size: int = 8,
    *,
    tokens: int = 33,
    sequences: int = 2,
    context: int = 128,
) -> tuple[Case, str]:
    count, kv_count, size = heads
    case = Case(tokens, context, block_size, sequences, columns)
    qkv = case.activation(hostile(120, (count + 2 * kv_count) * size))
    k_cache, v_cache = case.caches(heads, sequences * columns, dtype)
    case.add(KvWrite(*heads, qkv, *PAGING, k_cache, v_cache))
    attended = case.out(count * size)
    return case, case.add(Attention(*heads, qkv, k_cache, v_cache, *PAGING, attended, size**-0.5, window, softcap))


def conversation(tables: NDArray[np.int32]) -> list[Batch]:
    """Two sequences: prefilled in chunks, then decoded alone and together."""
    one, two = (batch(33, sequence=s, blocks=tables) for s in (0, 1))
    more = batch(30, first_id=33, start=33, sequence=1, blocks=tables)
    alone = [batch(1, first_id=63 + i, start=63 + i, sequence=1, blocks=tables) for i in range(3)]
    together = Batch(
        token_ids=np.array([70, 71, 72], np.int32),
        positions=np.array([33, 34, 66], np.int32),
        sequences=np.array([0, 0, 1], np.int32),
        rope_sets=np.zeros(3, np.int32),
        block_tables={"blocks": tables},
        logit_rows=np.arange(3, dtype=np.int32),
    )
    return [one, two, more, *alone, together]


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", CACHES)
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (17, 5.0)])
def test_attention(
    heads: tuple[int, int, int], threads: int, dtype: str, window: int | None, softcap: float | None, isa: str
) -> None:
    """With a window the table is a ring that is overwritten several times."""
    columns = 9 if window is None else 7
    case, out = attention_case(heads, dtype, window, softcap, columns)
    tables = np.random.default_rng(1).permutation(2 * columns).astype(np.int32).reshape(2, columns)
    check(case, out, isa, threads=threads, batches=conversation(tables))


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", CACHES)
@pytest.mark.parametrize("block_size", [32, 40, 64])
def test_attention_to_blocks_of_whole_vectors(
    heads: tuple[int, int, int], dtype: str, block_size: int, isa: str
) -> None:
    case, out = attention_case(heads, dtype, window=None, softcap=None, columns=3, block_size=block_size)
    check(case, out, isa, batches=conversation(np.array([[4, 0, 2], [1, 5, 3]], np.int32)))


LENGTHS = (1300, 519, 1025, 40)
"""Tokens of some sequences, of which attention cuts the long ones into parts."""


def tokens_of(*spans: tuple[int, int, int]) -> Batch:
    """Spans (sequence, first position, past the last) of sequences whose token ids follow from their positions."""
    sequences = np.concatenate([np.full(end - begin, sequence) for sequence, begin, end in spans])
    positions = np.concatenate([np.arange(begin, end) for _, begin, end in spans])
    return Batch(
        token_ids=((7 * sequences + positions) % 120).astype(np.int32),
        positions=positions.astype(np.int32),
        sequences=sequences.astype(np.int32),
        rope_sets=np.zeros(len(positions), np.int32),
        block_tables={"blocks": np.arange(4 * 21, dtype=np.int32).reshape(4, 21)},
        logit_rows=np.arange(len(positions), dtype=np.int32),
    )


def prompts(chunk: int) -> list[Batch]:
    """All of LENGTHS, one sequence after another, some tokens at a time."""
    return [
        tokens_of((sequence, begin, min(begin + chunk, length)))
        for sequence, length in enumerate(LENGTHS)
        for begin in range(0, length, chunk)
    ]


ANSWERS = [[(s, n, n + 1) for s, n in enumerate(LENGTHS)], [(s, n + 1, n + 2) for s, n in enumerate(LENGTHS)]]


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("window", [None, 700])
def test_attention_to_contexts_of_several_parts(heads: tuple[int, int, int], window: int | None, isa: str) -> None:
    case, out = attention_case(heads, "f16", window, None, 21, 64, tokens=300, sequences=4, context=1344)
    check(case, out, isa, threads=3, batches=[*prompts(300), *(tokens_of(*spans) for spans in ANSWERS)])


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize(("dtype", "window"), [("f16", None), ("f32", 700)])
def test_attention_of_a_token_is_the_same_in_any_company(
    threads: int, dtype: str, window: int | None, isa: str
) -> None:
    case, out = attention_case((8, 2, 64), dtype, window, 5.0, 21, 64, tokens=300, sequences=4, context=1344)
    plan = case.plan(out)
    first, second = (CpuExecutor(plan, Source(case), threads=n, isa=isa) for n in (threads, 2))
    whole = np.concatenate([first.run(fed).copy() for fed in prompts(300)])
    np.testing.assert_array_equal(np.concatenate([second.run(fed).copy() for fed in prompts(77)]), whole)
    for spans in ANSWERS:
        together = first.run(tokens_of(*spans)).copy()
        alone = [second.run(tokens_of(span)).copy() for span in spans]
        np.testing.assert_array_equal(np.concatenate(alone), together)
    mixed = first.run(tokens_of(*ANSWERS[1][1:], (0, 1200, 1302)))
    np.testing.assert_array_equal(mixed[:3], together[1:])
    np.testing.assert_array_equal(mixed[3:-2], whole[1200:1300])
    np.testing.assert_array_equal(mixed[-1], together[0])


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("fused", [False, True])
def test_a_hadamard_rotation_mixes_queries_and_keys(heads: tuple[int, int, int], fused: bool, isa: str) -> None:
    count, kv_count, size = heads
    case, width, mixed = Case(9), (count + 2 * kv_count) * size, size & -size
    qkv, table = case.activation(hostile(9, width)), case.rope_table(size // 2 * 2)
    caches = case.caches(heads, 16, "f32")
    if fused:
        q = case.add(RopeKvWrite(*heads, qkv, table, *PAGING, *caches, case.out(count * size), hadamard=mixed))
        q = case.add(Attention(*heads, q, *caches, *PAGING, case.out(count * size), 1.0))
    else:
        q = case.add(Rope(*heads, qkv, table, STATE_POSITIONS, case.out(width), mixed))
    check(case, q, isa)


@pytest.mark.parametrize("size", [0, 3, 64])
def test_a_hadamard_rotation_that_does_not_fit_the_heads_is_refused(size: int) -> None:
    case = Case(1)
    x, table = case.activation(hostile(1, 96)), case.rope_table(32)
    step = Rope(1, 1, 32, x, table, STATE_POSITIONS, case.out(96), size)
    plan = case.plan(case.add(step))
    with pytest.raises(ValueError, match=f"Hadamard rotation of {size} values does not fit heads of 32"):
        CpuExecutor(plan, Source(case), threads=1)


def test_a_cache_whose_rows_fit_no_format_is_refused() -> None:
    program, zeros = _native.Program(1, 8), np.zeros(1, np.int32)
    fields = {
        "qkv": np.zeros((1, 96), np.float32), "k_cache": np.zeros((1, 1, 8, 33), np.uint8),
        "v_cache": np.zeros((1, 1, 8, 34), np.uint8), "positions": zeros, "sequences": zeros, "blocks": zeros[None],
        "heads": 1, "kv_heads": 1, "head_dim": 32,
    }  # fmt: skip
    with pytest.raises(ValueError, match="the cache 'k_cache' has rows of 33 items, which fit no type"):
        program.step("KvWrite", "tokens", fields)


@pytest.mark.parametrize("dtype", ["f16", "q8", "q4"])
def test_what_is_too_large_for_a_cache_shows(dtype: str, isa: str) -> None:
    """Of four tokens the third is too large for a float16 scale: what attends to it shows that."""
    heads = (2, 1, 40)
    case, values = Case(4), hostile(4, 160)
    values[2, [90, 130]] = 1e38
    qkv, caches = case.activation(values), case.caches(heads, 16, dtype)
    case.add(KvWrite(*heads, qkv, *PAGING, *caches))
    out = case.add(Attention(*heads, qkv, *caches, *PAGING, case.out(80), 40**-0.5))
    not_finite(case, out, isa, "f32", [batch(4)])


def test_a_scale_that_turns_scores_around_is_refused() -> None:
    case = Case(1)
    q = case.activation(hostile(1, 48))
    caches = case.caches((1, 1, 16), 16, "f16")
    plan = case.plan(case.add(Attention(1, 1, 16, q, *caches, *PAGING, case.out(16), -0.25)))
    with pytest.raises(ValueError, match=r"scale of the scores is -0\.25"):
        CpuExecutor(plan, Source(case), threads=1)


def not_finite(case: Case, result: str, isa: str, activations: str, batches: list[Batch]) -> None:
    """Both executors' results are finite, or not, in the same places."""
    plan = case.plan(result)
    cpu = CpuExecutor(plan, Source(case), threads=2, isa=isa, activations=activations)
    reference = ReferenceExecutor(plan, Source(case))
    for fed in batches:
        with np.errstate(all="ignore"):
            expected = reference.run(fed).reshape(len(fed.logit_rows), -1)
            np.testing.assert_array_equal(np.isfinite(cpu.run(fed)), np.isfinite(expected))
    assert not np.isfinite(expected).all()


def put(stored: str, parts: dict[str, NDArray[np.generic]], value: float) -> None:
    """Store a value as a scale of row 3, or as a number of it in a plain format."""
    if ".scale" in parts:
        parts[".scale"][3, 0] = value  # type: ignore[call-overload]
    elif stored == "bf16":
        parts[""][3, 7] = np.float32(value).view(np.uint32) >> 16  # type: ignore[call-overload]
    elif stored in HALVES:
        at = HALVES[stored][0]
        parts[BLOCKS][3, at : at + 2] = np.array([value], np.float16).view(np.uint8)
    else:
        parts[""][3, 7] = value  # type: ignore[call-overload]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("activations", ["f32", "int8"])
@pytest.mark.parametrize("tokens", [1, 3, 9])
@pytest.mark.parametrize("part", ["x", "scale", "bias", "residual"])
def test_products_hand_on_what_is_not_a_number(
    value: float, activations: str, tokens: int, part: str, isa: str
) -> None:
    for stored in FORMATS:
        case = Case(tokens)
        x, onto = hostile(tokens, 256), hostile(tokens, 40, 5)
        bias = hostile(1, 40)[0]
        {"x": x[tokens // 2], "residual": onto[0], "bias": bias}.get(part, np.empty(9))[7] = value
        names = case.activation(x), case.activation(onto), case.weight("b", bias)
        weight = case.weight("w", hostile(40, 256), stored)
        if part == "scale":
            put(stored, case.stored[weight].parts, value)
        out = case.add(Linear(names[0], (weight,), case.out(40), names[1], (names[2],)))
        not_finite(case, out, isa, activations, [batch(tokens)])


@pytest.mark.parametrize("dtype", CACHES)
@pytest.mark.parametrize(("part", "window"), [("q", None), ("k", None), ("v", None), ("q", 17), ("k", 17)])
@pytest.mark.parametrize(("value", "softcap"), [(np.nan, None), (np.inf, None), (-np.inf, None), (np.nan, 5.0)])
def test_attention_hands_on_what_is_not_a_number(
    value: float, dtype: str, part: str, window: int | None, softcap: float | None, isa: str
) -> None:
    """In one token's q, k or v, which others see or not. A cap makes infinite scores finite again, as it should.

    Not in v with a window: the reference multiplies what is outside a window by 0, kernels do not look at it.
    """
    heads = (4, 2, 20)
    case = Case(33, sequences=2, columns=9)
    values = hostile(33, 8 * 20)
    first = {"q": 0, "k": 4 * 20, "v": 6 * 20}[part]
    values[5, first : first + 20] = value
    qkv = case.activation(values)
    caches = case.caches(heads, 18, dtype)
    case.add(KvWrite(*heads, qkv, *PAGING, *caches))
    out = case.add(Attention(*heads, qkv, *caches, *PAGING, case.out(80), 20**-0.5, window, softcap))
    not_finite(case, out, isa, "int8", [batch(33, blocks=np.arange(18, dtype=np.int32).reshape(2, 9))])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_other_ops_hand_on_what_is_not_a_number(value: float, isa: str) -> None:
    x = hostile(3, 40)
    x[1, 7] = x[2, 39] = value
    norm = hostile(1, 40)[0]
    norm[3] = value

    def result(make: Callable[[Case, str], Op]) -> None:
        case = Case(3)
        not_finite(case, case.add(make(case, case.activation(x))), isa, "int8", [batch(3)])

    result(lambda case, x: Add(x, case.activation(hostile(3, 40, 1)), case.out(40)))
    result(lambda case, x: RmsNorm(x, case.weight("norm", hostile(1, 40)[0]), case.out(40), 1e-6))
    result(lambda case, x: RmsNorm(x, case.weight("norm", norm), case.out(40), 1e-6, 1.0, x))
    result(lambda case, x: QkNorm(2, 1, 10, x, *2 * [case.weight("norm", norm[:10])], case.out(40), 1e-6))
    result(lambda case, x: Rope(2, 1, 10, x, case.rope_table(10), STATE_POSITIONS, case.out(40)))
    if np.isnan(value):
        result(lambda case, x: Softcap(x, case.out(40), 30.0))
    for activation in ("silu", "gelu_tanh"):
        if value != -np.inf:
            result(lambda case, x: GatedActivation(x, case.out(20), activation))  # type: ignore[arg-type]  # noqa: B023


def test_half_precision_rounds_as_numpy_does(isa: str) -> None:
    rng = np.random.default_rng(0)
    ties = np.arange(0x3C00, 0x3C40, dtype=np.uint16).view(np.float16).astype(np.float32) + np.float32(2**-11)
    large = [np.inf, -np.inf, np.nan, 65504, 65519, 65520, 1e9]
    small = [0, -0.0, 2**-24, 2**-25, 3 * 2**-26, 6e-5]
    special = np.array(large + small, np.float32)
    spread = (rng.standard_normal(400) * 2.0 ** rng.integers(-26, 18, 400)).astype(np.float32)
    values = np.concatenate([ties, special, spread])
    program, state = _native.Program(1, 8, isa), np.zeros(1, np.int32)
    caches = [np.zeros((1, 1, 8, len(values)), np.float16) for _ in range(2)]
    qkv = np.concatenate([np.zeros_like(values), values, values])[None]
    fields = {
        "heads": 1, "kv_heads": 1, "head_dim": len(values), "qkv": qkv,
        "positions": state, "sequences": state, "blocks": state[None], "k_cache": caches[0], "v_cache": caches[1],
    }  # fmt: skip
    program.step("KvWrite", "tokens", fields)
    program.run(1, 0)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(caches[0].reshape(-1, 8)[:, 0], values.astype(np.float16))
        np.testing.assert_array_equal(caches[1][0, 0, 0], values.astype(np.float16))


def test_angles_of_far_positions() -> None:
    positions = np.array([0, 1, 4095, 100_003, 131_071], np.int32)
    frequencies = (10_000.0 ** (-np.arange(0, 64, 2) / 64)).astype(np.float32)[None]
    table = np.empty((5, 64), np.float32)
    program = _native.Program(2, 131_072)
    state = {"positions": positions, "sets": np.zeros(5, np.int32)}
    program.step("RopeTable", "tokens", {**state, "inv_freq": frequencies, "out": table, "factor": 1.0})
    program.run(5, 0)
    angles = (positions[:, None].astype(np.float32) * frequencies).astype(np.float64)
    np.testing.assert_allclose(table, np.hstack([np.cos(angles), np.sin(angles)]), rtol=0, atol=1e-6)


def at_odd_address(part: NDArray[np.generic]) -> NDArray[np.generic]:
    """A read-only copy that starts at an odd address, as parts of a mapped file may."""
    memory = np.frombuffer(b"\0" * 65 + part.tobytes(), np.uint8)
    start = 1 + -memory.ctypes.data % 64
    memory = np.frombuffer(b"\0" * start + part.tobytes(), np.uint8)
    return memory[start:].view(part.dtype).reshape(part.shape)


@pytest.mark.parametrize("stored", FORMATS)
def test_weights_are_read_where_they_lie(stored: str, isa: str) -> None:
    """At any address, read-only; only repacked ones are given back."""
    case = Case(5)
    weight = case.weight("w", hostile(33, 96), stored)
    parts = {suffix: at_odd_address(part) for suffix, part in case.stored[weight].parts.items()}
    case.stored[weight] = Weight(get_format(stored), (33, 96), parts)
    check(case, case.add(Linear(case.activation(hostile(5, 96)), (weight,), case.out(33))), isa)
    assert case.released == (["w"] if stored in PACKED else [])


def test_tied_weights_are_loaded_once() -> None:
    case = Case(2)
    table = case.weight("table", hostile(40, 64), "q4g32")
    x = case.add(Embed(STATE_IDS, table, case.out(64)))
    check(case, case.add(Linear(x, (table,), case.out(40))), "generic")
    assert case.released == ["table"]


def test_no_rows_no_work_after_the_last_layer() -> None:
    case = Case(4)
    x = case.activation(hostile(4, 64))
    chosen = case.tensor("chosen", (4, 64))
    case.add(Rows(x, STATE_ROWS, chosen))
    case.tensor(LOGITS, (4, 33), "output")
    case.add(Linear(chosen, (case.weight("w", hostile(33, 64)),), LOGITS))
    plan = Plan(4, 4, 1, 128, 8, case.tensors, tuple(case.steps), (), {})
    executor = CpuExecutor(plan, Source(case), threads=2)
    assert executor.run(batch(4, rows=0)).shape == (0, 33)
    assert [ns > 0 for ns in executor.step_ns()] == [True, False, False]
    assert executor.run(batch(4, rows=1)).shape == (1, 33)
    assert (executor.step_ns() > 0).all()


def test_the_norm_of_hidden_states_runs_where_they_are_wanted_and_is_no_step_of_the_plan() -> None:
    case = Case(4)
    x = case.activation(hostile(4, 64))
    chosen, normed = (case.tensor(name, (4, 64)) for name in ("chosen", "normed"))
    case.add(Rows(x, STATE_ROWS, chosen))
    case.add(RmsNorm(chosen, case.weight("norm", hostile(1, 64)[0]), normed, 1e-5))
    case.tensor(LOGITS, (4, 33), "output")
    case.add(Linear(normed, (case.weight("w", hostile(33, 64)),), LOGITS))
    plan = plan_memory(Plan(4, 4, 1, 128, 8, case.tensors, tuple(case.steps), (), {}))
    executor, reference = CpuExecutor(plan, Source(case), threads=2), ReferenceExecutor(plan, Source(case))
    wanted = replace(batch(4, rows=0), hidden=True)
    got, expected = (each.submit(wanted, []).hidden() for each in (executor, reference))
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
    assert [ns > 0 for ns in executor.step_ns()] == [True, False, False, False]
    both = replace(batch(4, rows=2), hidden=True)
    assert np.abs(executor.run(both) - reference.run(both)).max() < 1e-5 * np.abs(reference.run(both)).max()
    assert (executor.step_ns() > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": [0, 40]}, "token id 40 at 1 is not in 0 … 39"),
        ({"token_ids": [-1, 0]}, "token id -1 at 0"),
        ({"positions": [0, 128]}, "position 128 at 1"),
        ({"sequences": [0, 2]}, "sequence 2 at 1 is not in 0 … 1"),
        ({"rope_sets": [0, 2]}, "rope set 2 at 1"),
        ({"logit_rows": [2]}, "logit row 2 at 0 is not in 0 … 1"),
        ({"positions": [0]}, "positions of shape"),
        ({"token_ids": [0] * 40}, "token_ids of shape"),
    ],
)
def test_batches_that_point_outside_are_refused(change: dict[str, list[int]], message: str) -> None:
    case = Case(3, sequences=2, columns=4)
    qkv = case.add(Embed(STATE_IDS, case.weight("table", hostile(40, 48)), case.out(48)))
    heads = (1, 1, 16)
    q = case.add(RopeKvWrite(*heads, qkv, case.rope_table(8), *PAGING, *case.caches(heads, 8, "f16"), case.out(16)))
    executor = CpuExecutor(case.plan(q), Source(case), threads=1)
    tables = np.arange(8, dtype=np.int32).reshape(2, 4)
    good = batch(2, blocks=tables)
    executor.run(good)
    bad = {name: np.array(values, np.int32) for name, values in change.items()}
    with pytest.raises(ValueError, match=message):
        executor.run(Batch(**{**vars(good), **bad}))


@pytest.mark.parametrize("block", [-1, 8, 2**31 - 1])
def test_blocks_outside_the_cache_are_refused(block: int) -> None:
    case, out = attention_case((1, 1, 16), "f16", None, None, 4)
    executor = CpuExecutor(case.plan(out), Source(case), threads=1)
    tables = np.array([[0, block, 2, 3], [4, 5, -1, -1]], np.int32)
    executor.run(batch(8, blocks=tables))
    executor.run(batch(16, sequence=1, blocks=tables))
    with pytest.raises(ValueError, match=f"block {block} of sequence 0"):
        executor.run(batch(1, start=8, blocks=tables))


def test_arrays_that_disagree_are_refused() -> None:
    program = _native.Program(1, 8)
    x, out = np.zeros((4, 32), np.float32), np.zeros((4, 8), np.float32)
    weights = [program.matrix("f32", np.zeros(8 * 32 * 4, np.uint8), None, None, 8, 32, 0)]

    def linear(**fields: object) -> None:
        program.step("Linear", "tokens", {"x": x, "weights": weights, "out": out, **fields})

    linear(bias=np.zeros(8, np.float32), residual=None)
    with pytest.raises(ValueError, match="width of the output is 32, expected 8"):
        linear(out=x)
    with pytest.raises(ValueError, match="width of the activations is 8, expected 32"):
        linear(x=out)
    with pytest.raises(ValueError, match="length of the bias is 7, expected 8"):
        linear(bias=np.zeros(7, np.float32))
    with pytest.raises(ValueError, match="'x' is missing"):
        linear(x=None)
    with pytest.raises(ValueError, match="'x' is not an array"):
        linear(x="x")
    with pytest.raises(ValueError, match="'x' is of another type"):
        linear(x=x.astype(np.int32))
    with pytest.raises(ValueError, match="'out' is read-only"):
        linear(out=np.frombuffer(out.tobytes(), np.float32).reshape(4, 8))
    with pytest.raises(TypeError, match=r"Linear\.x is of a type"):
        linear(x=x.astype(np.float64))
    with pytest.raises(TypeError, match=r"Linear\.x is of a type"):
        linear(x=np.zeros((4, 64), np.float32)[:, ::2])
    with pytest.raises(ValueError, match="no op 'Convolution'"):
        program.step("Convolution", "tokens", {})
    with pytest.raises(ValueError, match="there is no axis layers"):
        program.step("Linear", "layers", {})


def test_parts_that_do_not_fit_their_matrix_are_refused() -> None:
    program = _native.Program(1, 8)

    def matrix(name: str, shape: tuple[int, int], group: int, *sizes: int | None) -> None:
        codes, scales, zeros = (None if size is None else np.zeros(size, np.uint8) for size in sizes)
        program.matrix(name, codes, scales, zeros, *shape, group)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="bytes of the matrix is 10"):
        matrix("f16", (8, 32), 0, 10, None, None)
    with pytest.raises(ValueError, match="no multiple of 32"):
        matrix("q4g", (1, 16), 16, 8, 8, None)
    with pytest.raises(ValueError, match="bytes of the codes is 8, expected 16"):
        matrix("q4g", (1, 16), 32, 8, 2, None)
    with pytest.raises(ValueError, match="bytes of the scales is 0, expected 2"):
        matrix("q4g", (1, 16), 32, 16, None, None)
    with pytest.raises(ValueError, match="bytes of the zero points is 1, expected 0"):
        matrix("q8g", (1, 16), 32, 32, 2, 1)
    with pytest.raises(ValueError, match="bytes of the codes is 143, expected 144"):
        matrix("q4_k", (1, 200), 0, 143, None, None)
    with pytest.raises(ValueError, match="bytes of the codes is 21, expected 22"):
        matrix("q5_0", (1, 20), 0, 21, None, None)
    with pytest.raises(ValueError, match="unknown format 'q2_x'"):
        matrix("q2_x", (1, 256), 0, 84, None, None)
    with pytest.raises(ValueError, match="must have rows and columns"):
        matrix("f16", (0, 32), 0, 0, None, None)


def test_ops_that_the_core_lacks_are_refused_by_name() -> None:
    @dataclass(frozen=True)
    class Convolution(Op):
        out: str

    case = Case(1)
    plan = case.plan(case.add(Convolution(case.out(8))))
    with pytest.raises(UnsupportedModelError, match="the CPU has no op Convolution"):
        CpuExecutor(plan, Source(case))


def test_unknown_instruction_sets_are_refused() -> None:
    case = Case(1)
    plan = case.plan(case.activation(hostile(1, 8)))
    with pytest.raises(UsageError, match="'sse9' is not available"):
        CpuExecutor(plan, Source(case), isa="sse9")


def test_formats_without_a_kernel_are_refused() -> None:
    @dataclass(frozen=True)
    class Other:
        name: str = "q9x"

    case = Case(1)
    x = case.activation(hostile(1, 8))
    weight = case.weight("w", hostile(4, 8))
    case.stored[weight] = Weight(Other(), (4, 8), {})  # type: ignore[arg-type]
    plan = case.plan(case.add(Linear(x, (weight,), case.out(4))))
    with pytest.raises(UnsupportedModelError, match="cannot run q9x weights such as w"):
        CpuExecutor(plan, Source(case))


def peak_memory() -> int:
    """Bytes that were ever resident in this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_caches_take_no_memory_until_they_are_written() -> None:
    case = Case(2, columns=8)
    qkv = case.activation(hostile(2, 3 * 4096))
    heads = (1, 1, 4096)
    caches = case.caches(heads, 1 << 15, "f16")
    case.add(KvWrite(*heads, qkv, *PAGING, *caches))
    before = peak_memory()
    CpuExecutor(case.plan(qkv), Source(case), threads=1).run(batch(2, blocks=np.arange(8, dtype=np.int32)[None]))
    assert peak_memory() - before < 200 << 20 < case.tensors[caches[0]].nbytes
