"""The engine gives each sequence what it would get alone, from nothing: against a model that is a formula.

The fake executor is a two-layer "transformer" over 64-bit integers. It keeps its layers in paged caches and sees
only what block tables and positions lead it to, so a wrong table, position or RoPE set, or a stale slot, changes
the answer. `answer` computes the same formula from the plain list of tokens.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.errors import ContextFullError, DeviceError, UsageError
from halfbyte.plan.batch import Batch, Decoded
from halfbyte.plan.plan import LOGITS, CacheGroup, Plan, Tensor
from halfbyte.runtime import Engine, SamplingParams, Sequence

VOCAB = 24
GREEDY = SamplingParams()
GROUP_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)


def scrambled(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(31))) * np.uint64(0xD6E8FEB86659FD93)
    return x ^ (x >> np.uint64(29))


def first_layer(tokens: np.ndarray, positions: np.ndarray, rope_sets: np.ndarray) -> np.ndarray:
    mixed = tokens.astype(np.uint64) * np.uint64(0x2545F4914F6CDD1D)
    mixed += positions.astype(np.uint64) * np.uint64(0x5851F42D4C957F2D) + rope_sets.astype(np.uint64) * np.uint64(77)
    return scrambled(mixed)


def attention_weights(distances: np.ndarray, group: int) -> np.ndarray:
    return (2 * distances + 1).astype(np.uint64) * np.uint64(GROUP_FACTORS[group])


def logits_of(hidden: np.ndarray) -> np.ndarray:
    spread = scrambled(hidden[:, None] + np.arange(VOCAB, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return ((spread >> np.uint64(44)).astype(np.float32) / 2**17).astype(np.float32)


@cache
def all_logits(tokens: tuple[int, ...], rope_set: int, window: int) -> np.ndarray:
    """The formula, from a plain list of tokens: `[len(tokens), VOCAB]`."""
    positions = np.arange(len(tokens))
    hidden = first_layer(np.array(tokens), positions, np.full(len(tokens), rope_set))
    distances = positions[:, None] - positions
    for _ in range(2):
        total = np.zeros(len(tokens), np.uint64)
        for group, reach in enumerate((len(tokens), window)):
            seen = (distances >= 0) & (distances < reach)
            total += (np.where(seen, attention_weights(distances, group), np.uint64(0)) * hidden).sum(
                1, dtype=np.uint64
            )
        hidden = scrambled(total)
    return logits_of(hidden)


def answer(
    prompt: list[int], plan: Plan, *, max_tokens: int, stop: frozenset[int] = frozenset(), switch: int | None = None
) -> list[int]:
    """The greedy answer, each token from a fresh run over everything before it."""
    tokens = tuple(prompt)
    while True:
        rope_set = int(switch is not None and len(tokens) > switch)
        tokens += (int(all_logits(tokens, rope_set, plan.groups[1].window)[-1].argmax()),)
        full = len(tokens) == plan.context
        if tokens[-1] in stop or len(tokens) - len(prompt) == max_tokens or full:
            return list(tokens[len(prompt) :])


class FakeExecutor:
    """Runs the formula on paged caches, and refuses batches beyond the plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.caches = {
            name: np.full(t.shape, 0xDEAD, np.uint64) for name, t in plan.tensors.items() if t.kind == "cache"
        }
        self.computed: list[int] = []
        self.fail_after: int | None = None
        self.failure: BaseException = KeyboardInterrupt()
        self.spoiled = False

    def run(self, batch: Batch) -> np.ndarray:
        self.check(batch)
        if self.fail_after is not None and len(self.computed) >= self.fail_after:
            raise self.failure
        self.computed.append(len(batch.token_ids))
        hidden = first_layer(batch.token_ids, batch.positions, batch.rope_sets)
        for layer in range(2):
            self.write(layer, batch, hidden)
            hidden = scrambled(np.array([self.attended(layer, batch, t) for t in range(len(hidden))], np.uint64))
        logits = logits_of(hidden[batch.logit_rows])
        return np.full_like(logits, np.nan) if self.spoiled else logits

    def check(self, batch: Batch) -> None:
        plan = self.plan
        assert 1 <= len(batch.token_ids) <= plan.tokens
        assert len(batch.logit_rows) <= plan.rows
        assert batch.sequences.max() < plan.sequences
        for array in (batch.token_ids, batch.positions, batch.sequences, batch.rope_sets, batch.logit_rows):
            assert array.dtype == np.int32
        for group in plan.groups:
            table = batch.block_tables[group.blocks]
            assert table.shape == (plan.sequences, group.columns)
            assert table.dtype == np.int32
            used = table[table >= 0]
            assert len(set(used.tolist())) == used.size

    def write(self, layer: int, batch: Batch, values: np.ndarray) -> None:
        for group in self.plan.groups:
            for t, value in enumerate(values):
                block, offset = self.slot(batch, group, int(batch.sequences[t]), int(batch.positions[t]))
                self.caches[group.caches[layer][0]][block, offset] = value

    def attended(self, layer: int, batch: Batch, t: int) -> np.uint64:
        position, total = int(batch.positions[t]), np.zeros(1, np.uint64)
        for g, group in enumerate(self.plan.groups):
            seen = np.arange(max(0, position + 1 - (group.window or position + 1)), position + 1)
            slots = [self.slot(batch, group, int(batch.sequences[t]), q) for q in seen.tolist()]
            values = np.array([self.caches[group.caches[layer][0]][slot] for slot in slots], np.uint64)
            total += (attention_weights(position - seen, g) * values).sum(dtype=np.uint64)
        return total[0]

    def slot(self, batch: Batch, group: CacheGroup, sequence: int, position: int) -> tuple[int, int]:
        size = self.plan.block_size
        block = int(batch.block_tables[group.blocks][sequence, (position // size) % group.columns])
        assert block >= 0, f"position {position} has no block in {group.blocks}"
        return block, position % size


def plan_of(
    *, tokens: int = 8, rows: int = 4, sequences: int = 4, context: int = 40, block_size: int = 4, window: int = 5,
    chunk: int = 8, spare_blocks: int | None = None,
) -> Plan:  # fmt: skip
    """A plan of one full and one windowed group, whose ring allows chunks of `chunk` tokens."""
    full = -(-context // block_size)
    ring = min(full, -(-(window - 1 + chunk) // block_size))
    tensors = {LOGITS: Tensor(LOGITS, (rows, VOCAB), "f32", "output", 0)}
    groups = []
    for name, columns, reach in (("all", full, None), ("ring", ring, window)):
        blocks = columns * sequences if spare_blocks is None else columns + spare_blocks
        pairs = tuple((f"{name}.{layer}.k", f"{name}.{layer}.v") for layer in range(2))
        tensors |= {n: Tensor(n, (blocks, block_size), "f32", "cache", 0) for pair in pairs for n in pair}
        groups.append(CacheGroup(f"blocks.{name}", columns, reach, pairs))
    return Plan(tokens, rows, sequences, context, block_size, tensors, (), tuple(groups), {})


def engine_of(plan: Plan, switch: int | None = None) -> tuple[Engine, FakeExecutor]:
    executor = FakeExecutor(plan)
    return Engine(executor, rope_switch=switch), executor


def generated(engine: Engine, prompt: list[int], **options: object) -> list[int]:
    return [output.token_id for output in engine.generate(prompt, GREEDY, **options)]


def finish_all(engine: Engine) -> None:
    for _ in range(5000):
        if engine.idle:
            return
        engine.step()
    pytest.fail("the engine makes no progress")


def blocks_unaccounted_for(engine: Engine, plan: Plan) -> dict[str, int]:
    """Blocks that are neither free nor kept for reuse, by group, once all sequences have finished."""
    scheduler = engine._scheduler
    kept = scheduler._kept.table.held if scheduler._kept else {}
    return {
        g.blocks: plan.tensors[g.caches[0][0]].shape[0] - scheduler.pools.free[g.blocks] - kept.get(g.blocks, 0)
        for g in plan.groups
    }


PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    tokens = draw(st.integers(1, 9))
    return plan_of(
        tokens=tokens,
        rows=draw(st.integers(1, 4)),
        sequences=draw(st.integers(1, 4)),
        context=draw(st.integers(4, 40)),
        block_size=draw(st.integers(1, 4)),
        window=draw(st.integers(1, 7)),
        chunk=draw(st.integers(1, tokens)),
        spare_blocks=draw(st.integers(0, 12)),
    )


PROMPTS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 40), PROMPTS, st.integers(1, 20)),
        st.tuples(st.just("step"), st.integers(1, 12)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
    ),
    min_size=1,
    max_size=14,
)


@given(plans(), ACTIONS, st.one_of(st.none(), st.integers(1, 30)))
@settings(max_examples=300, deadline=None)
def test_every_sequence_gets_what_it_would_get_alone(plan: Plan, actions: list, switch: int | None) -> None:
    engine, _ = engine_of(plan, switch)
    submitted: list[Sequence] = []
    for action, *details in actions:
        if action == "submit":
            cut, tail, max_tokens = details
            start = submitted[-1].tokens[:cut] if submitted else []
            prompt = (start + tail)[: plan.context - 1]
            submitted.append(engine.submit(prompt, GREEDY, max_tokens=max_tokens, stop_token_ids=[0]))
        elif action == "step":
            for _ in range(details[0]):
                engine.step()
        elif submitted:
            engine.cancel(submitted[details[0] % len(submitted)])
    finish_all(engine)
    for s in submitted:
        expected = answer(s.prompt_ids, plan, max_tokens=s.max_tokens, stop=frozenset([0]), switch=switch)
        if s.finish_reason == "cancelled":
            assert s.generated_ids == expected[: len(s.generated_ids)]
        else:
            assert s.generated_ids == expected
    assert set(blocks_unaccounted_for(engine, plan).values()) == {0}


def test_a_small_pool_makes_the_youngest_wait_and_changes_nothing() -> None:
    plan = plan_of(spare_blocks=6)
    engine, executor = engine_of(plan)
    sequences = [engine.submit(PROMPT[i:], GREEDY, max_tokens=20) for i in range(4)]
    finish_all(engine)
    assert [s.generated_ids for s in sequences] == [answer(PROMPT[i:], plan, max_tokens=20) for i in range(4)]
    assert sum(executor.computed) > sum(len(s.tokens) - 1 for s in sequences)


def test_sequences_share_batches() -> None:
    engine, executor = engine_of(plan_of())
    for _ in range(4):
        engine.submit([1], GREEDY, max_tokens=10)
    finish_all(engine)
    assert executor.computed == [4] * 10


def test_decoding_goes_on_while_a_long_prompt_is_read() -> None:
    engine, _ = engine_of(plan_of(tokens=4))
    early = engine.submit([1], GREEDY, max_tokens=10)
    engine.step()
    engine.submit(list(range(20)), GREEDY, max_tokens=1)
    assert [len(engine.step()) for _ in range(6)] == [1] * 6
    assert len(early.generated_ids) == 7


def test_one_that_gave_way_goes_on_before_those_that_never_ran() -> None:
    engine, _ = engine_of(plan_of(sequences=2, window=40, spare_blocks=0))
    oldest, youngest = (engine.submit([i] * 8, GREEDY, max_tokens=20) for i in range(2))
    brief = engine.submit([2], GREEDY, max_tokens=1)
    while not oldest.finished:
        engine.step()
    assert youngest.status == "waiting"
    assert brief.generated_ids == []


def test_one_that_waits_holds_no_blocks_that_others_need() -> None:
    plan = plan_of(window=40, spare_blocks=0)
    engine, _ = engine_of(plan)
    long = engine.submit([1, 2, 3, 4], GREEDY, max_tokens=30)
    short = engine.submit(PROMPT[:8], GREEDY, max_tokens=3)
    while not short.finished:
        engine.step()
    follow_up = engine.submit([*short.tokens, *range(24)], GREEDY, max_tokens=4)
    finish_all(engine)
    assert long.generated_ids == answer(long.prompt_ids, plan, max_tokens=30)
    assert follow_up.generated_ids == answer(follow_up.prompt_ids, plan, max_tokens=4)


def test_a_seed_gives_the_same_text_in_any_company() -> None:
    sampling = SamplingParams(temperature=1, seed=11)
    alone, _ = engine_of(plan_of())
    expected = [output.token_id for output in alone.generate(PROMPT, sampling, max_tokens=12)]
    crowd, _ = engine_of(plan_of(spare_blocks=1))
    crowd.submit([1, 2], GREEDY, max_tokens=20)
    sequence = crowd.submit(PROMPT, sampling, max_tokens=12)
    finish_all(crowd)
    assert sequence.generated_ids == expected
    assert expected != answer(PROMPT, plan_of(), max_tokens=12)


def test_the_stop_token_is_the_last_token() -> None:
    plan = plan_of()
    expected = answer(PROMPT, plan, max_tokens=12)
    stop = expected[5]
    end = expected.index(stop)
    outputs = list(engine_of(plan)[0].generate(PROMPT, GREEDY, max_tokens=12, stop_token_ids=[stop]))
    assert [o.token_id for o in outputs] == expected[: end + 1]
    assert [o.finish_reason for o in outputs] == [None] * end + ["stop"]


def test_ignore_eos_goes_on_to_max_tokens() -> None:
    expected = answer(PROMPT, plan_of(), max_tokens=12)
    engine, _ = engine_of(plan_of())
    options = {"max_tokens": 12, "stop_token_ids": [expected[2]], "ignore_eos": True}
    outputs = list(engine.generate(PROMPT, GREEDY, **options))
    assert [o.token_id for o in outputs] == expected
    assert outputs[-1].finish_reason == "length"


def test_log_probabilities_come_with_each_token() -> None:
    engine, _ = engine_of(plan_of())
    output = next(engine.generate(PROMPT, SamplingParams(logprobs=3), max_tokens=1))
    logits = all_logits(tuple(PROMPT), 0, 5)[-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    assert output.logprob == pytest.approx(expected.max(), abs=1e-5)
    assert [token for token, _ in output.top_logprobs] == np.argsort(-expected)[:3].tolist()


@pytest.mark.parametrize("length", [40, 41, 1000])
def test_a_prompt_that_fills_the_context_is_refused_before_any_work(length: int) -> None:
    engine, executor = engine_of(plan_of(context=40))
    with pytest.raises(ContextFullError, match=f"{length:,} tokens; the context holds 40"):
        engine.generate([1] * length, GREEDY, max_tokens=5)
    assert executor.computed == []


def test_a_full_context_ends_the_answer_and_says_so() -> None:
    plan = plan_of(context=20)
    outputs = list(engine_of(plan)[0].generate(PROMPT, GREEDY, max_tokens=7))
    assert [o.token_id for o in outputs] == answer(PROMPT, plan, max_tokens=7)
    assert [o.finish_reason for o in outputs] == [None] * 5 + ["context"]


def test_max_tokens_may_end_exactly_at_the_context() -> None:
    engine, _ = engine_of(plan_of(context=20))
    assert [o.finish_reason for o in engine.generate(PROMPT, GREEDY, max_tokens=6)][-1] == "length"


def test_step_reports_a_full_context_as_the_reason() -> None:
    engine, _ = engine_of(plan_of(context=20))
    sequence = engine.submit(PROMPT, GREEDY, max_tokens=7)
    finish_all(engine)
    assert sequence.finish_reason == "context"


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "prompt is empty"),
        ([1, VOCAB], {}, f"token id {VOCAB}; the vocabulary has {VOCAB} tokens"),
        ([-1], {}, "token id -1"),
        (["a"], {}, "not a list of token ids"),
        ([1], {"max_tokens": 0}, r"max_tokens must be .*got 0"),
        ([1], {"sampling": SamplingParams(logit_bias={VOCAB: 1.0})}, "logit_bias has token id 24"),
    ],
)
def test_requests_that_cannot_be_meant_are_usage_errors(prompt: list, options: dict, message: str) -> None:
    engine, _ = engine_of(plan_of())
    options = {"sampling": GREEDY, "max_tokens": 5} | options
    with pytest.raises(UsageError, match=message):
        engine.submit(prompt, options.pop("sampling"), **options)


def test_closing_the_iterator_frees_everything() -> None:
    plan = plan_of()
    engine, _ = engine_of(plan)
    stream = engine.generate(PROMPT, GREEDY, max_tokens=20)
    sequence = next(stream).sequence
    stream.close()
    assert sequence.finish_reason == "cancelled"
    assert engine.idle
    assert set(blocks_unaccounted_for(engine, plan).values()) == {0}


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), DeviceError("lost")])
def test_an_interruption_cancels_and_the_engine_goes_on(failure: BaseException) -> None:
    plan = plan_of()
    engine, executor = engine_of(plan)
    executor.fail_after, executor.failure = 4, failure
    with pytest.raises(type(failure)):
        list(engine.generate(PROMPT, GREEDY, max_tokens=20))
    executor.fail_after = None
    assert engine.idle
    assert set(blocks_unaccounted_for(engine, plan).values()) == {0}
    assert generated(engine, PROMPT, max_tokens=8) == answer(PROMPT, plan, max_tokens=8)


