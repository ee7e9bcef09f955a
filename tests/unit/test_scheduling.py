"""Who goes first, how much of a step prompts may take, and what ends a request early."""

from __future__ import annotations

import time
from typing import Any

import pytest

import halfbyte
from halfbyte.errors import UsageError
from halfbyte.runtime import SamplingParams, Sequence
from tests.unit.engine_fakes import (
    EXECUTORS,
    GREEDY,
    PROMPT,
    FakeExecutor,
    answer,
    blocks_unaccounted_for,
    engine_of,
    finish_all,
    loop_of,
    plan_of,
)


def order_of_first_tokens(engine: Any, sequences: list[Sequence]) -> list[int]:
    """Indices of the sequences, in the order in which their answers began."""
    begun: list[int] = []
    while len(begun) < len(sequences):
        engine.step()
        begun += [i for i, s in enumerate(sequences) if s.generated_ids and i not in begun]
    return begun


def test_a_higher_priority_goes_first_then_who_came_first() -> None:
    engine, _ = engine_of(plan_of(sequences=1))
    priorities = [0, 0, 5, -1, 5, 1]
    sequences = [engine.submit([i], GREEDY, max_tokens=1, priority=p) for i, p in enumerate(priorities)]
    assert order_of_first_tokens(engine, sequences) == [2, 4, 5, 0, 1, 3]


def test_prompts_of_a_higher_priority_are_read_first() -> None:
    engine, _ = engine_of(plan_of(tokens=4))
    sequences = [engine.submit([i] * 12, GREEDY, max_tokens=1, priority=i) for i in range(3)]
    assert order_of_first_tokens(engine, sequences) == [2, 1, 0]


def test_the_lowest_priority_gives_way_whoever_came_first() -> None:
    plan = plan_of(sequences=2, window=40, spare_blocks=0)
    engine, _ = engine_of(plan)
    low = engine.submit([0] * 8, GREEDY, max_tokens=20)
    engine.step()
    high = engine.submit([1] * 8, GREEDY, max_tokens=20, priority=1)
    finish_all(engine)
    assert (low.num_preemptions, high.num_preemptions) == (1, 0)
    assert low.generated_ids == answer([0] * 8, plan, max_tokens=20)
    assert high.generated_ids == answer([1] * 8, plan, max_tokens=20)


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    engine, _ = engine_of(plan_of(tokens=4, window=40))
    long = engine.submit([1] * 36, GREEDY, max_tokens=1)
    engine.step()
    short = engine.submit([2] * 3, GREEDY, max_tokens=1)
    waited = 0
    while not short.generated_ids:
        engine.step()
        waited += 1
    assert waited == 1
    assert not long.generated_ids


def test_long_prompts_are_read_in_turns() -> None:
    engine, _ = engine_of(plan_of(tokens=4, window=40))
    sequences = [engine.submit([i] * 20, GREEDY, max_tokens=1) for i in range(3)]
    progress = []
    for _ in range(6):
        engine.step()
        progress.append([s.num_computed for s in sequences])
    assert progress == [[4, 0, 0], [4, 4, 0], [4, 4, 4], [8, 4, 4], [8, 8, 4], [8, 8, 8]]


@pytest.mark.parametrize(("budget", "steps"), [(2, 10), (5, 4), (None, 3)])
def test_prompts_take_no_more_of_a_step_than_their_budget_while_others_decode(budget: int | None, steps: int) -> None:
    engine, executor = engine_of(plan_of(tokens=8, window=40), prefill_chunk=budget)
    early = engine.submit([1], GREEDY, max_tokens=30)
    engine.step()
    late = engine.submit([2] * 20, GREEDY, max_tokens=1)
    executor.computed.clear()
    while not late.generated_ids:
        engine.step()
    assert len(executor.computed) == steps
    assert max(executor.computed) == 1 + min(budget or 7, 7)
    assert len(early.generated_ids) == 1 + steps


