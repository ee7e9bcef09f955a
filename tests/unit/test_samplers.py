"""What each sampler does to the candidates, in which order, and with which memory.

Numbers named "llama.cpp's" stand in its `tests/test-sampling.cpp`. What its samplers leave of a model's logits is
compared in `tests/models/test_samplers.py`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfbyte.errors import UsageError
from halfbyte.sampling.candidates import Candidates
from halfbyte.sampling.dry import suffix_lengths
from halfbyte.sampling.filters import XTC_STREAM, xtc
from halfbyte.sampling.noise import BITS, coin, uniform_bits
from halfbyte.sampling.params import OTHER_NAMES, SAMPLERS, SamplingParams
from halfbyte.sampling.sampler import Sampler

LAST_FIRST = tuple(reversed(SAMPLERS))


def logits_of(*probabilities: float) -> np.ndarray:
    return np.log(np.array(probabilities, np.float32))


def random_logits(seed: int, vocab: int = 60, spread: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, vocab).astype(np.float32)


def probabilities(candidates: Candidates) -> dict[int, float]:
    weights = np.exp(candidates.scores.astype(np.float64) - candidates.scores.max())
    return dict(zip(candidates.ids.tolist(), (weights / weights.sum()).tolist(), strict=True))


def left(params: SamplingParams, logits: np.ndarray, prompt: Any = (0,), answer: Any = ()) -> dict[int, float]:
    """Probabilities of the tokens that are drawn from."""
    return probabilities(Sampler(params).candidates(logits, list(prompt), list(answer)))


def drawing(**settings: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, **settings})


DRY = [
    ([0, 1], 1.0, 2, [], [0.25] * 4),
    ([0, 1, 2, 0, 1], 1.0, 2, [], [0.296923, 0.296923, 0.109232, 0.296923]),
    ([0, 1, 3, 4, 0, 1], 1.0, 2, [3], [0.2] * 5),
    ([0, 1, 2, 0, 1], 2.0, 2, [], [0.241818, 0.241818, 0.032727, 0.241818, 0.241818]),
    ([0, 1, 2, 3, 4, 0, 1], 1.0, 4, [], [0.2] * 5),
]
"""llama.cpp's: tokens, multiplier, allowed length, breakers, probabilities; the base is 1.1, before all are alike."""


@pytest.mark.parametrize(("tokens", "multiplier", "allowed", "breakers", "expected"), DRY)
def test_dry_gives_llama_cpps_probabilities(
    tokens: list[int], multiplier: float, allowed: int, breakers: list[int], expected: list[float]
) -> None:
    params = drawing(
        dry_multiplier=multiplier, dry_base=1.1, dry_allowed_length=allowed, dry_penalty_last_n=len(tokens),
        dry_breaker_ids=breakers,
    )  # fmt: skip
    found = left(params, np.zeros(len(expected), np.float32), tokens[:1], tokens[1:])
    assert list(found.values()) == pytest.approx(expected, abs=1e-5)


def dry_penalties(tokens: list[int], params: SamplingParams) -> dict[int, float]:
    """As the pull request says it, tried out for each token and every place where it stood before."""
    breakers = [each if isinstance(each, tuple) else (each,) for each in params.dry_breaker_ids]
    ends = [
        end
        for each in breakers
        for end in range(len(each), len(tokens) + 1)
        if tuple(tokens[end - len(each) : end]) == each
    ]
    limit = len(tokens) - max(ends, default=0)
    window = tokens[-params.dry_penalty_last_n :] if params.dry_penalty_last_n > 0 else tokens
    found: dict[int, float] = {}
    for place in range(1, len(window)):
        token, before = window[place], window[:place]
        length = max(n for n in range(min(limit, place) + 1) if before[place - n :] == window[len(window) - n :])
        if length >= params.dry_allowed_length and (token,) not in breakers:
            penalty = params.dry_multiplier * params.dry_base ** (length - params.dry_allowed_length)
            found[token] = max(found.get(token, 0.0), penalty)
    return found


