"""Every family's arithmetic on a GPU: full passes, chunks, decoding, quantized weights; against the NumPy oracle."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from halfbyte.gpu.checks.oracle import Oracle
from halfbyte.gpu.device.device import open_device
from halfbyte.gpu.lowering.lower import SINGLE, lower_section
from halfbyte.gpu.lowering.passes import Section
from halfbyte.gpu.lowering.program import Extent, Ref
from halfbyte.gpu.run.executor import GpuExecutor
from halfbyte.gpu.shaders import rules
from halfbyte.gpu.shaders.capabilities import BASELINE
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.models import build_spec
from halfbyte.options import KV_DTYPES
from halfbyte.plan import Batch, Draw, Pending, Plan, make_plan
from halfbyte.plan.ops import Add, GatedActivation, GatedLinear, KvWrite, Linear, Rope, RopeTable
from halfbyte.reference.executor import ReferenceExecutor
from halfbyte.sampling import Sampled, Sampler, SamplingParams
from halfbyte.synthetic import SyntheticWeights
from tests.device.gpu import block_tables, drawn, one, software_gpu
from tests.models.tiny import KINDS, VOCABULARY, Tiny, batch_of, feed, feed_hidden, tiny

FLOAT = ("int8",)
Pair = tuple[GpuExecutor, ReferenceExecutor]
TOLERANCE = 1e-4


def prompt(length: int) -> list[int]:
    return np.random.default_rng(length).integers(3, VOCABULARY - 8, length).tolist()


def rope_set(model: Tiny, total: int) -> int:
    return int(model.spec.rope_switch is not None and total > model.spec.rope_switch)


def executors(model: Tiny, *, off: tuple[str, ...] = FLOAT, baseline: bool = False, **capacities: Any) -> Pair:
    gpu = GpuExecutor(model.plan(**capacities), model, device=software_gpu(baseline=baseline), off=off, tuning=Tuning())
    return gpu, ReferenceExecutor(model.plan(**capacities), model)


@pytest.mark.parametrize("family", KINDS)
def test_prefill_and_decode_agree_across_the_context(family: str) -> None:
    model, ids = tiny(family), prompt(90)
    gpu, reference = executors(model, block_size=8, context=96)
    start = 0
    for length in (40, 5, 1, 30, 1, 1, 3, 1):
        chunk, rope = ids[start : start + length], rope_set(model, 90)
        got, expected = (feed(e, chunk, start=start, rope_set=rope) for e in (gpu, reference))
        assert np.abs(expected).max() > 0.5
        assert np.abs(got - expected).max() < TOLERANCE, (start, length)
        start += length
    for length in (40, 5):
        got, expected = (feed_hidden(e, ids[:length], rope_set=rope_set(model, 90)) for e in (gpu, reference))
        assert np.abs(expected).max() > 1
        assert np.abs(got - expected).max() < TOLERANCE, length


@pytest.mark.parametrize("family", ["llama-3.2-1b", "gemma-3-1b"])
def test_hidden_states_come_beside_drawn_tokens(family: str) -> None:
    """Of all tokens, whatever rows of logits there may be; of one token, and of as many as a batch may have."""
    model, ids, start = tiny(family), prompt(64), 0
    gpu, reference = executors(model, rows=1)
    for length in (1, 63):
        both, tokens = [], []
        for executor in (gpu, reference):
            batch = batch_of(executor.plan, ids[start : start + length], start)
            batch = replace(batch, hidden=True, logit_rows=np.array([length - 1], np.int32))
            pending = executor.submit(batch, [Draw(0, Sampler(SamplingParams()), (), ())])
            tokens += [token.id for token in pending.tokens()[0] if isinstance(token, Sampled)]
            both.append(pending.hidden())
        assert np.abs(both[0] - both[1]).max() < TOLERANCE
        assert len(tokens) == 2
        assert tokens[0] == tokens[1]
        start += length
    with pytest.raises(TypeError, match="did not ask for hidden states"):
        gpu.submit(one(gpu.plan, 5, 64), []).hidden()


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("family", ["phi-4-mini", "gemma-3-1b", "mistral-7b-v0.1"])
def test_what_memory_held_before_is_never_seen(family: str, kv_dtype: str) -> None:
    """Blocks are used again, by other sequences too: here they hold no numbers at first."""
    model, ids = tiny(family), prompt(60)
    gpu, _ = executors(model, block_size=8, context=96, kv_dtype=kv_dtype)
    clean, _ = executors(model, block_size=8, context=96, kv_dtype=kv_dtype)
    gpu.load(one(gpu.plan, 0, 90))
    for cache in (gpu.buffer(Ref("cache", tensor.name)) for tensor in gpu.plan.of_kind("cache")):
        gpu.device.write(cache.handle, 0, np.full(cache.handle.size, 255, np.uint8))
    start = 0
    for length in (1, 1, 3, 20, 1, 8, 17, 1, 1):
        got, expected = (feed(e, ids[start : start + length], start=start) for e in (gpu, clean))
        assert np.array_equal(got, expected), (start, length)
        start += length


@pytest.mark.parametrize("family", ["phi-4-mini", "gemma-3-1b"])
def test_a_browsers_limits_without_subgroups_are_enough(family: str) -> None:
    model, ids = tiny(family), prompt(50)
    gpu, reference = executors(model, baseline=True)
    for start, stop in ((0, 45), (45, 46), (46, 50)):
        got, expected = (feed(e, ids[start:stop], start=start) for e in (gpu, reference))
        assert np.abs(got - expected).max() < TOLERANCE


@pytest.mark.parametrize("family", KINDS)
def test_a_plan_that_is_not_fused_runs_as_it_is(family: str) -> None:
    model, ids = tiny(family), prompt(50)
    gpu, reference = executors(model, fused=False)
    assert {Rope, KvWrite, GatedActivation, Add} <= {type(step) for step in gpu.plan.steps}
    for start, stop in ((0, 40), (40, 41), (41, 45)):
        got, expected = (feed(e, ids[start:stop], start=start) for e in (gpu, reference))
        assert np.abs(got - expected).max() < TOLERANCE


@pytest.mark.parametrize("weight_format", ["f16", "q4g64z", "q8g32", "q4_k"])
def test_stored_formats_agree(weight_format: str) -> None:
    model, ids = replace(tiny("phi-3.5-mini"), weight_format=weight_format), prompt(20)
    gpu, reference = executors(model)
    for start, stop in ((0, 16), (16, 17), (17, 20)):
        got, expected = (feed(e, ids[start:stop], start=start) for e in (gpu, reference))
        assert np.abs(got - expected).max() < TOLERANCE


def firsts(plan: Plan, count: int) -> Batch:
    """As many sequences as tokens, each at its beginning: no token's rounding touches another."""
    tables = block_tables(plan)
    each, zeros = np.arange(count, dtype=np.int32), np.zeros(count, np.int32)
    return Batch(np.array(prompt(count), np.int32), zeros, each, zeros, tables, each)