def test_a_model_that_gives_nan_is_a_device_error() -> None:
    engine, executor = engine_of(plan_of())
    executor.spoiled = True
    with pytest.raises(DeviceError, match="no valid logits"):
        generated(engine, PROMPT, max_tokens=2)
    assert engine.idle


def test_cancelling_one_leaves_the_others_alone() -> None:
    plan = plan_of()
    engine, _ = engine_of(plan)
    gone, stays = (engine.submit(PROMPT[i:], GREEDY, max_tokens=10) for i in range(2))
    for _ in range(5):
        engine.step()
    engine.cancel(gone)
    finish_all(engine)
    assert stays.generated_ids == answer(PROMPT[1:], plan, max_tokens=10)
    assert 0 < len(gone.generated_ids) < 10


def test_two_iterators_at_once_get_their_own_tokens() -> None:
    plan = plan_of()
    engine, _ = engine_of(plan)
    streams = [engine.generate(PROMPT[i:], GREEDY, max_tokens=9) for i in range(2)]
    pairs = [tuple(o.token_id for o in pair) for pair in zip(*streams, strict=True)]
    assert [list(tokens) for tokens in zip(*pairs, strict=True)] == [
        answer(PROMPT[i:], plan, max_tokens=9) for i in range(2)
    ]


def test_a_chat_turn_computes_only_what_is_new() -> None:
    plan = plan_of()
    engine, executor = engine_of(plan)
    first = engine.submit(PROMPT, GREEDY, max_tokens=6)
    finish_all(engine)
    executor.computed.clear()
    second = engine.submit([*first.tokens, 7, 7], GREEDY, max_tokens=1)
    finish_all(engine)
    assert second.generated_ids == answer([*first.tokens, 7, 7], plan, max_tokens=1)
    assert second.reused_tokens == len(first.tokens) - 1
    assert executor.computed == [3]


