"""Tokens chosen on the GPU: the same filters and penalties as the host's sampler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from halfbyte.errors import GrammarError
from halfbyte.gpu.run.executor import GpuExecutor
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.plan import Batch, Draw
from halfbyte.runtime import Engine, Sequence
from halfbyte.sampling import Sampled, Sampler, SamplingParams
from tests.constraints import Rule, Rules, alternating, even, mask_of, script
from tests.device.gpu import block_tables, drawn, one, software_gpu
from tests.models.tiny import feed, tiny

PROMPT = [5, 9, 33, 60, 9]


@pytest.fixture(scope="module")
def gpu() -> GpuExecutor:
    model = tiny("llama-3.1-8b")
    executor = GpuExecutor(model.plan(), model, device=software_gpu(), off=("int8",), tuning=Tuning())
    feed(executor, PROMPT[:-1])
    return executor


def decode(gpu: GpuExecutor, limit: int, **settings: object) -> list[int]:
    batch = one(gpu.plan, PROMPT[-1], len(PROMPT) - 1)
    return [token.id for token in drawn(gpu, batch, limit, SamplingParams(**settings), PROMPT)]


def logits(gpu: GpuExecutor) -> np.ndarray:
    return gpu.run(one(gpu.plan, PROMPT[-1], len(PROMPT) - 1))[0].astype(np.float64)


def probabilities(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.4},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"logit_bias": {17: 2.5, 40: -3.0}, "repetition_penalty": 0.8, "frequency_penalty": 1.0},
    ],
)
def test_greedy_choice_under_penalties_is_the_hosts(gpu: GpuExecutor, settings: dict[str, object]) -> None:
    host, expected = Sampler(SamplingParams(**settings)), []
    for i in range(24):
        token = (PROMPT[-1:] + expected)[-1]
        row = gpu.run(one(gpu.plan, token, len(PROMPT) - 1 + i))[0]
        expected.append(host.sample(row, PROMPT, expected).id)
    assert decode(gpu, 24, **settings) == expected


@pytest.mark.parametrize(
    "settings", [{}, {"top_k": 4}, {"top_p": 0.4}, {"min_p": 0.3}, {"top_k": 6, "top_p": 0.7, "min_p": 0.05}]
)
def test_draws_follow_the_filtered_distribution(gpu: GpuExecutor, settings: dict[str, float]) -> None:
    kept = probabilities(logits(gpu) / 0.8)
    order = np.argsort(-kept)
    kept[order[int(settings.get("top_k", len(kept))) :]] = 0
    kept /= kept.sum()
    nucleus = int(np.searchsorted(np.cumsum(kept[order]), settings.get("top_p", 1.0))) + 1
    kept[order[nucleus:]] = 0
    kept[kept < settings.get("min_p", 0) * kept.max()] = 0
    kept /= kept.sum()
    draws = 250
    seen = Counter(decode(gpu, 1, temperature=0.8, seed=seed, **settings)[0] for seed in range(draws))
    assert all(kept[token] > 0 for token in seen)
    for token in np.argsort(-kept)[:3]:
        deviation = np.sqrt(draws * kept[token] * (1 - kept[token])) + 1
        assert abs(seen[int(token)] - draws * kept[token]) < 4 * deviation


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7, "top_k": 20},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"top_p": 0.9, "min_p": 0.2},
        {"temperature": 3.0, "top_k": 50, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2},
        {"xtc_probability": 0.5, "xtc_threshold": 0.05},
        {"xtc_probability": 1.0, "xtc_threshold": 0.0, "top_k": 9, "top_p": 0.9},
    ],
)
@pytest.mark.parametrize("seed", [0, 7, 2**63 + 5])
def test_draws_are_the_hosts(gpu: GpuExecutor, settings: dict[str, float], seed: int) -> None:
    settings = {"temperature": 1.0, "seed": seed, **settings}
    host, expected = Sampler(SamplingParams(**settings)), list[int]()
    for i in range(40):
        token = (PROMPT[-1:] + expected)[-1]
        row = gpu.run(one(gpu.plan, token, len(PROMPT) - 1 + i))[0]
        expected.append(host.sample(row, PROMPT, expected).id)
    assert decode(gpu, 40, **settings) == expected


def test_a_seed_repeats_and_another_does_not(gpu: GpuExecutor) -> None:
    first, again, other = (decode(gpu, 32, temperature=1.2, seed=seed) for seed in (7, 7, 2**63 + 5))
    assert first == again
    assert first != other


EVERY = [
    {"temperature": 0.9, "top_k": 9, "seed": 1},
    {},
    {"temperature": 1.1, "top_p": 0.8, "frequency_penalty": 0.7, "logit_bias": {7: 1.5}, "seed": 2},
    {"repetition_penalty": 1.4},
    {"temperature": 2.0, "min_p": 0.05, "seed": 2**63 + 5},
]


@pytest.mark.parametrize("steps", [1, 4])
def test_rows_are_drawn_together_each_with_its_own_settings(steps: int) -> None:
    """Five sequences in slots with gaps, in any order; what the rows of others ask for changes nothing."""
    model, slots = tiny("llama-3.1-8b"), [4, 0, 6, 1, 3]
    plan = model.plan(sequences=8, rows=8)
    gpu = GpuExecutor(plan, model, device=software_gpu(), off=("int8",), tuning=Tuning())
    samplers = [Sampler(SamplingParams(**settings)) for settings in EVERY]
    ids: list[list[int]] = [[] for _ in slots]
    count = len(PROMPT) - 1
    for slot in slots:
        feed(gpu, PROMPT[:-1], sequence=slot)
    for done in range(0, 24, steps):
        batch = Batch(
            token_ids=np.array([-1 - slot if done else PROMPT[-1] for slot in slots], np.int32),
            positions=np.full(len(slots), count + done, np.int32),
            sequences=np.array(slots, np.int32),
            rope_sets=np.zeros(len(slots), np.int32),
            block_tables=block_tables(plan),
            logit_rows=np.arange(len(slots), dtype=np.int32),
            num_decodes=len(slots),
        )
        draws = [Draw(*each) for each in zip(slots, samplers, [PROMPT] * len(slots), ids, strict=True)]
        for tokens in gpu.submit(batch, draws, steps=steps).tokens():
            for mine, token in zip(ids, tokens, strict=True):
                assert isinstance(token, Sampled)
                mine.append(token.id)
    alone = GpuExecutor(model.plan(), model, device=software_gpu(), off=("int8",), tuning=Tuning())
    feed(alone, PROMPT[:-1])
    for mine, settings in zip(ids, EVERY, strict=True):
        assert mine == decode(alone, 24, **settings)


def test_the_host_draws_for_the_rows_that_the_gpu_cannot(gpu: GpuExecutor) -> None:
    plan = tiny("llama-3.1-8b").plan(sequences=2, rows=4)
    model = tiny("llama-3.1-8b")
    both = GpuExecutor(plan, model, device=software_gpu(), off=("int8",), tuning=Tuning())
    for slot in range(2):
        feed(both, PROMPT[:-1], sequence=slot)
    last = one(plan, PROMPT[-1], len(PROMPT) - 1)
    two = {f: np.repeat(getattr(last, f), 2) for f in ("token_ids", "positions", "rope_sets")}
    numbers = np.arange(2, dtype=np.int32)
    batch = replace(last, **two, sequences=numbers, logit_rows=numbers, num_decodes=2)
    draws = [Draw(i, Sampler(SamplingParams(logprobs=3 * i)), PROMPT, []) for i in range(2)]
    [[first, second]] = both.submit(batch, draws).tokens()
    assert isinstance(first, Sampled)
    assert isinstance(second, Sampled)
    assert first.id == second.id == decode(gpu, 1)[0]
    assert first.logprob == pytest.approx(second.logprob, abs=1e-4)
    assert [len(first.top), len(second.top)] == [0, 3]


SLOTS = [2, 0, 3]


@pytest.fixture(scope="module", params=["all limits", "default limits"])
def several(request: pytest.FixtureRequest) -> GpuExecutor:
    """Room for four sequences, three of which have read the prompt."""
    model, device = tiny("llama-3.1-8b"), software_gpu(baseline=request.param == "default limits")
    executor = GpuExecutor(model.plan(sequences=4, rows=4), model, device=device, off=("int8",), tuning=Tuning())
    for slot in SLOTS:
        feed(executor, PROMPT[:-1], sequence=slot)
    return executor


MASKED = [
    {},
    {"repetition_penalty": 1.4, "logit_bias": {3: 9.0, 8: 2.0}},
    {"temperature": 0.8, "top_k": 4, "seed": 7},
    {"temperature": 1.5, "top_p": 0.8, "min_p": 0.02, "frequency_penalty": 1.0, "seed": 2**63 + 5},
    {"temperature": 1.0, "min_p": 0.1, "seed": 9},
]


@pytest.mark.parametrize("settings", MASKED)
def test_only_what_is_allowed_is_chosen_and_as_the_host_does(
    gpu: GpuExecutor, several: GpuExecutor, settings: dict[str, object]
) -> None:
    """In rows of which two are constrained; log-probabilities are those of the model."""
    vocab, ids = gpu.plan.vocab_size, [list[int]() for _ in SLOTS]
    rules = [alternating(vocab).rule, lambda _: range(vocab), even(vocab).rule]
    constraints = [Rules(rules[0], vocab).start(), None, Rules(rules[2], vocab).start()]
    samplers = [Sampler(SamplingParams(**settings)) for _ in SLOTS]
    for done in range(8):
        batch = Batch(
            token_ids=np.array([-1 - slot if done else PROMPT[-1] for slot in SLOTS], np.int32),
            positions=np.full(len(SLOTS), len(PROMPT) - 1 + done, np.int32),
            sequences=np.array(SLOTS, np.int32),
            rope_sets=np.zeros(len(SLOTS), np.int32),
            block_tables=block_tables(several.plan),
            logit_rows=np.arange(len(SLOTS), dtype=np.int32),
            num_decodes=len(SLOTS),
        )
        draws = [Draw(*each) for each in zip(SLOTS, samplers, [PROMPT] * 3, ids, constraints, strict=True)]
        [tokens] = several.submit(batch, draws).tokens()
        for mine, constraint, token in zip(ids, constraints, tokens, strict=True):
            assert isinstance(token, Sampled)
            mine.append(token.id)
            if constraint:
                constraint.accept(token.id)
            if done == 0:
                assert token.logprob == pytest.approx(np.log(probabilities(logits(gpu))[token.id]), abs=1e-3)
    for mine, rule in zip(ids, rules, strict=True):
        assert mine == expected_under(gpu, rule, 8, **settings)
    assert len({*map(tuple, ids)}) == 3


def expected_under(gpu: GpuExecutor, rule: Rule, limit: int, **settings: object) -> list[int]:
    """What the host chooses from the GPU's logits, of what a rule allows."""
    host, found = Sampler(SamplingParams(**settings)), list[int]()
    for i in range(limit):
        row = gpu.run(one(gpu.plan, (PROMPT[-1:] + found)[-1], len(PROMPT) - 1 + i))[0]
        found.append(host.sample(row, PROMPT, found, mask_of(rule(found), row.size)).id)
    return found


