"""Caches that later sequences use: what is computed again, and that nothing else changes."""

from __future__ import annotations

import pytest

from halfbyte.runtime import SamplingParams
from tests.unit.engine_fakes import (
    EXECUTORS,
    GREEDY,
    PROMPT,
    FakeExecutor,
    answer,
    engine_of,
    finish_all,
    generated,
    outputs_of,
    plan_of,
)

SEEDED = SamplingParams(temperature=1, seed=11)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_chat_turn_computes_only_what_is_new(executor: type[FakeExecutor]) -> None:
    plan = plan_of()
    engine, executor_ = engine_of(plan, executor=executor)
    first = engine.submit(PROMPT, GREEDY, max_tokens=6)
    finish_all(engine)
    executor_.computed.clear()
    second = engine.submit([*first.tokens, 7, 7], GREEDY, max_tokens=1)
    finish_all(engine)
    assert second.generated_ids == answer([*first.tokens, 7, 7], plan, max_tokens=1)
    assert second.num_cached_tokens >= len(first.tokens) - 1
    assert executor_.computed == [len(second.prompt_ids) - second.num_cached_tokens]


def test_chats_in_turns_all_keep_what_they_computed() -> None:
    plan = plan_of(context=60)
    engine, _ = engine_of(plan)
    texts = [[i, *PROMPT] for i in range(3)]
    for turn in range(3):
        for text in texts:
            sequence = engine.submit([*text, 5], GREEDY, max_tokens=5)
            finish_all(engine)
            assert sequence.generated_ids == answer([*text, 5], plan, max_tokens=5)
            assert sequence.num_cached_tokens == (len(text) - 1 if turn else 0)
            text[:] = sequence.tokens


def test_the_same_prompt_again_computes_the_last_block() -> None:
    engine, executor = engine_of(plan_of(window=40))
    generated(engine, PROMPT, max_tokens=4)
    executor.computed.clear()
    assert generated(engine, PROMPT, max_tokens=1) == answer(PROMPT, plan_of(window=40), max_tokens=1)
    assert executor.computed == [2]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_prompts_that_begin_alike_share_blocks_while_they_run(executor: type[FakeExecutor]) -> None:
    """A pool that could not hold their prompts side by side."""
    plan = plan_of(tokens=16, sequences=4, context=40, window=40, spare_blocks=8)
    engine, made = engine_of(plan, executor=executor)
    prompts = [[*PROMPT, *PROMPT, i] for i in range(4)]
    sequences = [engine.submit(prompt, GREEDY, max_tokens=5) for prompt in prompts]
    finish_all(engine)
    assert [s.generated_ids for s in sequences] == [answer(prompt, plan, max_tokens=5) for prompt in prompts]
    assert [s.num_cached_tokens for s in sequences] == [0, 28, 28, 28]
    assert not any(s.num_preemptions for s in sequences)
    assert sum(made.computed) == 29 + 3 + 4 * 4


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED, SamplingParams(temperature=1)])
def test_answers_to_one_prompt_read_it_once(sampling: SamplingParams) -> None:
    engine, executor = engine_of(plan_of(tokens=16))
    sequences = engine.requests(PROMPT, sampling, 4, max_tokens=1)
    for sequence in sequences:
        engine.add(sequence)
    finish_all(engine)
    assert sum(executor.computed) <= len(PROMPT) + 3 * (len(PROMPT) % 4)
    if sampling.seed is not None:
        seeds = [SamplingParams(temperature=1, seed=11 + i) for i in range(4)]
        alone = [outputs_of(engine_of(plan_of())[0], PROMPT, seed, max_tokens=1)[0].token_id for seed in seeds]
        assert [s.generated_ids[0] for s in sequences] == alone


def test_a_seed_is_computed_from_nothing_unless_the_cache_is_asked_for() -> None:
    engine, _ = engine_of(plan_of())
    for cache_prompt, cached in ((None, 0), (None, 0), (True, 0), (True, 13), (None, 0), (False, 0)):
        (output,) = outputs_of(engine, PROMPT, SEEDED, max_tokens=1, cache_prompt=cache_prompt)
        assert output.sequence.num_cached_tokens == cached