def test_the_same_prompt_again_computes_one_token() -> None:
    engine, executor = engine_of(plan_of(window=40))
    generated(engine, PROMPT, max_tokens=4)
    executor.computed.clear()
    assert generated(engine, PROMPT, max_tokens=1) == answer(PROMPT, plan_of(window=40), max_tokens=1)
    assert executor.computed == [1]


def test_a_cache_taken_over_gives_back_what_is_not_shared() -> None:
    engine, _ = engine_of(plan_of(window=40))
    generated(engine, PROMPT, max_tokens=20)
    engine.submit([PROMPT[0], 0], GREEDY, max_tokens=2)
    engine.step()
    assert set(engine._scheduler.pools.free.values()) == {39}


def test_a_ring_that_came_round_too_far_is_computed_anew() -> None:
    plan = plan_of(context=40, window=5, chunk=8)
    engine, executor = engine_of(plan)
    generated(engine, PROMPT, max_tokens=20)
    executor.computed.clear()
    assert generated(engine, PROMPT, max_tokens=1) == answer(PROMPT, plan, max_tokens=1)
    assert sum(executor.computed) == len(PROMPT)


def test_a_ring_rewound_twice_remembers_what_it_lost_first() -> None:
    plan = plan_of(window=5, chunk=8)
    engine, _ = engine_of(plan)
    first = engine.submit(PROMPT, GREEDY, max_tokens=7)
    finish_all(engine)
    for length, reused in ((14, 14), (9, 0)):
        prompt = [*first.tokens[:length], 0]
        sequence = engine.submit(prompt, GREEDY, max_tokens=1)
        finish_all(engine)
        assert sequence.reused_tokens == reused
        assert sequence.generated_ids == answer(prompt, plan, max_tokens=1)


