"""Constrained answers: masks of allowed tokens, from the request to the token, on engines with fake executors."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many

import numpy as np
import pytest

from halfbyte.cpu import CpuExecutor
from halfbyte.errors import DeviceError, GrammarError, UsageError
from halfbyte.plan import Batch, Draw, Executor, Pending, Runner
from halfbyte.plan.drawing import drawn_on_host
from halfbyte.reference.executor import ReferenceExecutor
from halfbyte.runtime import Engine
from halfbyte.runtime.engine import Ended, Failure, Output, TokenOutput
from halfbyte.sampling import Sampled, Sampler, SamplingParams
from tests.constraints import Fixed, Rules, alternating, even, mask_of, script
from tests.models.tiny import tiny
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
    engine_of,
    finish_all,
    loop_of,
    plan_of,
)

STOP = 5


def constrained(prompt: list[int], grammar: Rules, sampling: SamplingParams, max_tokens: int) -> list[int]:
    """The answer, each token from a fresh run over everything before it, with what may not come ruled out."""
    sampler, constraint, found = Sampler(sampling), grammar.start(), list[int]()
    for _ in range(max_tokens):
        row = all_logits(tuple(prompt + found), 0, plan_of().groups[1].window)[-1].copy()
        row[[token for token in range(VOCAB) if token not in grammar.rule(found)]] = -np.inf
        found.append(sampler.sample(row, prompt, found).id)
        constraint.accept(found[-1])
    return found


def everything(engine: Engine) -> list[Output]:
    found = list[Output]()
    while not engine.idle:
        found += engine.advance()
    return found


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("grammar", [even, alternating])
@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(temperature=1.5, seed=3, top_k=5, repetition_penalty=1.3)])
def test_only_allowed_tokens_come_and_others_are_answered_as_if_alone(
    executor: type[FakeExecutor], grammar: Callable[[int], Rules], sampling: SamplingParams
) -> None:
    plan = plan_of()
    engine, made = engine_of(plan, executor=executor)
    first, last = (engine.submit(PROMPT[i:], GREEDY, max_tokens=16 - i) for i in range(2))
    held = engine.submit(PROMPT[2:], sampling, max_tokens=12, grammar=grammar(VOCAB))
    finish_all(engine)
    assert held.generated_ids == constrained(PROMPT[2:], grammar(VOCAB), sampling, 12)
    assert [s.generated_ids for s in (first, last)] == [answer(PROMPT[i:], plan, max_tokens=16 - i) for i in range(2)]
    assert set(blocks_unaccounted_for(engine, plan).values()) == {0}
    if isinstance(made, LateExecutor):
        assert made.waiting is None


@pytest.mark.parametrize("executor", EXECUTORS)
def test_each_answer_is_asked_once_for_each_token_when_all_before_it_are_accepted(executor: type[FakeExecutor]) -> None:
    grammar = alternating(VOCAB)
    engine, _ = engine_of(plan_of(), executor=executor)
    answers = engine.requests(PROMPT, SamplingParams(temperature=1, seed=1), 2, max_tokens=9, grammar=grammar)
    answers += engine.requests(PROMPT, GREEDY, 2, max_tokens=9, grammar=grammar)
    for sequence in answers:
        engine.add(sequence)
    finish_all(engine)
    assert len(grammar.started) == 4
    for sequence, constraint in zip(answers, grammar.started, strict=True):
        assert constraint.accepted == sequence.generated_ids
        assert constraint.asked[:9] == list(range(9))
        assert set(constraint.asked[9:]) <= {9}, "at most once more, for a batch submitted before the end was known"


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_script_is_followed_to_its_stop_token(executor: type[FakeExecutor]) -> None:
    engine, _ = engine_of(plan_of(), executor=executor)
    text = [7, 7, 1, 23, 0, STOP]
    sequence = engine.submit(PROMPT, GREEDY, max_tokens=20, stop_token_ids={STOP}, grammar=script(text, VOCAB))
    finish_all(engine)
    assert (sequence.generated_ids, sequence.finish_reason) == (text, "stop")


def test_a_batch_is_submitted_before_it_is_known_what_may_come() -> None:
    engine, executor = engine_of(plan_of(), executor=LateExecutor)
    engine.submit(PROMPT, GREEDY, max_tokens=10, grammar=even(VOCAB))
    finish_all(engine)
    assert isinstance(executor, LateExecutor)
    assert (executor.most_unread, executor.most_together) == (2, 1)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_where_nothing_may_come_that_answer_ends_and_no_other(executor: type[FakeExecutor]) -> None:
    plan = plan_of()
    engine, _ = engine_of(plan, executor=executor)
    stuck = engine.submit(PROMPT, GREEDY, max_tokens=20, grammar=script([1, 2, 3], VOCAB))
    other = engine.submit(PROMPT[1:], GREEDY, max_tokens=12)
    held = engine.submit(PROMPT[2:], GREEDY, max_tokens=12, grammar=even(VOCAB))
    failures = [output for output in everything(engine) if isinstance(output, Failure)]
    assert [failure.sequence for failure in failures] == [stuck]
    assert isinstance(failures[0].error, GrammarError)
    assert str(failures[0].error).startswith("the grammar allows no token after 3 tokens of the answer.")
    assert stuck.generated_ids == [1, 2, 3]
    assert other.generated_ids == answer(PROMPT[1:], plan, max_tokens=12)
    assert held.generated_ids == constrained(PROMPT[2:], even(VOCAB), GREEDY, 12)
    assert set(blocks_unaccounted_for(engine, plan).values()) == {0}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_prompt_stays_in_the_cache_when_its_grammar_fails(executor: type[FakeExecutor]) -> None:
    engine, _ = engine_of(plan_of(), executor=executor)
    engine.submit(PROMPT, GREEDY, max_tokens=20, grammar=script([], VOCAB))
    (failure,) = everything(engine)
    assert isinstance(failure, Failure)
    again = engine.submit(PROMPT, GREEDY, max_tokens=1)
    finish_all(engine)
    assert again.num_cached_tokens == len(PROMPT) - 1


class Broken(Rules):
    """Fails when it is asked, or when it is told, after two tokens."""

    def __init__(self, where: str) -> None:
        super().__init__(lambda come: range(VOCAB) if len(come) < 2 else self.fail("words"), VOCAB)
        self.where = where

    def fail(self, where: str) -> range:
        if where == self.where:
            raise LookupError("no such state")
        return range(VOCAB)


def test_a_grammar_that_fails_ends_its_own_answer_with_a_sentence() -> None:
    plan = plan_of()
    engine, _ = engine_of(plan)
    engine.submit(PROMPT, GREEDY, max_tokens=20, grammar=Broken("words"))
    other = engine.submit(PROMPT[1:], GREEDY, max_tokens=12)
    errors = [output.error for output in everything(engine) if isinstance(output, Failure)]
    assert [type(error) for error in errors] == [GrammarError]
    assert str(errors[0]).startswith("the grammar failed with LookupError: no such state.")
    assert other.generated_ids == answer(PROMPT[1:], plan, max_tokens=12)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_token_that_the_grammar_refuses_is_not_given(executor: type[FakeExecutor]) -> None:
    engine, _ = engine_of(plan_of(), executor=executor)
    sequence = engine.submit(PROMPT, GREEDY, max_tokens=20, grammar=Refusing())
    outputs = everything(engine)
    assert [type(output) for output in outputs] == [TokenOutput, Failure]
    assert len(sequence.generated_ids) == 1


class Refusing:
    """Allows every token, and takes one."""

    def __init__(self) -> None:
        self.left = 1

    def start(self) -> Refusing:
        return self

    def words(self) -> np.ndarray:
        return mask_of(range(VOCAB), VOCAB)

    def accept(self, token_id: int) -> None:
        if not self.left:
            raise ValueError(f"token {token_id} was not expected")
        self.left -= 1


@pytest.mark.parametrize("executor", EXECUTORS)
def test_one_that_gave_way_goes_on_where_it_was(executor: type[FakeExecutor]) -> None:
    plan = plan_of(spare_blocks=4)
    engine, _ = engine_of(plan, executor=executor)
    held = [engine.submit(PROMPT[i:], GREEDY, max_tokens=20, grammar=alternating(VOCAB)) for i in range(3)]
    finish_all(engine)
    assert sum(s.num_preemptions for s in held) > 0
    for i, sequence in enumerate(held):
        assert sequence.generated_ids == constrained(PROMPT[i:], alternating(VOCAB), GREEDY, 20)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("steps", range(8))
def test_what_is_cancelled_leaves_no_draw_waiting(executor: type[FakeExecutor], steps: int) -> None:
    plan = plan_of()
    engine, _ = engine_of(plan, executor=executor)
    gone = engine.submit(PROMPT, GREEDY, max_tokens=20, grammar=even(VOCAB))
    stays = engine.submit(PROMPT[1:], GREEDY, max_tokens=12)
    for _ in range(steps):
        engine.step()
    engine.cancel(gone)
    finish_all(engine)
    assert stays.generated_ids == answer(PROMPT[1:], plan, max_tokens=12)
    assert set(blocks_unaccounted_for(engine, plan).values()) == {0}


def test_threads_that_share_an_engine_may_constrain_their_answers() -> None:
    plan = plan_of()
    loop, _ = loop_of(plan, LateExecutor)
    free = loop.stream(PROMPT, GREEDY, max_tokens=9)
    held = loop.stream(PROMPT, GREEDY, max_tokens=9, grammar=even(VOCAB))
    stuck = loop.stream(PROMPT, GREEDY, max_tokens=9, grammar=script([], VOCAB))
    for stream in (free, held, stuck):
        stream.start()
    assert [output.token_id for output in held] == constrained(PROMPT, even(VOCAB), GREEDY, 9)
    assert [output.token_id for output in free] == answer(PROMPT, plan, max_tokens=9)
    with pytest.raises(GrammarError):
        next(stuck)


class OnHost:
    """An executor whose tokens the NumPy sampler chooses."""

    ahead = most_steps = 1

    def __init__(self, executor: Executor) -> None:
        self.plan, self.run, self.draws = executor.plan, executor.run, executor.draws

    def submit(self, batch: Batch, draws: Many[Draw], *, steps: int = 1) -> Pending:
        return drawn_on_host(self.run(batch), draws)


ASKED: list[tuple[dict[str, float], Callable[[int], Rules] | None]] = [
    ({}, None),
    ({"temperature": 1.0, "seed": 3}, None),
    ({}, alternating),
    ({"temperature": 1.2, "seed": 5, "top_p": 0.9, "repetition_penalty": 1.2}, even),
    ({"temperature": 1.2, "seed": 5, "top_k": 7}, alternating),
    ({"temperature": 1.0, "seed": 5, "xtc_probability": 0.5}, even),
]


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_executors_choose_what_the_host_does_alone(device: str) -> None:
    model = tiny("llama-3.1-8b")
    plan = model.plan(sequences=4, rows=4)
    executor = ReferenceExecutor(plan, model) if device == "reference" else CpuExecutor(plan, model, threads=2)

    def answers(runner: Runner, wanted: Many[int]) -> list[list[int]]:
        engine, begun = Engine(runner), []
        for i in wanted:
            settings, grammar = ASKED[i]
            held = grammar(plan.vocab_size) if grammar else None
            begun.append(engine.submit([5, 9, 33, 60, 9], SamplingParams(**settings), max_tokens=10 + i, grammar=held))
        finish_all(engine)
        return [sequence.generated_ids for sequence in begun]

    together = answers(executor, range(len(ASKED)))
    assert together == [answers(OnHost(executor), [i])[0] for i in range(len(ASKED))]
    for (_, grammar), ids in zip(ASKED, together, strict=True):
        rule = grammar(plan.vocab_size).rule if grammar else lambda _: range(plan.vocab_size)
        assert all(token in rule(ids[:i]) for i, token in enumerate(ids))


def test_log_probabilities_are_those_of_the_model() -> None:
    engine, _ = engine_of(plan_of())
    sequence = engine.submit(PROMPT, SamplingParams(logprobs=3), max_tokens=1, grammar=script([9], VOCAB))
    (output,) = everything(engine)
    assert isinstance(output, TokenOutput)
    row = all_logits(tuple(PROMPT), 0, 5)[-1].astype(np.float64)
    expected = row - np.log(np.exp(row).sum())
    assert sequence.generated_ids == [9]
    assert output.logprob == pytest.approx(expected[9], abs=1e-5)
    assert [token for token, _ in output.top_logprobs] == np.argsort(-expected)[:3].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grammar": "[0-9]+"}, r"grammar is '\[0-9\]\+'"),
        ({"grammar": even(VOCAB), "ignore_eos": True}, "ignore_eos would go on past the end of the grammar"),
    ],
)
def test_requests_that_cannot_be_meant_are_usage_errors(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        engine_of(plan_of())[0].request(PROMPT, GREEDY, max_tokens=4, **options)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((0b101,), [0, 2]),
        ((1 << 31, 0b11), [31, 32, 33]),
        ((1, 1 << 7, 5), [0, 39]),
        ((0xFFFFFFFF, 0xFFFFFFFF), range(40)),
    ],
)
def test_a_mask_fits_the_vocabulary_whatever_was_given(words: tuple[int, ...], expected: list[int]) -> None:
    mask = Draw(0, Sampler(GREEDY), [1], [], Fixed(np.array(words, np.uint32))).mask(40)
    assert mask is not None
    np.testing.assert_array_equal(mask, mask_of(expected, 40))


def test_bits_beyond_the_vocabulary_allow_nothing() -> None:
    with pytest.raises(GrammarError):
        Draw(0, Sampler(GREEDY), [1], [2], Fixed(np.array([0, 1 << 8], np.uint32))).mask(40)


SETTINGS = [
    {},
    {"repetition_penalty": 1.5, "logit_bias": {3: 2.0, 8: -1.0}},
    {"temperature": 0.8, "top_k": 3},
    {"temperature": 1.2, "top_p": 0.5, "min_p": 0.1, "presence_penalty": 0.5},
    {"temperature": 1.0, "typical_p": 0.6},
    {"temperature": 1.0, "top_n_sigma": 1.0},
    {"temperature": 1.0, "xtc_probability": 1.0, "xtc_threshold": 0.0},
    {"temperature": 1.0, "mirostat": 2},
    {"temperature": 1.0, "dynatemp_range": 0.5},
    {"temperature": 1.0, "dry_multiplier": 1.0},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_samplers_see_only_what_may_come(settings: dict) -> None:
    """As if the vocabulary had no other tokens."""
    rng, allowed = np.random.default_rng(5), np.array([3, 8, 31, 32, 63, 64, 99])
    logits = rng.normal(0, 3, 100).astype(np.float32)
    words, prompt = mask_of(allowed.tolist(), 100), [3, 8, 31, 3, 8]
    for seed in range(50):
        params = SamplingParams(**settings | ({"seed": seed} if settings.get("temperature") else {}))
        found = Sampler(params).candidates(logits, prompt, [64], words)
        others = np.setdiff1d(np.arange(100), allowed)
        ruled_out = logits.copy()
        ruled_out[others] = -np.inf
        assert set(found.ids.tolist()) <= set(allowed.tolist())
        if not settings.keys() & {"dynatemp_range", "xtc_probability"}:
            assert (
                Sampler(params).sample(logits, prompt, [64], words).id
                == Sampler(params).sample(ruled_out, prompt, [64]).id
            )


def test_allowed_tokens_without_a_finite_logit_are_the_models_fault() -> None:
    logits = np.array([1, -np.inf, -np.inf], np.float32)
    token = Draw(0, Sampler(GREEDY), [1], [], Fixed(mask_of([1, 2], 3))).on_host(logits)
    assert isinstance(token, DeviceError)
    assert "-inf for token 1" in str(token)
    assert isinstance(Draw(0, Sampler(GREEDY), [1], [], Fixed(mask_of([0, 1], 3))).on_host(logits), Sampled)


def test_an_answer_whose_time_is_up_ends_without_a_token() -> None:
    engine, _ = engine_of(plan_of(), executor=LateExecutor)
    sequence = engine.submit(PROMPT, GREEDY, max_tokens=20, grammar=even(VOCAB))
    for _ in range(4):
        engine.step()
    sequence.expires = 0.0
    assert any(isinstance(output, Ended) for output in everything(engine))
    assert sequence.finish_reason == "deadline"