def test_a_sequence_that_gave_way_gets_back_what_nobody_needed() -> None:
    plan = plan_of(sequences=2, window=40, spare_blocks=4)
    engine, executor = engine_of(plan)
    sequences = [engine.submit([i] * 8, GREEDY, max_tokens=30) for i in range(2)]
    finish_all(engine)
    assert [s.num_preemptions for s in sequences] == [0, 1]
    assert [s.generated_ids for s in sequences] == [answer([i] * 8, plan, max_tokens=30) for i in range(2)]
    assert sum(executor.computed) < 2 * 37 + 20


def test_a_ring_serves_a_prefix_as_long_as_the_window_before_it_is_there() -> None:
    plan = plan_of(context=40, window=5, chunk=8, sequences=1)
    engine, executor = engine_of(plan)
    first = engine.submit(PROMPT, GREEDY, max_tokens=20)
    finish_all(engine)
    executor.computed.clear()
    assert generated(engine, PROMPT, max_tokens=1) == answer(PROMPT, plan, max_tokens=1)
    assert sum(executor.computed) == len(PROMPT), "one ring of four blocks has only the last 16 positions"
    for length in (30, 26):
        prompt = [*first.tokens[:length], 0]
        assert generated(engine, prompt, max_tokens=1) == answer(prompt, plan, max_tokens=1)


def test_what_left_a_ring_is_found_while_its_memory_is_not_needed() -> None:
    plan = plan_of(context=40, window=5, chunk=8, sequences=4)
    engine, executor = engine_of(plan)
    generated(engine, PROMPT, max_tokens=20)
    executor.computed.clear()
    assert generated(engine, PROMPT, max_tokens=1) == answer(PROMPT, plan, max_tokens=1)
    assert sum(executor.computed) == 2


def test_what_was_computed_before_a_cancel_is_reused() -> None:
    plan = plan_of()
    engine, _ = engine_of(plan)
    begun = engine.submit(PROMPT, GREEDY, max_tokens=6)
    while not begun.generated_ids:
        engine.step()
    engine.cancel(begun)
    again = outputs_of(engine, PROMPT, GREEDY, max_tokens=6)
    assert again[0].sequence.num_cached_tokens == len(PROMPT) - 1
    assert [output.token_id for output in again] == answer(PROMPT, plan, max_tokens=6)


def test_crossing_the_rope_switch_equals_a_fresh_run() -> None:
    plan = plan_of()
    engine, executor = engine_of(plan, switch=18)
    assert generated(engine, PROMPT, max_tokens=10) == answer(PROMPT, plan, max_tokens=10, switch=18)
    assert answer(PROMPT, plan, max_tokens=10, switch=18) != answer(PROMPT, plan, max_tokens=10)
    assert sum(executor.computed) == 18 + 19 + 4


def test_blocks_of_either_rope_set_serve_only_their_own() -> None:
    plan = plan_of(window=40)
    engine, _ = engine_of(plan, switch=16)
    short = engine.submit(PROMPT, GREEDY, max_tokens=2)
    finish_all(engine)
    long = [*short.tokens, 1, 2]
    for prompt, rope_set, cached in ((long, 1, 0), (long, 1, 17), (PROMPT, 0, 13), ([*long, 3], 1, 18)):
        sequence = engine.submit(prompt, GREEDY, max_tokens=1)
        finish_all(engine)
        assert (sequence.rope_set, sequence.num_cached_tokens) == (rope_set, cached)
        assert sequence.generated_ids == answer(prompt, plan, max_tokens=1, switch=16)


def test_nothing_of_a_sequence_that_failed_is_used_again() -> None:
    plan = plan_of()
    engine, executor = engine_of(plan)
    executor.spoiled = True
    engine.submit(PROMPT, GREEDY, max_tokens=4)
    while not engine.idle:
        engine.advance()
    executor.spoiled = False
    (output,) = outputs_of(engine, PROMPT, GREEDY, max_tokens=1)
    assert output.sequence.num_cached_tokens == 0
