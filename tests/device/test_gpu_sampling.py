"""Tokens chosen on the GPU: the same filters and penalties as the host's sampler."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from halfbyte.gpu.run.executor import GpuExecutor
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.plan import Batch, Draw
from halfbyte.sampling import Sampled, Sampler, SamplingParams
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


def test_tokens_that_nobody_reads_leave_the_gpu_ready(gpu: GpuExecutor) -> None:
    draw = Draw(0, Sampler(SamplingParams()), (), [])
    for _ in range(10):
        gpu.submit(one(gpu.plan, 5, 4), [draw], steps=3)
    assert decode(gpu, 5) == decode(gpu, 12)[:5]


def test_what_the_gpu_cannot_choose_it_says(gpu: GpuExecutor) -> None:
    assert gpu.draws(SamplingParams(temperature=1.0, top_k=5, seed=1))
    assert not gpu.draws(SamplingParams(temperature=1.0, typical_p=0.9))
    assert not gpu.draws(SamplingParams(temperature=1.0, top_n_sigma=1.0))
    assert not gpu.draws(SamplingParams(presence_penalty=1.0, repeat_last_n=64))
    assert not gpu.draws(SamplingParams(temperature=0.5, top_p=0.9, samplers=["top_p", "temperature"]))
    assert not gpu.draws(SamplingParams(logprobs=3))