def test_draws_wait_until_it_is_known_what_may_come(gpu: GpuExecutor) -> None:
    constraint = script([17, 3], gpu.plan.vocab_size).start()
    found = list[int]()
    draw = Draw(0, Sampler(SamplingParams()), PROMPT, found, constraint)
    first = gpu.submit(one(gpu.plan, PROMPT[-1], len(PROMPT) - 1), [draw])
    assert constraint.asked == []
    first.choose()
    second = gpu.submit(one(gpu.plan, -1, len(PROMPT)), [draw])
    for pending in (first, second):
        [[token]] = pending.tokens()
        assert isinstance(token, Sampled)
        constraint.accept(token.id)
        found.append(token.id)
    assert found == [17, 3]
    assert constraint.asked == [0, 1]


def test_where_nothing_is_allowed_only_that_row_has_an_error(several: GpuExecutor) -> None:
    vocab, numbers = several.plan.vocab_size, np.arange(2, dtype=np.int32)
    batch = Batch(
        token_ids=np.full(2, PROMPT[-1], np.int32),
        positions=np.full(2, len(PROMPT) - 1, np.int32),
        sequences=np.array(SLOTS[:2], np.int32),
        rope_sets=np.zeros(2, np.int32),
        block_tables=block_tables(several.plan),
        logit_rows=numbers,
        num_decodes=2,
    )
    grammars = [script([], vocab), even(vocab)]
    draws = [
        Draw(slot, Sampler(SamplingParams()), PROMPT, [], grammar.start())
        for slot, grammar in zip(SLOTS, grammars, strict=False)
    ]
    [[error, token]] = several.submit(batch, draws).tokens()
    assert isinstance(error, GrammarError)
    assert isinstance(token, Sampled)
    assert token.id % 2 == 0