def test_prompts_take_all_of_a_step_where_nobody_decodes() -> None:
    engine, executor = engine_of(plan_of(tokens=8, window=40), prefill_chunk=2)
    engine.submit([2] * 20, GREEDY, max_tokens=1)
    finish_all(engine)
    assert executor.computed == [8, 8, 4]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_blocks_of_a_cancelled_request_are_free_at_once(executor: type[FakeExecutor]) -> None:
    plan = plan_of()
    engine, _ = engine_of(plan, executor=executor)
    running = engine.submit(PROMPT, GREEDY, max_tokens=20)
    for _ in range(4):
        engine.step()
    assert set(blocks_unaccounted_for(engine, plan).values()) != {0}
    engine.cancel(running)
    assert set(blocks_unaccounted_for(engine, plan).values()) == {0}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_who_waits_for_blocks_begins_when_what_was_under_way_at_a_cancel_is_back(executor: type[FakeExecutor]) -> None:
    """How many batches are under way depends on how long they take."""
    engine, device = engine_of(plan_of(spare_blocks=0), executor=executor)
    holds = engine.submit(PROMPT * 2, GREEDY, max_tokens=12)
    waits = engine.submit([5] * 30, GREEDY, max_tokens=3)
    for _ in range(6):
        engine.step()
    assert holds.generated_ids
    assert waits.status == "waiting"
    engine.cancel(holds)
    for _ in range(device.ahead):
        if waits.status == "waiting":
            engine.step()
    assert waits.status == "running"


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_deadline_ends_an_answer_as_far_as_it_has_come(executor: type[FakeExecutor]) -> None:
    plan = plan_of(sequences=1)
    engine, _ = engine_of(plan, executor=executor)
    running = engine.submit(PROMPT, GREEDY, max_tokens=20, deadline=3600)
    waiting = engine.submit(PROMPT, GREEDY, max_tokens=20, deadline=3600)
    after = engine.submit([5], GREEDY, max_tokens=3, deadline=3600)
    while len(running.generated_ids) < 3:
        engine.step()
    running.expires = waiting.expires = time.perf_counter()
    finish_all(engine)
    assert (running.finish_reason, waiting.finish_reason, after.finish_reason) == ("deadline", "deadline", "length")
    assert running.generated_ids == answer(PROMPT, plan, max_tokens=20)[: len(running.generated_ids)]
    assert waiting.generated_ids == []
    assert set(blocks_unaccounted_for(engine, plan).values()) == {0}


@pytest.mark.parametrize("deadline", [0, -1, -0.5])
def test_a_deadline_in_the_past_is_refused(deadline: float) -> None:
    engine, executor = engine_of(plan_of())
    with pytest.raises(UsageError, match=f"the deadline is in the past: {deadline:g} seconds from now"):
        engine.submit(PROMPT, GREEDY, max_tokens=5, deadline=deadline)
    assert engine.idle
    assert executor.computed == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deadline": "soon"}, "deadline must be a number of seconds"),
        ({"deadline": float("nan")}, "deadline must be a number of seconds"),
        ({"deadline": True}, "deadline must be a number of seconds"),
        ({"priority": 1.5}, "priority must be a whole number"),
        ({"priority": None}, "priority must be a whole number"),
    ],
)
def test_options_of_the_wrong_kind_are_usage_errors(options: dict[str, Any], message: str) -> None:
    engine, _ = engine_of(plan_of())
    with pytest.raises(UsageError, match=message):
        engine.submit(PROMPT, GREEDY, max_tokens=5, **options)


@pytest.mark.parametrize("n", [0, -1, 1.5, True])
def test_answers_are_counted_from_1(n: Any) -> None:
    engine, _ = engine_of(plan_of())
    with pytest.raises(UsageError, match="n must be a whole number of at least 1"):
        engine.requests(PROMPT, GREEDY, n, max_tokens=5)


def test_a_stream_ends_at_its_deadline_though_nobody_reads_it() -> None:
    """A paused sequence is let go of as well."""
    plan = plan_of(context=1000)
    loop, _ = loop_of(plan)
    stream = loop.stream(PROMPT, GREEDY, max_tokens=900, deadline=0.5)
    got = [next(stream).token_id]
    while not stream.sequence.finished:
        time.sleep(0.01)
    assert stream.sequence.finish_reason == "deadline"
    got += [output.token_id for output in stream]
    assert 0 < len(got) < 900
    assert got == stream.sequence.generated_ids
    assert set(blocks_unaccounted_for(loop, plan).values()) == {0}


def test_a_model_says_that_the_time_was_up() -> None:
    model = halfbyte.load(device="cpu", threads=1, context=2048)
    cut = model.generate("What does tar do?", max_tokens=1900, ignore_eos=True, deadline=0.3)
    assert cut.finish_reason == "deadline"
    assert cut.new_tokens < 1900
    with pytest.raises(UsageError, match="deadline is in the past"):
        model.generate("What does tar do?", deadline=-3)


def test_a_model_gives_several_answers_to_each_prompt() -> None:
    model = halfbyte.load(device="cpu", threads=1, context=256, sequences=3, activations="f32", kv_dtype="f32")
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 3.0, "ignore_eos": True}
    prompts = ["What does tar do?", "What does ls do?"]
    answers = list(model.generate_many(prompts, n=3, seed=4, **options))
    expected = [model.generate(prompt, seed=4 + i, **options) for prompt in prompts for i in range(3)]
    assert [each.token_ids for each in answers] == [each.token_ids for each in expected]
    assert len({each.token_ids for each in answers}) > 3


def test_seeds_of_several_answers_begin_again_behind_the_largest() -> None:
    engine, _ = engine_of(plan_of())
    made = engine.requests(PROMPT, SamplingParams(temperature=1, seed=2**64 - 1), 2, max_tokens=1)
    assert [s.sampling.seed for s in made] == [2**64 - 1, 0]


def test_a_prefix_of_2000_tokens_is_not_read_again() -> None:
    model = halfbyte.load(device="cpu", threads=1)
    prefix = [10 + i * 37 % 8000 for i in range(2000)]
    first, second = (model.generate([*prefix, 5, i], max_tokens=1) for i in (7, 8))
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 2001)
    assert second.prefill_ms <= first.prefill_ms / 10
