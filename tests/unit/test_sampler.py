"""Sampling keeps what transformers' processors keep, counts as OpenAI counts, and repeats itself for a seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from halfbyte.errors import DeviceError, UsageError
from halfbyte.sampling.noise import noise
from halfbyte.sampling.params import SamplingParams
from halfbyte.sampling.sampler import Sampler

VOCAB = 1000
LARGE = 50_000


def logits_of(seed: int, vocab: int = VOCAB, spread: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, vocab).astype(np.float32)


def drawn_ids(params: SamplingParams, logits: np.ndarray, draws: int) -> set[int]:
    sampler = Sampler(params)
    return {sampler.sample(logits, [0] * position, []).id for position in range(draws)}


def kept_by(params: SamplingParams, scores: np.ndarray) -> set[int]:
    """Ids that survive the filters of `params`, in their order."""
    return set(Sampler(params).candidates(scores, [0], []).ids.tolist())


def kept_by_transformers(processors: list, scores: np.ndarray) -> set[int]:
    rows = torch.from_numpy(scores)[None].double()
    for processor in processors:
        rows = processor(None, rows)
    return set(torch.isfinite(rows[0]).nonzero()[:, 0].tolist())


WARPERS = {
    "top_k": ({"top_k": 40}, [hf.TopKLogitsWarper(40)]),
    "top_k of one": ({"top_k": 1}, [hf.TopKLogitsWarper(1)]),
    "top_k of all": ({"top_k": 10**6}, [hf.TopKLogitsWarper(10**6)]),
    "top_p": ({"top_p": 0.9}, [hf.TopPLogitsWarper(0.9)]),
    "top_p, nearly all": ({"top_p": 0.999}, [hf.TopPLogitsWarper(0.999)]),
    "top_p of nothing": ({"top_p": 0.0}, [hf.TopPLogitsWarper(0.0)]),
    "min_p": ({"min_p": 0.05}, [hf.MinPLogitsWarper(0.05)]),
    "typical_p": ({"typical_p": 0.4}, [hf.TypicalLogitsWarper(0.4)]),
    "typical_p, nearly all": ({"typical_p": 0.95}, [hf.TypicalLogitsWarper(0.95)]),
    "all in order": (
        {"top_k": 200, "typical_p": 0.9, "top_p": 0.8, "min_p": 0.02},
        [
            hf.TopKLogitsWarper(200),
            hf.TypicalLogitsWarper(0.9),
            hf.TopPLogitsWarper(0.8),
            hf.MinPLogitsWarper(0.02),
        ],
    ),
}


@pytest.mark.parametrize("vocab", [7, VOCAB, LARGE])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("name", WARPERS)
def test_filters_keep_what_transformers_keeps(name: str, temperature: float, vocab: int) -> None:
    fields, warpers = WARPERS[name]
    for seed, spread in ((1, 3.0), (2, 0.3)):
        logits = logits_of(seed, vocab, spread)
        ours = kept_by(SamplingParams(temperature=temperature, **fields), logits)
        theirs = kept_by_transformers([hf.TemperatureLogitsWarper(temperature), *warpers], logits)
        # Sums over tens of thousands of tokens, float32 here, may put the last token on either side.
        assert len(ours ^ theirs) <= (len(theirs) > 10_000)


def test_top_k_keeps_ties_as_transformers_does() -> None:
    logits = np.array([1, 3, 2, 2, 2, 0], np.float32)
    assert kept_by(SamplingParams(temperature=1, top_k=2), logits) == {1, 2, 3, 4}
    assert kept_by_transformers([hf.TopKLogitsWarper(2)], logits) == {1, 2, 3, 4}


def test_repetition_penalty_is_that_of_transformers() -> None:
    prompt, answer = [3, 5, 3, 7], [11, 5, 11]
    processor = hf.RepetitionPenaltyLogitsProcessor(1.7)
    sampler = Sampler(SamplingParams(repetition_penalty=1.7))
    for seed in range(200):
        logits = logits_of(seed, 12, 1.0)
        expected = processor(torch.tensor([prompt + answer]), torch.from_numpy(logits)[None].clone())
        assert sampler.sample(logits, prompt, answer).id == int(expected.argmax())


def test_presence_and_frequency_count_the_answer_only() -> None:
    logits = np.array([5.0, 4.5, 4.2, 4.0], np.float32)
    presence = Sampler(SamplingParams(presence_penalty=0.6))
    assert [presence.sample(logits, [0, 1], answer).id for answer in ([], [0], [0, 0], [0, 0, 1])] == [0, 1, 1, 0]
    frequency = Sampler(SamplingParams(frequency_penalty=0.3))
    assert [frequency.sample(logits, [0, 1], answer).id for answer in ([], [0], [0, 0], [0, 0, 1])] == [0, 0, 1, 0]


def test_penalties_counted_token_by_token_equal_those_counted_at_once() -> None:
    fields = {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.7}
    growing, answer = Sampler(SamplingParams(**fields)), []
    for seed in range(60):
        logits = logits_of(seed, 10, 1.0)
        token = growing.sample(logits, [1, 2], answer).id
        assert token == Sampler(SamplingParams(**fields)).sample(logits, [1, 2], answer).id
        answer.append(token)


def test_bias_moves_a_token_up_and_out() -> None:
    logits = np.array([1, 2, 3], np.float32)
    assert Sampler(SamplingParams(logit_bias={0: 5})).sample(logits, [0], []).id == 0
    assert drawn_ids(SamplingParams(temperature=1, logit_bias={2: -100}, seed=0), logits, 200) == {0, 1}


def test_greedy_takes_the_lowest_of_equals_whatever_the_filters() -> None:
    logits = np.array([0, 4, 1, 4], np.float32)
    assert Sampler(SamplingParams(typical_p=0.1, top_k=1)).sample(logits, [0], []).id == 1


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(SamplingParams(temperature=1, seed=7))
    counts = np.bincount([sampler.sample(logits, [0] * i, []).id for i in range(4000)], minlength=4)
    assert counts / 4000 == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_draws_from_a_large_vocabulary_follow_the_distribution() -> None:
    logits = np.full(LARGE, -100, np.float32)
    likely = [0, 511, 512, 30_001, LARGE - 1]
    logits[likely] = 0
    sampler = Sampler(SamplingParams(temperature=1, seed=7))
    drawn = [sampler.sample(logits, [0] * position, []).id for position in range(1000)]
    assert {token: drawn.count(token) / 1000 for token in likely} == pytest.approx(dict.fromkeys(likely, 0.2), abs=0.05)


def test_the_same_seed_repeats_and_no_seed_does_not() -> None:
    def text(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1, seed=seed))
        return [sampler.sample(logits_of(1), [0] * position, []).id for position in range(20)]

    assert text(5) == text(5)
    assert text(5) != text(6)
    assert text(None) != text(None)


def test_log_probabilities_are_the_models_own() -> None:
    logits = logits_of(3, LARGE)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy()
    params = SamplingParams(temperature=0.3, logit_bias={9: 50}, presence_penalty=1, top_p=0.5, logprobs=5)
    sampled = Sampler(params).sample(logits, [0], [4])
    assert sampled.id == 9
    assert sampled.logprob == pytest.approx(expected[9], abs=1e-4)
    likeliest = np.argsort(-expected)[:5]
    assert [token for token, _ in sampled.top] == likeliest.tolist()
    assert [value for _, value in sampled.top] == pytest.approx(expected[likeliest], abs=1e-4)


def test_as_many_log_probabilities_as_asked_for_despite_ties() -> None:
    logits = np.array([2, 1, 1, 1, 0], np.float32)
    assert [token for token, _ in Sampler(SamplingParams(logprobs=2)).sample(logits, [0], []).top] == [0, 1]


def test_sampling_leaves_the_logits_alone() -> None:
    logits = logits_of(4)
    before = logits.copy()
    params = SamplingParams(temperature=0.5, repetition_penalty=2, logit_bias={1: 3}, typical_p=0.9, top_p=0.9, seed=1)
    Sampler(params).sample(logits, [1, 2], [3])
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_invalid_logits_are_a_device_error(bad: float, temperature: float) -> None:
    logits = logits_of(1)
    logits[17] = bad
    with pytest.raises(DeviceError, match=f"no valid logits: {bad} for token 17"):
        Sampler(SamplingParams(temperature=temperature)).sample(logits, [0], [])


def test_a_token_that_the_model_rules_out_is_never_drawn() -> None:
    logits = np.array([0, -np.inf, 0, -np.inf], np.float32)
    for fields in ({}, {"top_k": 3}, {"typical_p": 0.99}, {"top_p": 0.99}, {"min_p": 0.01}):
        assert drawn_ids(SamplingParams(temperature=1, seed=1, **fields), logits, 50) == {0, 2}


def test_a_tiny_temperature_is_greedy_and_a_small_one_does_not_overflow() -> None:
    logits = logits_of(1, spread=30)
    assert drawn_ids(SamplingParams(temperature=1e-30), logits, 3) == {int(logits.argmax())}
    assert drawn_ids(SamplingParams(temperature=1e-5), logits, 3) == {int(logits.argmax())}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", "0.7"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_k", True),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("typical_p", math.inf),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("seed", -1),
        ("seed", "x"),
        ("logprobs", 21),
        ("logit_bias", [1]),
        ("logit_bias", {-1: 0.0}),
        ("logit_bias", {3: 101.0}),
        ("logit_bias", {"a": 1.0}),
    ],
)
def test_values_out_of_range_are_usage_errors_that_name_them(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name) as error:
        SamplingParams(**{name: value})
    assert error.value.hint.startswith(("Give ", "Leave "))


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 30.0])
def test_a_draw_is_the_largest_of_all_scores_and_noise(spread: float) -> None:
    """Though tokens that cannot win get no noise."""
    for position in range(1, 30):
        logits = (np.random.default_rng(position).normal(size=40_000) * spread).astype(np.float32)
        drawn = Sampler(SamplingParams(temperature=1, seed=7)).sample(logits, [0] * position, [])
        assert drawn.id == int(np.argmax(logits + noise(7, position, np.arange(logits.size))))
