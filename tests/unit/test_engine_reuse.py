"""Caches that a later sequence takes over: what is computed again, and that nothing else changes."""

from __future__ import annotations

from tests.unit.engine_fakes import GREEDY, PROMPT, answer, engine_of, finish_all, generated, outputs_of, plan_of


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
    begun = engine.submit(PROMPT, GREEDY, max_tokens=6)
    while not begun.generated_ids:
        engine.step()
    engine.cancel(begun)
    again = outputs_of(engine, PROMPT, GREEDY, max_tokens=6)
    assert again[0].sequence.reused_tokens == len(PROMPT) - 1
    assert [output.token_id for output in again] == answer(PROMPT, plan, max_tokens=6)


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
