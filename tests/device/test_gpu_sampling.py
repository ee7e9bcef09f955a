"""Tokens chosen on the GPU: the same filters and penalties as the host's sampler."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from halfbyte.gpu.run.decode import ResidentDecoder
from halfbyte.gpu.run.executor import GpuExecutor
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.sampling.params import SamplingParams
from halfbyte.sampling.sampler import Sampler
from tests.device.gpu import one, software_gpu
from tests.models.tiny import feed, tiny

PROMPT = [5, 9, 33, 60, 9]


@pytest.fixture(scope="module")
def gpu() -> GpuExecutor:
    model = tiny("llama-3.1-8b")
    executor = GpuExecutor(model.plan(), model, device=software_gpu(), off=("int8",), tuning=Tuning())
    feed(executor, PROMPT[:-1])
    return executor


def decode(gpu: GpuExecutor, limit: int, **settings: object) -> list[int]:
    decoder = ResidentDecoder(gpu)
    batch = one(gpu.plan, PROMPT[-1], len(PROMPT) - 1)
    sampling = SamplingParams(**settings)
    return [t.id for t in decoder.decode(batch, sampling, tables=lambda _: None, limit=limit, prompt_ids=PROMPT)]


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


def test_closing_early_leaves_the_gpu_ready(gpu: GpuExecutor) -> None:
    decoder = ResidentDecoder(gpu)
    stream = decoder.decode(one(gpu.plan, 5, 4), SamplingParams(), tables=lambda _: None, limit=40)
    next(stream)
    stream.close()
    assert decode(gpu, 5) == decode(gpu, 12)[:5]


def test_what_the_gpu_cannot_choose_it_says(gpu: GpuExecutor) -> None:
    decoder = ResidentDecoder(gpu)
    assert decoder.supports(SamplingParams(temperature=1.0, top_k=5, seed=1))
    assert not decoder.supports(SamplingParams(temperature=1.0, typical_p=0.9))
    assert not decoder.supports(SamplingParams(logprobs=3))