@given(seed=st.integers(0, 10**6))
def test_dry_penalizes_as_the_rule_says(seed: int) -> None:
    rng = random.Random(seed)
    kinds = rng.randint(2, 5)
    tokens = [rng.randrange(kinds) for _ in range(rng.randint(1, 40))]
    breakers = [rng.choice([rng.randrange(kinds), tuple(rng.choices(range(kinds), k=rng.randint(1, 3)))])
                for _ in range(rng.randint(0, 2))]  # fmt: skip
    params = drawing(
        dry_multiplier=rng.uniform(0.1, 3), dry_base=rng.choice([1.0, 1.3, 1.75]),
        dry_allowed_length=rng.randint(1, 4), dry_penalty_last_n=rng.choice([-1, 1, 5, 20]), dry_breaker_ids=breakers,
    )  # fmt: skip
    logits = random_logits(seed, kinds)
    expected = logits.copy()
    for token, penalty in dry_penalties(tokens, params).items():
        expected[token] -= np.float32(penalty)
    cut = rng.randint(1, len(tokens))
    growing = Sampler(params)
    for length in range(cut, len(tokens) + 1):
        found = growing.candidates(logits, tokens[:cut], tokens[cut:length])
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5)


def test_a_long_repetition_is_ruled_out_without_overflow() -> None:
    with np.errstate(all="raise", under="ignore"):
        params = drawing(dry_multiplier=100, dry_base=100, temperature=0.001, seed=1)
        found = left(params, np.zeros(3, np.float32), [0, 1] * 2000)
    assert found == pytest.approx({0: 0, 1: 0.5, 2: 0.5})
    only = Sampler(drawing(dry_multiplier=100, dry_base=100, samplers=["top_k", "dry"], top_k=1))
    assert only.sample(logits_of(0.6, 0.3, 0.1), [0, 1] * 2000, []).id == 0


def test_the_longest_repetitions_take_no_longer_than_others() -> None:
    """Not by the clock: each token of a long prompt is compared a few times at most."""

    class Counted(int):
        compared = 0

        def __eq__(self, other: object) -> bool:
            Counted.compared += 1
            return super().__eq__(other)

        __hash__ = int.__hash__

    for period in (1, 2, 100):
        Counted.compared = 0
        tokens = [Counted(place % period) for place in range(3000)]
        assert suffix_lengths(tokens).tolist() == [end + 1 if (2999 - end) % period == 0 else 0 for end in range(2999)]
        assert Counted.compared < 2 * 3000


def test_greedy_choice_listens_to_dry() -> None:
    logits = logits_of(0.5, 0.3, 0.2)
    assert Sampler(SamplingParams()).sample(logits, [0, 1, 2, 0, 1, 2], []).id == 0
    assert Sampler(SamplingParams(dry_multiplier=1)).sample(logits, [0, 1, 2, 0, 1, 2], []).id == 1


SIGMA = [(1.0, {2: 0.428571, 3: 0.571429}), (0.0, [0.1, 0.2, 0.3, 0.4]), (3.0, [0.1, 0.2, 0.3, 0.4])]


@pytest.mark.parametrize(("sigma", "expected"), SIGMA)
def test_top_n_sigma_gives_llama_cpps_probabilities(sigma: float, expected: Any) -> None:
    found = left(drawing(top_n_sigma=sigma), logits_of(0.1, 0.2, 0.3, 0.4))
    assert found == pytest.approx(expected if isinstance(expected, dict) else dict(enumerate(expected)), abs=1e-5)


def test_top_n_sigma_keeps_the_same_at_every_temperature() -> None:
    for seed in range(20):
        logits = random_logits(seed)
        kept = [left(drawing(top_n_sigma=1.2, temperature=heat), logits).keys() for heat in (0.2, 1.0, 3.0)]
        assert kept[0] == kept[1] == kept[2] != set(range(logits.size))


def test_top_n_sigma_does_not_count_tokens_that_are_ruled_out() -> None:
    logits = random_logits(3)
    shut = np.append(logits, np.float32(-np.inf))
    assert left(drawing(top_n_sigma=1), shut) == left(drawing(top_n_sigma=1), logits)


XTC = [(0.09, [3]), (0.19, [2, 3]), (0.29, [1, 2, 3]), (0.39, [0, 1, 2, 3])]
"""llama.cpp's: threshold, tokens left of 0.4, 0.3, 0.2 and 0.1."""