def test_what_was_computed_before_a_cancel_is_reused() -> None:
    plan = plan_of()
    engine, _ = engine_of(plan)
    stream = engine.generate(PROMPT, GREEDY, max_tokens=6)
    next(stream)
    stream.close()
    again = list(engine.generate(PROMPT, GREEDY, max_tokens=6))
    assert again[0].sequence.reused_tokens == len(PROMPT) - 1
    assert [output.token_id for output in again] == answer(PROMPT, plan, max_tokens=6)


class FakeDecoder:
    """Decodes through the fake executor, two tokens ahead of what it yields, as a device does."""

    def __init__(self, executor: FakeExecutor) -> None:
        self.executor = executor
        self.yielded = 0
        self.open = False

    def supports(self, sampling: SamplingParams) -> bool:
        return sampling.greedy

    def decode(self, batch: Batch, sampling: SamplingParams, *, tables: Any, limit: int, **_: Any) -> Any:
        self.open, ready = True, []
        token, position, blocks = int(batch.token_ids[0]), int(batch.positions[0]), batch.block_tables
        try:
            for done in range(limit):
                while len(ready) < min(3, limit - done):
                    blocks = tables(position) or blocks
                    ids, positions = np.array([token], np.int32), np.array([position], np.int32)
                    step = replace(batch, token_ids=ids, positions=positions, block_tables=blocks)
                    token, position = int(self.executor.run(step)[0].argmax()), position + 1
                    ready.append(token)
                self.yielded += 1
                yield Decoded(ready.pop(0), -1.0)
        finally:
            self.open = False