@pytest.mark.parametrize("off", [(), ("fused-rounding",), ("fused-rounding", "deferred-norm")], ids=" and ".join)
@pytest.mark.parametrize(
    ("family", "weight_format", "baseline"),
    [
        ("phi-4-mini", "q4g32", False),
        ("gemma-3-1b", "q4g64z", False),
        ("llama-3.2-3b", "q4g128", False),
        ("llama-3.2-3b", "q4g32z", True),
        ("gemma-3-1b", "q6_k", False),
    ],
)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "not fused"])
def test_int8_activations_round_as_they_should(
    fused: bool, family: str, weight_format: str, baseline: bool, off: tuple[str, ...]
) -> None:
    """A sum that differs in its last bit may round one value to its neighbour, in few tokens; all others agree."""
    model = replace(tiny(family), weight_format=weight_format)
    gpu, _ = executors(model, off=off, baseline=baseline, sequences=48, context=64, fused=fused)
    oracle = Oracle(gpu.plan, model, int8=True)
    for count in (1, 3, 40):
        batch = firsts(gpu.plan, count)
        expected = oracle.run(batch)
        errors = np.abs(gpu.run(batch) - expected).max(axis=1) / np.abs(expected).max()
        assert np.median(errors) < 1e-4
        assert errors.max() < 0.05