@pytest.mark.parametrize(("threshold", "expected"), XTC)
def test_xtc_leaves_the_least_likely_top_choice(threshold: float, expected: list[int]) -> None:
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    assert list(left(drawing(xtc_probability=1, xtc_threshold=threshold), logits)) == expected
    assert xtc(logits, threshold, exclude=False).tolist() == [0, 1, 2, 3]


def test_xtc_excludes_as_often_as_asked_and_as_seed_and_position_say() -> None:
    logits = logits_of(0.5, 0.4, 0.1)

    def excluded(seed: int) -> list[bool]:
        sampler = Sampler(drawing(xtc_probability=0.3, xtc_threshold=0.2, seed=seed))
        return [0 not in sampler.candidates(logits, [1] * position, []).ids for position in range(1, 2001)]

    once = excluded(5)
    assert sum(once) / len(once) == pytest.approx(0.3, abs=0.03)
    assert once == excluded(5)
    assert once != excluded(6)
    late = Sampler(drawing(xtc_probability=0.3, xtc_threshold=0.2, seed=5)).candidates(logits, [1], [2] * 99)
    assert (0 not in late.ids) == once[99], "a decision follows from seed and position, not from what came before"


def test_coins_are_uniform_and_unlike_the_draw() -> None:
    coins = np.array([coin(9, position, XTC_STREAM) for position in range(4000)])
    assert 0 < coins.min() < coins.max() < 1
    assert np.histogram(coins, 4, (0, 1))[0] / 4000 == pytest.approx([0.25] * 4, abs=0.03)
    draws = np.array([uniform_bits(9, position, np.arange(1))[0] for position in range(4000)]) * 2.0**-BITS
    assert abs(np.corrcoef(coins, draws)[0, 1]) < 0.05


def test_the_dynamic_temperature_follows_the_entropy() -> None:
    """From `temperature - range` for a certain token to `temperature + range` where all are alike."""

    def spread(logits: np.ndarray, **settings: Any) -> float:
        scores = Sampler(drawing(**settings)).candidates(logits, [0], []).scores
        return float(np.ptp(scores) / np.ptp(logits))

    dynamic = {"temperature": 1.0, "dynatemp_range": 0.5}
    sure, unsure = np.array([60, 0, 0], np.float32), np.array([1e-4, 0, 0], np.float32)
    assert spread(sure, **dynamic) == pytest.approx(1 / 0.5, rel=1e-4)
    assert spread(unsure, **dynamic) == pytest.approx(1 / 1.5, rel=1e-2)
    entropy = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1)) / math.log(3)
    between = logits_of(0.7, 0.2, 0.1)
    assert spread(between, **dynamic) == pytest.approx(1 / (0.5 + entropy), rel=1e-4)
    assert spread(between, **dynamic, dynatemp_exponent=3) == pytest.approx(1 / (0.5 + entropy**3), rel=1e-4)
    assert spread(between, temperature=1.0, dynatemp_range=2) == pytest.approx(1 / (3 * entropy), rel=1e-4)


def test_a_certain_token_stays_certain_under_a_temperature_that_falls_to_zero() -> None:
    sampler = Sampler(drawing(temperature=0.5, dynatemp_range=1, seed=1))
    assert sampler.sample(np.array([500, 0, -np.inf], np.float32), [0], []).id == 0
    alone = Sampler(drawing(dynatemp_range=1, top_k=1, samplers=["top_k", "temperature"]))
    assert alone.sample(logits_of(0.2, 0.8), [0], []).id == 1


def mirostat_texts(tau: float, seed: int, length: int = 60) -> Iterator[tuple[int, float]]:
    """Tokens, and their surprise in bits, of an answer that is drawn from a new random distribution each time."""
    sampler = Sampler(drawing(mirostat=2, mirostat_tau=tau, mirostat_eta=0.3, seed=seed))
    answer: list[int] = []
    for step in range(length):
        logits = random_logits(step, 500, 1.0)
        found = probabilities(sampler.candidates(logits, [0], answer))
        answer.append(sampler.sample(logits, [0], answer).id)
        yield answer[-1], -math.log2(found[answer[-1]])


@pytest.mark.parametrize("tau", [2.0, 4.0])
def test_mirostat_keeps_the_surprise_near_the_target(tau: float) -> None:
    surprises = [surprise for seed in range(4) for _, surprise in list(mirostat_texts(tau, seed))[20:]]
    assert np.mean(surprises) == pytest.approx(tau, abs=0.35)