@pytest.mark.parametrize("window", [5, None])
@pytest.mark.parametrize("switch", [None, 15, 17])
def test_decoding_on_the_device_gives_the_same_answers(window: int | None, switch: int | None) -> None:
    plan = plan_of(window=window) if window else plan_of()
    executor = FakeExecutor(plan)
    decoder = FakeDecoder(executor)
    engine = Engine(executor, rope_switch=switch, decoder=decoder)
    stop = frozenset(answer(PROMPT, plan, max_tokens=20, switch=switch)[11:12])
    for ends in (frozenset[int](), stop):
        outputs = list(engine.generate(PROMPT, GREEDY, max_tokens=20, stop_token_ids=ends))
        assert [o.token_id for o in outputs] == answer(PROMPT, plan, max_tokens=20, stop=ends, switch=switch)
        assert not decoder.open
    assert decoder.yielded > 10


def test_a_second_conversation_takes_the_device_from_the_first() -> None:
    plan = plan_of()
    executor = FakeExecutor(plan)
    engine = Engine(executor, decoder=FakeDecoder(executor))
    first, second = engine.generate(PROMPT, GREEDY, max_tokens=9), engine.generate(PROMPT[:5], GREEDY, max_tokens=9)
    got: list[list[int]] = [[], []]
    for _ in range(9):
        got[0].append(next(first).token_id)
        got[1].append(next(second).token_id)
    assert got == [answer(PROMPT, plan, max_tokens=9), answer(PROMPT[:5], plan, max_tokens=9)]