@pytest.mark.parametrize(("family", "stored"), [("phi-4", "q4g32"), ("gemma-3-1b", "q4g64z"), ("llama-3.2-3b", "q6_k")])
def test_products_ask_early_for_what_later_ones_read(monkeypatch: pytest.MonkeyPatch, family: str, stored: str) -> None:
    """For every matrix once, the last ones for the first; and nothing comes of it."""
    monkeypatch.setattr(rules, "PAGE_NBYTES", 512)
    model, ids = replace(tiny(family), weight_format=stored), prompt(12)
    plain, reference = executors(model)
    early = plain.with_config(replace(plain.config, far_nbytes=0))
    off = plain.with_config(replace(plain.config, far_nbytes=0, read_ahead=False))
    asked = [
        buffer
        for dispatch in early.program(SINGLE).dispatches
        for name, buffer in dispatch.buffers.items()
        if name.startswith("ahead")
    ]
    products = [step.weights for step in plain.plan.steps if isinstance(step, Linear | GatedLinear)]
    context = plain.lowerer.context
    matrices = [context.matrix(weights) for weights in products]
    read = [
        plain.buffer(ref)
        for matrix in matrices
        for piece in range(len(matrix.pieces))
        for ref in context.arrays(matrix, piece).values()
    ]
    assert sorted(map(id, asked)) == sorted(map(id, read))
    for other in (plain, off):
        assert not any(name.startswith("ahead") for d in other.program(SINGLE).dispatches for name in d.buffers)
    expected = feed(reference, ids)[-1]
    got = []
    for executor in (early, plain, off):
        feed(executor, ids[:11])
        got.append(feed(executor, ids[11:], start=11)[-1])
        assert np.abs(got[-1] - expected).max() < TOLERANCE
    assert np.array_equal(got[0], got[1])