def test_mirostat_follows_from_the_seed_and_the_answer() -> None:
    once = list(mirostat_texts(3.0, 7))
    assert once == list(mirostat_texts(3.0, 7))
    assert once != list(mirostat_texts(3.0, 8))


def test_a_token_that_mirostat_chooses_again_is_the_same() -> None:
    params = drawing(mirostat=2, mirostat_tau=2.5, mirostat_eta=0.5, seed=3)
    straight, stumbling = Sampler(params), Sampler(params)
    answer: list[int] = []
    for step in range(40):
        logits = random_logits(step, 300, 1.0)
        token = straight.sample(logits, [0], answer).id
        for _ in range(step % 3):
            assert stumbling.sample(logits, [0], answer).id == token
        assert stumbling.sample(logits, [0], answer).id == token
        answer.append(token)


def test_mirostat_comes_after_every_other_sampler() -> None:
    logits = logits_of(0.5, 0.25, 0.125, 0.125)  # 1, 2, 3 and 3 bits; without the first: 1, 2 and 2
    assert left(drawing(mirostat=2, mirostat_tau=0.75), logits) == {0: 1.0}
    without_first = drawing(mirostat=2, mirostat_tau=0.75, xtc_probability=1, xtc_threshold=0.2)
    assert left(without_first, logits) == {1: 1.0}
    assert left(drawing(mirostat=2, mirostat_tau=1.25), logits) == pytest.approx({0: 2 / 3, 1: 1 / 3})


def test_penalties_look_at_the_last_tokens_only() -> None:
    logits, prompt, answer = random_logits(4, 8), [1, 2, 2, 3], [4, 4, 1, 5, 4]
    settings = {"repetition_penalty": 1.6, "presence_penalty": 0.4, "frequency_penalty": 0.3}
    for window in (0, 1, 3, 5, 7, 9, 100, -1):
        reach = window if window >= 0 else 100
        seen = [*prompt, *answer][max(0, len(prompt) + len(answer) - reach) :]
        counted = answer[max(0, len(answer) - reach) :]
        expected = logits.copy()
        for token in set(seen):
            expected[token] *= np.float32(1.6) if expected[token] < 0 else np.float32(1 / 1.6)
        for token in set(counted):
            expected[token] -= np.float32(0.4 + 0.3 * counted.count(token))
        growing = Sampler(drawing(**settings, repeat_last_n=window))
        for length in range(len(answer) + 1):
            found = growing.candidates(logits, prompt, answer[:length])
        np.testing.assert_allclose(found.scores, expected, rtol=1e-5)


ORDER: list[tuple[dict[str, Any], tuple[float, ...], set[int], set[int]]] = [
    ({"top_k": 3, "top_p": 0.65}, (0.4, 0.2, 0.2, 0.1, 0.1), {0, 1}, {0, 1, 2}),
    ({"temperature": 2.0, "top_p": 0.55}, (0.6, 0.2, 0.1, 0.1), {0, 1}, {0}),
    ({"presence_penalty": 2.0, "top_k": 1}, (0.6, 0.2, 0.12, 0.08), {2}, {0}),
    ({"dry_multiplier": 2.0, "top_k": 1}, (0.6, 0.2, 0.1, 0.1), {1}, {0}),
    ({"logit_bias": {3: 9.0}, "top_k": 2}, (0.6, 0.2, 0.1, 0.1), {0, 3}, {0, 1}),
    ({"min_p": 0.25, "xtc_probability": 1, "xtc_threshold": 0.12}, (0.5, 0.2, 0.15, 0.1, 0.05), {2}, {2, 3, 4}),
]
"""Settings, probabilities, and the tokens left in the default order and in the opposite one."""


@pytest.mark.parametrize(("settings", "before", "forwards", "backwards"), ORDER)
def test_samplers_work_in_the_order_that_is_asked_for(
    settings: dict[str, Any], before: tuple[float, ...], forwards: set[int], backwards: set[int]
) -> None:
    logits, answer = logits_of(*before), [1, 0, 1, 0, 1]
    assert left(drawing(**settings), logits, [2], answer).keys() == forwards
    assert left(drawing(**settings, samplers=list(SAMPLERS)), logits, [2], answer).keys() == forwards
    assert left(drawing(**settings, samplers=LAST_FIRST), logits, [2], answer).keys() == backwards