def test_crossing_the_rope_switch_equals_a_fresh_run() -> None:
    plan = plan_of()
    engine, executor = engine_of(plan, switch=18)
    assert generated(engine, PROMPT, max_tokens=10) == answer(PROMPT, plan, max_tokens=10, switch=18)
    assert answer(PROMPT, plan, max_tokens=10, switch=18) != answer(PROMPT, plan, max_tokens=10)
    assert sum(executor.computed) == 18 + 19 + 4


def test_a_cache_of_the_other_rope_set_is_not_reused() -> None:
    plan = plan_of()
    engine, _ = engine_of(plan, switch=16)
    first = engine.submit(PROMPT, GREEDY, max_tokens=2)
    finish_all(engine)
    prompt = [*first.tokens, 1, 2]
    second = engine.submit(prompt, GREEDY, max_tokens=4)
    finish_all(engine)
    assert (first.rope_set, second.rope_set, second.reused_tokens) == (0, 1, 0)
    assert second.generated_ids == answer(prompt, plan, max_tokens=4, switch=16)


def test_a_ring_computed_anew_with_the_other_rope_set_has_lost_nothing() -> None:
    plan = plan_of(window=5, chunk=8)
    engine, _ = engine_of(plan, switch=16)
    generated(engine, [*PROMPT, *range(8)], max_tokens=1)
    for length, reused in ((14, 0), (9, 9)):
        prompt = [*PROMPT[:length], 20]
        sequence = engine.submit(prompt, GREEDY, max_tokens=1)
        finish_all(engine)
        assert sequence.reused_tokens == reused
        assert sequence.generated_ids == answer(prompt, plan, max_tokens=1, switch=16)


