"""The engine gives each sequence what it would get alone, from nothing: against a model that is a formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.errors import ContextFullError, DeviceError, UsageError
from halfbyte.plan.plan import Plan
from halfbyte.runtime import Engine, SamplingParams, Sequence
from tests.scale import examples
from tests.unit.engine_fakes import (
    EXECUTORS,
    GREEDY,
    PROMPT,
    VOCAB,
    FakeExecutor,
    LateExecutor,
    all_logits,
    answer,
    blocks_unaccounted_for,
    check_blocks,
    engine_of,
    finish_all,
    generated,
    loop_of,
    outputs_of,
    plan_of,
)


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
SAMPLINGS = st.sampled_from([GREEDY, SamplingParams(temperature=1, seed=7), SamplingParams(temperature=0.5, seed=8)])
ASKED = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 20)},
    optional={"priority": st.integers(-1, 1), "cache_prompt": st.booleans()},
)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"), st.integers(0, 9), st.integers(0, 40), PROMPTS, SAMPLINGS, st.integers(1, 3), ASKED
        ),
        st.tuples(st.just("step"), st.integers(1, 12)),
        st.tuples(st.sampled_from(["cancel", "expire", "pause"]), st.integers(0, 9)),
    ),
    min_size=1,
    max_size=14,
)


@pytest.mark.parametrize("executor", EXECUTORS)
@given(
    plan=plans(),
    actions=ACTIONS,
    switch=st.one_of(st.none(), st.integers(1, 30)),
    prefill_chunk=st.one_of(st.none(), st.integers(1, 4)),
)
@settings(max_examples=examples(500), deadline=None)
def test_every_sequence_gets_what_it_would_get_alone(
    executor: type[FakeExecutor], plan: Plan, actions: list, switch: int | None, prefill_chunk: int | None
) -> None:
    engine, _ = engine_of(plan, switch, executor, prefill_chunk=prefill_chunk)
    submitted: list[Sequence] = []
    for action, *details in actions:
        if action == "submit":
            submitted += submit_like(engine, plan, submitted, *details)
        elif action == "step":
            for _ in range(details[0]):
                engine.step()
                check_blocks(engine, submitted)
        elif submitted:
            treat(engine, submitted[details[0] % len(submitted)], action)
    for sequence in submitted:
        sequence.paused = False
    finish_all(engine)
    check_blocks(engine, submitted)
    for sequence in submitted:
        expected = alone(sequence, plan, switch)
        if sequence.finish_reason in ("cancelled", "deadline"):
            assert sequence.generated_ids == expected[: len(sequence.generated_ids)]
        else:
            assert sequence.generated_ids == expected
    assert set(blocks_unaccounted_for(engine, plan).values()) == {0}


def submit_like(
    engine: Engine, plan: Plan, submitted: list[Sequence], which: int, cut: int, tail: list[int],
    sampling: SamplingParams, n: int, options: dict[str, Any],
) -> list[Sequence]:  # fmt: skip
    """Submit a prompt that begins like an earlier sequence, for n answers."""
    start = submitted[which % len(submitted)].tokens[:cut] if submitted else []
    prompt = (start + tail)[: plan.context - 1]
    made = engine.requests(prompt, sampling, n, stop_token_ids=[0], **options)
    for sequence in made:
        engine.add(sequence)
    return made


def treat(engine: Engine, sequence: Sequence, action: str) -> None:
    if action == "cancel":
        engine.cancel(sequence)
        assert not sequence.table.rows
    elif action == "pause":
        sequence.paused = not sequence.paused
    else:
        sequence.expires = 0.0


def alone(sequence: Sequence, plan: Plan, switch: int | None) -> list[int]:
    """The whole answer to a sequence, by the formula; where tokens are drawn, by an engine that has nothing else."""
    stop = frozenset([0])
    if sequence.sampling.greedy:
        return answer(list(sequence.prompt_ids), plan, max_tokens=sequence.max_tokens, stop=stop, switch=switch)
    engine, _ = engine_of(plan, switch)
    options = {"max_tokens": sequence.max_tokens, "stop_token_ids": stop}
    return [o.token_id for o in outputs_of(engine, list(sequence.prompt_ids), sequence.sampling, **options)]


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
    expected = [output.token_id for output in outputs_of(alone, PROMPT, sampling, max_tokens=12)]
    crowd, _ = engine_of(plan_of(spare_blocks=1))
    crowd.submit([1, 2], GREEDY, max_tokens=20)
    sequence = crowd.submit(PROMPT, sampling, max_tokens=12)
    finish_all(crowd)
    assert sequence.generated_ids == expected
    assert expected != answer(PROMPT, plan_of(), max_tokens=12)


def test_what_samplers_remember_outlives_giving_way() -> None:
    sampling = SamplingParams(
        temperature=1, seed=11, mirostat=2, mirostat_tau=2, mirostat_eta=0.5, xtc_probability=0.5, dry_multiplier=1,
        presence_penalty=1, repeat_last_n=8,
    )  # fmt: skip
    plan = plan_of(sequences=2, window=40, spare_blocks=0)
    prompt = [1] * 8
    expected = [output.token_id for output in outputs_of(engine_of(plan)[0], prompt, sampling, max_tokens=20)]
    engine, _ = engine_of(plan)
    engine.submit([0] * 8, GREEDY, max_tokens=20)
    youngest = engine.submit(prompt, sampling, max_tokens=20)
    gave_way_at = set()
    while not youngest.finished:
        engine.step()
        if youngest.status == "waiting":
            gave_way_at.add(len(youngest.generated_ids))
    assert gave_way_at - {0}
    assert youngest.generated_ids == expected


def test_the_stop_token_is_the_last_token() -> None:
    plan = plan_of()
    expected = answer(PROMPT, plan, max_tokens=12)
    stop = expected[5]
    end = expected.index(stop)
    outputs = list(outputs_of(engine_of(plan)[0], PROMPT, GREEDY, max_tokens=12, stop_token_ids=[stop]))
    assert [o.token_id for o in outputs] == expected[: end + 1]
    assert [o.finish_reason for o in outputs] == [None] * end + ["stop"]


def test_ignore_eos_goes_on_to_max_tokens() -> None:
    expected = answer(PROMPT, plan_of(), max_tokens=12)
    engine, _ = engine_of(plan_of())
    options = {"max_tokens": 12, "stop_token_ids": [expected[2]], "ignore_eos": True}
    outputs = list(outputs_of(engine, PROMPT, GREEDY, **options))
    assert [o.token_id for o in outputs] == expected
    assert outputs[-1].finish_reason == "length"


def test_log_probabilities_come_with_each_token() -> None:
    engine, _ = engine_of(plan_of())
    output = outputs_of(engine, PROMPT, SamplingParams(logprobs=3), max_tokens=1)[0]
    logits = all_logits(tuple(PROMPT), 0, 5)[-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    assert output.logprob == pytest.approx(expected.max(), abs=1e-5)
    assert [token for token, _ in output.top_logprobs] == np.argsort(-expected)[:3].tolist()


@pytest.mark.parametrize("length", [40, 41, 1000])
def test_a_prompt_that_fills_the_context_is_refused_before_any_work(length: int) -> None:
    engine, executor = engine_of(plan_of(context=40))
    with pytest.raises(ContextFullError, match=f"{length:,} tokens; the context holds 40"):
        engine.submit([1] * length, GREEDY, max_tokens=5)
    assert executor.computed == []


def test_a_full_context_ends_the_answer_and_says_so() -> None:
    plan = plan_of(context=20)
    outputs = list(outputs_of(engine_of(plan)[0], PROMPT, GREEDY, max_tokens=7))
    assert [o.token_id for o in outputs] == answer(PROMPT, plan, max_tokens=7)
    assert [o.finish_reason for o in outputs] == [None] * 5 + ["context"]


def test_max_tokens_may_end_exactly_at_the_context() -> None:
    engine, _ = engine_of(plan_of(context=20))
    assert [o.finish_reason for o in outputs_of(engine, PROMPT, GREEDY, max_tokens=6)][-1] == "length"


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
    plan = plan_of(context=400)
    loop, _ = loop_of(plan)
    stream = loop.stream(PROMPT, GREEDY, max_tokens=300)
    sequence = next(stream).sequence
    stream.close()
    assert loop.idle
    assert sequence.finish_reason == "cancelled"
    assert set(blocks_unaccounted_for(loop, plan).values()) == {0}


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), DeviceError("lost")])
def test_an_interruption_cancels_and_the_engine_goes_on(failure: BaseException) -> None:
    plan = plan_of()
    engine, executor = engine_of(plan)
    executor.fail_after, executor.failure = 4, failure
    with pytest.raises(type(failure)):
        outputs_of(engine, PROMPT, GREEDY, max_tokens=20)
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


@pytest.mark.parametrize("executor", EXECUTORS)
def test_two_iterators_at_once_get_their_own_tokens(executor: type[FakeExecutor]) -> None:
    plan = plan_of()
    loop, _ = loop_of(plan, executor)
    streams = [loop.stream(PROMPT[i:], GREEDY, max_tokens=9) for i in range(2)]
    pairs = [tuple(o.token_id for o in pair) for pair in zip(*streams, strict=True)]
    assert [list(tokens) for tokens in zip(*pairs, strict=True)] == [
        answer(PROMPT[i:], plan, max_tokens=9) for i in range(2)
    ]


@pytest.mark.parametrize("window", [5, None])
@pytest.mark.parametrize("switch", [None, 15, 17])
def test_tokens_chosen_on_the_device_are_the_same(window: int | None, switch: int | None) -> None:
    plan = plan_of(window=window) if window else plan_of()
    engine, executor = engine_of(plan, switch, LateExecutor)
    stop = frozenset(answer(PROMPT, plan, max_tokens=20, switch=switch)[11:12])
    for ends in (frozenset[int](), stop):
        ids = generated(engine, PROMPT, max_tokens=20, stop_token_ids=ends)
        assert ids == answer(PROMPT, plan, max_tokens=20, stop=ends, switch=switch)
    assert isinstance(executor, LateExecutor)
    assert executor.most_unread > 2
    assert executor.most_together > 1
    assert executor.unread <= 8, "what is computed beyond an answer's end is little"


def test_the_host_chooses_for_one_what_the_device_chooses_for_the_others() -> None:
    plan = plan_of()
    sampling = SamplingParams(temperature=1, seed=11)
    expected = [output.token_id for output in outputs_of(engine_of(plan)[0], PROMPT, sampling, max_tokens=12)]
    engine, _ = engine_of(plan, executor=LateExecutor)
    others = [engine.submit(PROMPT[i:], GREEDY, max_tokens=20) for i in range(2)]
    drawn = engine.submit(PROMPT, sampling, max_tokens=12)
    finish_all(engine)
    assert drawn.generated_ids == expected
    assert [s.generated_ids for s in others] == [answer(PROMPT[i:], plan, max_tokens=20) for i in range(2)]


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