def test_a_bias_that_no_order_names_comes_first() -> None:
    logits = np.array([1, 2, 3], np.float32)
    settings = {"temperature": 1.0, "repetition_penalty": 2.0, "logit_bias": {2: 4.0}}
    after, first, unnamed = (
        Sampler(SamplingParams(**settings, samplers=order)).candidates(logits, [2], []).scores.tolist()
        for order in (["penalties", "logit_bias"], ["logit_bias", "penalties"], ["penalties"])
    )
    assert after == [1, 2, 3 / 2 + 4]
    assert first == unnamed == [1, 2, (3 + 4) / 2]


@pytest.mark.parametrize(
    ("settings", "words", "hint"),
    [
        ({"samplers": ["top_k", "tail_free"]}, "there is no sampler 'tail_free'", "Known are penalties, logit_bias"),
        ({"samplers": ["typ_p"]}, "there is no sampler 'typ_p'", "Did you mean typical_p?"),
        ({"samplers": ["temp"]}, "there is no sampler 'temp'", "Did you mean temperature?"),
        ({"samplers": ["top_k", "top_p", "top_k"]}, "samplers names top_k twice", "once"),
        ({"samplers": "top_k"}, "samplers is 'top_k'", "Give a list of names"),
        ({"samplers": [1]}, "samplers is [1]", "Give a list of names"),
        ({"samplers": 7}, "samplers is 7", "Give a list of names"),
        ({"samplers": ["temperature"], "top_k": 5}, "samplers (temperature) does not name top_k", "Add top_k"),
        ({"samplers": ["top_k"], "temperature": 0.7}, "samplers (top_k) does not name temperature", "Add temperature"),
        ({"samplers": [], "dry_multiplier": 1.0}, "samplers (empty) does not name dry", "Add dry"),
        ({"samplers": ["top_k"], "presence_penalty": 1.0}, "does not name penalties", "Add penalties"),
        ({"mirostat": 1}, "mirostat 1 is not available", "Use 2"),
        ({"mirostat": 3}, "mirostat must be a whole number between 0 and 2 (got 3)", "Leave"),
        ({"dynatemp_range": -0.1}, "dynatemp_range must be a number between 0 and 100", "Leave"),
        ({"dynatemp_exponent": math.inf}, "dynatemp_exponent", "Leave"),
        ({"top_n_sigma": -2}, "top_n_sigma must be a number between -1 and 100 (got -2)", "Leave"),
        ({"xtc_probability": 1.1}, "xtc_probability must be a number between 0 and 1", "Leave"),
        ({"xtc_threshold": "0.1"}, "xtc_threshold", "Leave"),
        ({"mirostat_tau": -1}, "mirostat_tau", "Leave"),
        ({"mirostat_eta": 2}, "mirostat_eta", "Leave"),
        ({"repeat_last_n": -2}, "repeat_last_n must be a whole number between -1 and", "Leave"),
        ({"repeat_last_n": 1.5}, "repeat_last_n", "Leave"),
        ({"dry_multiplier": -1}, "dry_multiplier", "Leave"),
        ({"dry_base": 0.5}, "dry_base must be a number between 1 and 100", "Leave"),
        ({"dry_allowed_length": 0}, "dry_allowed_length must be a whole number between 1 and", "Leave"),
        ({"dry_penalty_last_n": True}, "dry_penalty_last_n", "Leave"),
        ({"dry_breaker_ids": "13"}, "dry_breaker_ids is '13'", "Give a collection of token ids"),
        ({"dry_breaker_ids": 13}, "dry_breaker_ids is 13", "Give a collection of token ids"),
        ({"dry_breaker_ids": [13, ()]}, "a sequence of no tokens", "Give a collection of token ids"),
        ({"dry_breaker_ids": [(5, -1)]}, "A token id in dry_breaker_ids must be a whole number", "Leave"),
        ({"dry_breaker_ids": ["x"]}, "A token id in dry_breaker_ids must be a whole number", "Leave"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(settings: dict[str, Any], words: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        SamplingParams(**{"temperature": 1.0, **settings})
    assert words in error.value.message
    assert hint in error.value.hint


def test_an_order_may_leave_out_what_has_no_settings() -> None:
    assert SamplingParams(samplers=["top_k"], top_k=5).active == (), "greedy choice asks no filter"
    assert drawing(samplers=["top_k"], top_k=5).active == ("top_k",)
    assert drawing(samplers=[], logit_bias={1: 2.0}).active == ("logit_bias",)


def test_names_of_other_programs_lead_to_options_that_exist() -> None:
    ours = {field.name for field in fields(SamplingParams)}
    others = {"max_tokens", "stop", "ignore_eos", "tools", "system", "dry_sequence_breakers"}
    assert set(OTHER_NAMES.values()) <= ours | others
    assert not ours & set(OTHER_NAMES)


PLAIN: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.1, "seed": 1, "logprobs": 5},
    {"repetition_penalty": 1.1, "presence_penalty": 1, "frequency_penalty": 0.1, "logit_bias": {1: 2}},
    {"temperature": 0.8, "dynatemp_exponent": 2, "xtc_threshold": 0.3, "mirostat_tau": 3, "dry_base": 2},
    {"temperature": 0.8, "top_n_sigma": -1, "samplers": ["temperature"]},
    {"temperature": 1.0, "top_k": 40, "samplers": ["top_k", "temperature"]},
    {"typical_p": 0.5, "mirostat": 2, "xtc_probability": 1, "dynatemp_range": 1},
    {"repeat_last_n": 5, "dry_multiplier": 1, "dry_penalty_last_n": 0},
    {"repetition_penalty": 1.5, "repeat_last_n": -1},
]
BEYOND: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"temperature": 1, "typical_p": 0.5}, ("typical_p",)),
    ({"temperature": 1, "top_n_sigma": 1, "xtc_probability": 0.1}, ("top_n_sigma", "xtc_probability")),
    ({"dry_multiplier": 1}, ("dry_multiplier",)),
    ({"temperature": 1, "dynatemp_range": 1}, ("dynatemp_range",)),
    ({"temperature": 1, "mirostat": 2}, ("mirostat",)),
    ({"presence_penalty": 1, "repeat_last_n": 5}, ("repeat_last_n",)),
    ({"presence_penalty": 1, "repeat_last_n": 0}, ("repeat_last_n",)),
    ({"temperature": 0.5, "top_k": 40, "samplers": ["top_k", "temperature"]}, ("samplers",)),
    ({"repetition_penalty": 1.5, "logit_bias": {1: 1}, "samplers": ["penalties"]}, ("samplers",)),
]