@pytest.mark.parametrize("switch", [None, 10])
def test_scores_are_the_logits_of_every_position(switch: int | None) -> None:
    plan = plan_of(rows=3, context=len(PROMPT))
    engine, _ = engine_of(plan, switch)
    chunks = [chunk.copy() for chunk in engine.score(PROMPT)]
    assert [len(chunk) for chunk in chunks] == [3, 3, 3, 3, 2]
    np.testing.assert_array_equal(np.concatenate(chunks), all_logits(tuple(PROMPT), int(switch is not None), 5))
    assert set(blocks_unaccounted_for(engine, plan).values()) == {0}


def test_scoring_and_answering_exclude_each_other() -> None:
    plan = plan_of(spare_blocks=0)
    engine, _ = engine_of(plan)
    generated(engine, PROMPT, max_tokens=20)
    scores = engine.score(PROMPT)
    next(scores)
    with pytest.raises(UsageError, match="still being scored"):
        generated(engine, PROMPT, max_tokens=2)
    scores.close()
    engine.submit(PROMPT, GREEDY, max_tokens=2)
    with pytest.raises(UsageError, match="still being answered"):
        next(engine.score(PROMPT))


def test_a_text_beyond_the_context_is_not_scored() -> None:
    engine, _ = engine_of(plan_of(context=13))
    with pytest.raises(ContextFullError, match="14 tokens; the context holds 13"):
        engine.score(PROMPT)


def test_times_are_taken() -> None:
    engine, _ = engine_of(plan_of())
    sequence = engine.submit(PROMPT, GREEDY, max_tokens=5)
    assert (sequence.prefill_s, sequence.decode_s) == (0.0, 0.0)
    finish_all(engine)
    assert sequence.prefill_s > 0
    assert sequence.decode_s > 0