def test_a_mask_goes_with_its_sequence(gpu: GpuExecutor) -> None:
    """The next one in its slot, which has none, is free."""
    batch, free = one(gpu.plan, PROMPT[-1], len(PROMPT) - 1), decode(gpu, 1)
    grammar = Rules(lambda _: {*range(gpu.plan.vocab_size)} - {*free}, gpu.plan.vocab_size)
    [[held]] = gpu.submit(batch, [Draw(0, Sampler(SamplingParams()), PROMPT, [], grammar.start())]).tokens()
    assert isinstance(held, Sampled)
    assert held.id != free[0]
    assert decode(gpu, 1) == free


@pytest.mark.parametrize("settings", [{"logprobs": 3}, {"temperature": 1.0, "typical_p": 0.9, "seed": 3}])
def test_rows_that_the_host_draws_are_masked_there(gpu: GpuExecutor, settings: dict[str, float]) -> None:
    constraint = script([11], gpu.plan.vocab_size).start()
    draw = Draw(0, Sampler(SamplingParams(**settings)), PROMPT, [], constraint)
    [[token]] = gpu.submit(one(gpu.plan, PROMPT[-1], len(PROMPT) - 1), [draw]).tokens()
    assert isinstance(token, Sampled)
    assert (token.id, len(token.top)) == (11, int(settings.get("logprobs", 0)))