@pytest.mark.parametrize("settings", PLAIN)
def test_settings_that_every_device_follows_are_plain(settings: dict[str, Any]) -> None:
    assert SamplingParams(**settings).plain


@pytest.mark.parametrize(("settings", "beyond"), BEYOND)
def test_settings_that_only_the_host_follows_are_named(settings: dict[str, Any], beyond: tuple[str, ...]) -> None:
    params = SamplingParams(**settings)
    assert params.beyond_plain == beyond
    assert not params.plain


def test_every_sampler_at_once_repeats_itself_for_a_seed() -> None:
    settings = {
        "temperature": 0.9, "dynatemp_range": 0.3, "top_n_sigma": 2.5, "top_k": 50, "typical_p": 0.98, "top_p": 0.97,
        "min_p": 0.01, "xtc_probability": 0.5, "xtc_threshold": 0.05, "mirostat": 2, "repetition_penalty": 1.1,
        "presence_penalty": 0.1, "frequency_penalty": 0.1, "repeat_last_n": 16, "dry_multiplier": 0.8,
        "logit_bias": {3: 1.0},
    }  # fmt: skip

    def answer(seed: int | None) -> list[int]:
        sampler, tokens = Sampler(SamplingParams(**settings, seed=seed)), list[int]()
        for step in range(60):
            logits = random_logits(step)
            before = logits.copy()
            tokens.append(sampler.sample(logits, [1, 2, 3], tokens).id)
            np.testing.assert_array_equal(logits, before)
        return tokens

    assert answer(5) == answer(5)
    assert answer(5) != answer(6)
    assert answer(None) != answer(None)