@pytest.mark.parametrize("family", ["llama-3.2-3b", "gemma-3-1b", "phi-4-mini"])
def test_attention_changes_its_sizes_over_many_keys(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Query heads that share their keys then do so in one workgroup."""
    monkeypatch.setattr(rules, "FEWEST_SPLITS", 64)
    model, ids = tiny(family), prompt(90)
    gpu, reference = executors(model, block_size=8, context=96)
    gpu = gpu.with_config(replace(gpu.config, long_keys=40))
    longer = [d for d in gpu.program(SINGLE).dispatches if d.long and d.label == "attend"]
    assert longer, "layers without a window"
    short, long = (gpu.program(SINGLE).commands(Extent(1, 1, keys)) for keys in (32, 48))
    changed = [a.dispatch for a, b in zip(short, long, strict=True) if a[0] != b[0]]
    assert set(longer) <= set(changed)
    for start, stop in ((0, 25), (25, 26), (26, 70), (70, 71), (71, 88), (88, 89)):
        got, expected = (feed(e, ids[start:stop], start=start) for e in (gpu, reference))
        assert np.abs(got - expected).max() < TOLERANCE, start


@pytest.mark.parametrize(
    ("family", "slice_", "context"),
    [("llama-3.2-3b", 1, 96), ("gemma-3-4b", 1, 96), ("gemma-3-4b", 2, 96), ("llama-3.1-8b", 2, 48)],
)
def test_products_merge_the_splits_that_attention_leaves(
    monkeypatch: pytest.MonkeyPatch, family: str, slice_: int, context: int
) -> None:
    """Up to as many as there may be, in layers with a window too, and not over many keys."""
    sizes = {"WG": 64, "SLICE": slice_, "KEYS": 1, "MAX_SPLITS": 3}
    monkeypatch.setattr(rules, "_leaving", lambda *shape: sizes)
    model, ids = replace(tiny(family), weight_format="q4g32"), prompt(context)
    gpu = GpuExecutor(model.plan(context=context), model, device=software_gpu(), off=(), tuning=Tuning())
    gpu = gpu.with_config(replace(gpu.config, long_keys=64))
    apart = gpu.with_config(replace(gpu.config, fused_merge=False))
    merging = [d for d in gpu.program(SINGLE).dispatches if "partial" in d.buffers and d.label.startswith("gemv")]
    assert merging
    assert any(d.long for d in merging) == (context > 64)
    assert not any("partial" in d.buffers for d in apart.program(SINGLE).dispatches if d.label.startswith("gemv"))
    errors = []
    for start in range(0, context - 8, 9):
        feed(gpu, ids[start : start + 8], start=start)
        batch = one(gpu.plan, ids[start + 8], start + 8)
        got, expected = gpu.run(batch), apart.run(batch)
        errors.append(np.abs(got - expected).max() / np.abs(expected).max())
    assert np.median(errors) < 1e-4
    assert max(errors) < 0.05


@pytest.mark.parametrize("kv_dtype", ["q8", "q4"])
@pytest.mark.parametrize("family", ["phi-4-mini", "gemma-3-1b"])
def test_a_rounded_cache_gives_the_same_on_every_path(family: str, kv_dtype: str) -> None:
    """Whether attention writes the newest key itself or another kernel does, token by token or together.

    Most steps agree to the last bits; few differ by a code, where a value lay between two.
    """
    model, ids, errors = tiny(family), prompt(48), []
    gpu, reference = executors(model, block_size=8, context=96, kv_dtype=kv_dtype)
    apart, _ = executors(model, block_size=8, context=96, kv_dtype=kv_dtype, off=(*FLOAT, "fused-attention"))
    browser, _ = executors(model, block_size=8, context=96, kv_dtype=kv_dtype, baseline=True)
    start = 0
    for length in (20, 1, 1, 3, 1, 18, 1, 1, 1, 1):
        results = [
            feed(each, ids[start : start + length], start=start, rope_set=rope_set(model, 48))
            for each in (reference, gpu, apart, browser)
        ]
        errors += [np.abs(each - results[0]).max() / np.abs(results[0]).max() for each in results[1:]]
        start += length
    assert np.median(errors) < 1e-3
    assert max(errors) < 0.02


def test_a_cache_in_f16_is_near() -> None:
    model, ids = tiny("llama-3.2-1b"), prompt(30)
    gpu, reference = executors(model, kv_dtype="f16")
    for start, stop in ((0, 29), (29, 30)):
        got, expected = (feed(e, ids[start:stop], start=start) for e in (gpu, reference))
        assert np.abs(got - expected).max() < 2e-3


@pytest.mark.parametrize("family", ["phi-4-mini", "gemma-3-1b", "mistral-7b-v0.1"])
def test_sixty_four_greedy_tokens_stay_on_the_gpu_and_are_the_same(family: str) -> None:
    model, ids = tiny(family), prompt(20)
    gpu, reference = executors(model)
    rope = rope_set(model, 100)
    for executor in (gpu, reference):
        feed(executor, ids[:-1], rope_set=rope)
    got = drawn(gpu, one(gpu.plan, ids[-1], 19, rope_set=rope), 64)
    token = ids[-1]
    for i, decoded in enumerate(got):
        logits = reference.run(one(reference.plan, token, 19 + i, rope_set=rope))[0]
        token = int(logits.argmax())
        assert decoded.id == token
        assert decoded.logprob == pytest.approx(-float(np.log(np.exp(logits - logits.max()).sum())), abs=1e-3)
    assert len(got) == 64


def test_sequences_of_one_batch_do_not_see_each_other() -> None:
    model, ids = tiny("llama-3.2-1b"), prompt(12)
    gpu, reference = executors(model, sequences=2, context=64)
    for executor in (gpu, reference):
        feed(executor, ids, sequence=0)
        feed(executor, ids[::-1], sequence=1)
    got, expected = (feed(e, [5], start=12, sequence=1) for e in (gpu, reference))
    assert np.abs(got - expected).max() < TOLERANCE


def test_rotation_is_exact_at_the_end_of_a_long_context() -> None:
    """A GPU's own sine is not: the angle of position 131,071 is 20,861 turns."""
    model = tiny("llama-3.1-8b")
    gpu = GpuExecutor(model.plan(), model, device=software_gpu(), off=FLOAT, tuning=Tuning())
    step = next(step for step in gpu.plan.steps if isinstance(step, RopeTable))
    positions = np.array([0, 1, 2, 4095, 65_537, 100_003, 131_071], np.int32)
    zeros = np.zeros_like(positions)
    gpu.load(Batch(zeros, positions, zeros, zeros, block_tables(gpu.plan), zeros[:1]))
    lowered = lower_section(Section(gpu.lowerer.context, [step], 8, 8), "table", keep=step.out)
    program = gpu.bind(lowered)
    gpu.recorder.submit(program.commands(Extent(len(positions), 1, 1)))
    buffer = program.output.buffer
    frequencies = gpu.plan.constants[step.inv_freq]
    got = gpu.device.read(buffer.handle, positions.size * 2 * frequencies.size * 4).view(np.float32)
    angle = (positions[:, None].astype(np.float32) * frequencies[0]).astype(np.float64)
    expected = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert np.abs(got.reshape(expected.shape) - expected).max() < 5e-7


def test_blocks_may_be_handed_out_while_tokens_are_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfbyte.gpu.run.caches.FIRST_POSITIONS", 16)
    model = tiny("mistral-7b-v0.1")
    gpu, reference = (e for e in executors(model, block_size=8))
    whole = block_tables(gpu.plan)
    draw, got, flying = Draw(0, Sampler(SamplingParams()), (), []), list[int](), deque[Pending]()
    for start in range(0, 60, 4):
        batch = one(gpu.plan, -1 if start else 5, start)
        used = {name: np.where(np.arange(t.shape[1]) <= (start + 3) // 8, t, -1) for name, t in whole.items()}
        flying.append(gpu.submit(replace(batch, block_tables=used), [draw], steps=4))
        if len(flying) == gpu.ahead:
            got += ids_of(flying.popleft())
    while flying:
        got += ids_of(flying.popleft())
    token, expected = 5, []
    for position in range(60):
        token = int(reference.run(one(reference.plan, token, position))[0].argmax())
        expected.append(token)
    assert got == expected


def ids_of(pending: Pending) -> list[int]:
    return [token.id for (token,) in pending.tokens() if isinstance(token, Sampled)]


@pytest.mark.parametrize("long", [False, True])
def test_large_heads_share_less_where_workgroup_memory_is_short(long: bool) -> None:
    """Heads of 512 values, eight to a key head, as Gemma 4 31B has them, with a browser's limits and subgroups."""
    config = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 512, "vocab_size": VOCABULARY,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    }  # fmt: skip
    spec = build_spec(config, {}, [])
    weights = SyntheticWeights(spec, "f32")
    plan = make_plan(spec, weights.format, tokens=64, rows=64, context=96, block_size=16, kv_dtype="f32")
    device = open_device(software=True, limits=replace(BASELINE, subgroup=software_gpu().capabilities.subgroup))
    assert device.capabilities.subgroup
    gpu = GpuExecutor(plan, weights, device=device, off=FLOAT, tuning=Tuning())
    gpu = gpu.with_config(replace(gpu.config, long_keys=0)) if long else gpu
    reference, ids = ReferenceExecutor(plan, weights), prompt(70)
    for start, stop in ((0, 60), (60, 61), (61, 64), (64, 65)):
        got, expected = (feed(each, ids[start:stop], start=start)[-1:] for each in (gpu, reference))
        assert np.abs(got - expected).max() < TOLERANCE * np.abs(expected).max()