ASKED: list[tuple[dict[str, float], Callable[[int], Rules] | None]] = [
    ({}, None),
    ({"temperature": 1.0, "seed": 4, "presence_penalty": 0.5}, None),
    ({}, alternating),
    ({"temperature": 0.9, "seed": 8, "top_p": 0.9}, even),
    ({"logprobs": 2}, even),
]


@pytest.mark.parametrize("several", ["all limits"], indirect=True)
def test_an_engine_answers_constrained_sequences_beside_others(several: GpuExecutor) -> None:
    """One waits for its turn, and each gets what it gets alone."""

    def answers(wanted: list[int]) -> list[list[int]]:
        engine = Engine(several)
        begun = [begin(engine, *ASKED[i], max_tokens=9 + i) for i in wanted]
        while not engine.idle:
            engine.step()
        return [sequence.generated_ids for sequence in begun]

    together = answers([0, 1, 2, 3, 4])
    assert together == [answers([i])[0] for i in range(5)]
    assert [len(ids) for ids in together] == [9, 10, 11, 12, 13]
    assert all(token % 2 == 0 for ids in together[3:] for token in ids)


def begin(
    engine: Engine, settings: dict[str, float], grammar: Callable[[int], Rules] | None, max_tokens: int
) -> Sequence:
    made = grammar(tiny("llama-3.1-8b").plan().vocab_size) if grammar else None
    return engine.submit(PROMPT, SamplingParams(**settings), max_tokens=max_tokens, grammar=made)


def test_tokens_that_nobody_reads_leave_the_gpu_ready(gpu: GpuExecutor) -> None:
    draw = Draw(0, Sampler(SamplingParams()), (), [])
    for _ in range(10):
        gpu.submit(one(gpu.plan, 5, 4), [draw], steps=3)
    assert decode(gpu, 5) == decode(gpu, 12)[:5]


XTC_FIRST = ["temperature", "xtc", "top_p"]


def test_what_the_gpu_cannot_choose_it_says(gpu: GpuExecutor) -> None:
    assert gpu.draws(SamplingParams(temperature=1.0, top_k=5, seed=1))
    assert gpu.draws(SamplingParams(temperature=1.0, xtc_probability=0.5, top_p=0.9))
    assert not gpu.draws(SamplingParams(temperature=1.0, xtc_probability=0.5, top_p=0.9, samplers=XTC_FIRST))
    assert not gpu.draws(SamplingParams(temperature=1.0, typical_p=0.9))
    assert not gpu.draws(SamplingParams(temperature=1.0, top_n_sigma=1.0))
    assert not gpu.draws(SamplingParams(presence_penalty=1.0, repeat_last_n=64))
    assert not gpu.draws(SamplingParams(temperature=0.5, top_p=0.9, samplers=["top_p", "temperature"]))
    assert not gpu.draws(SamplingParams(logprobs=3))
