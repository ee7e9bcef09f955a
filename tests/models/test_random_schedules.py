"""Real executors in float32 give every sequence what it gets alone, whatever shares its blocks or takes them away."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.cpu import CpuExecutor
from halfbyte.plan import Executor
from halfbyte.reference.executor import ReferenceExecutor
from halfbyte.runtime import Engine, SamplingParams, Sequence
from tests.models.tiny import VOCABULARY, tiny

BLOCK = 4
TEXT = np.random.default_rng(3).integers(3, VOCABULARY - 8, 30).tolist()
GREEDY = (0.0, 0)
SETTINGS = (GREEDY, (1.0, 5), (2.0, 9))
"""Temperatures and seeds."""
FAMILIES = ("llama-3.2-1b", "mistral-7b-v0.1", "gemma-3-1b", "phi-4-mini")
"""Without a window; all layers, and most layers, with one; with LongRoPE, which switches at 24 tokens."""

REQUEST = st.tuples(
    st.just("ask"), st.integers(0, 30), st.lists(st.integers(3, 20), min_size=1, max_size=4), st.sampled_from(SETTINGS),
    st.integers(1, 2), st.integers(1, 20), st.integers(0, 1),
)  # fmt: skip
ACTIONS = st.lists(
    st.one_of(REQUEST, st.tuples(st.just("step"), st.integers(1, 8)), st.tuples(st.just("cancel"), st.integers(0, 5))),
    min_size=2,
    max_size=8,
)


@cache
def executor_of(device: type[Any], family: str, cache_tokens: int, sequences: int) -> Executor:
    model = tiny(family)
    plan = model.plan(tokens=8, rows=4, sequences=sequences, block_size=BLOCK, context=64, cache_tokens=cache_tokens)
    options = {"activations": "f32"} if device is CpuExecutor else {}
    made: Executor = device(plan, model, **options)
    return made


@cache
def alone(
    device: type[Any], family: str, prompt: tuple[int, ...], temperature: float, seed: int, count: int
) -> list[int]:
    """The answer of an engine that has nothing else, and has never had."""
    engine = Engine(executor_of(device, family, 64, 1), rope_switch=tiny(family).spec.rope_switch)
    sequence = engine.submit(prompt, SamplingParams(temperature=temperature, seed=seed), max_tokens=count)
    while not engine.idle:
        engine.step()
    return sequence.generated_ids


def check_schedule(device: type[Any], family: str, actions: list[Any]) -> None:
    engine = Engine(executor_of(device, family, 80, 4), rope_switch=tiny(family).spec.rope_switch, prefill_chunk=5)
    asked: list[Sequence] = []
    for action, *details in actions:
        if action == "ask":
            cut, tail, (temperature, seed), n, count, priority = details
            sampling = SamplingParams(temperature=temperature, seed=seed)
            made = engine.requests([*TEXT[:cut], *tail], sampling, n, max_tokens=count, priority=priority)
            for sequence in made:
                engine.add(sequence)
            asked += made
        elif action == "step":
            for _ in range(details[0]):
                engine.step()
        elif asked:
            engine.cancel(asked[details[0] % len(asked)])
    while not engine.idle:
        engine.step()
    for s in asked:
        expected = alone(device, family, s.prompt_ids, s.sampling.temperature, s.sampling.seed or 0, s.max_tokens)
        assert s.generated_ids == (expected[: len(s.generated_ids)] if s.finish_reason == "cancelled" else expected)


@pytest.mark.parametrize("family", FAMILIES)
@given(actions=ACTIONS)
@settings(max_examples=60, deadline=None)
def test_the_cpu_gives_every_sequence_what_it_gets_alone(family: str, actions: list[Any]) -> None:
    check_schedule(CpuExecutor, family, actions)


@pytest.mark.parametrize("family", FAMILIES)
@given(actions=ACTIONS)
@settings(max_examples=15, deadline=None)
def test_the_reference_gives_every_sequence_what_it_gets_alone(family: str, actions: list[Any]) -> None:
    check_schedule(ReferenceExecutor, family, actions)


@pytest.mark.parametrize("device", [CpuExecutor, ReferenceExecutor])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_begin_alike_share_what_is_computed(family: str, device: type[Any]) -> None:
    """Those of LongRoPE's short and long sets each their own; windowed layers where the window is still there."""
    engine = Engine(executor_of(device, family, 80, 4), rope_switch=tiny(family).spec.rope_switch)
    for cut, cached in ((12, 0), (12, 12), (28, 0 if family == "phi-4-mini" else 12), (28, 28)):
        sequence = engine.submit([*TEXT[:cut], 11], SamplingParams(), max_tokens=3)
        while not engine.idle:
            engine.step()
        assert sequence.num_cached_tokens == cached
        assert sequence.generated_ids == alone(device, family, sequence.prompt_ids, *GREEDY, 3)


def test_conversations_beyond_the_cache_give_way_and_lose_nothing() -> None:
    engine = Engine(executor_of(CpuExecutor, "llama-3.2-1b", 80, 4))
    sequences = [engine.submit([i, *TEXT[:10]], SamplingParams(), max_tokens=40) for i in range(3, 7)]
    while not engine.idle:
        engine.step()
    assert sum(s.num_preemptions for s in sequences) > 0
    for s in sequences:
        assert s.generated_ids == alone(CpuExecutor, "llama-3.2-1b", s.prompt_ids, *GREEDY, 40)


@pytest.mark.parametrize("device", [CpuExecutor, ReferenceExecutor])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_moves_from_one_executor_to_another(family: str, device: type[Any]) -> None:
    switch = tiny(family).spec.rope_switch
    prompt = [*TEXT[:28], 12]
    first = Engine(executor_of(device, family, 80, 4), rope_switch=switch)
    first.submit(prompt, SamplingParams(), max_tokens=1)
    while not first.idle:
        first.step()
    taken = first.cached_prompt(prompt, executor_of(device, family, 80, 4))
    assert taken.token_ids == tuple(prompt[:28])
    memory = executor_of(device, family, 64, 1)
    second = Engine(memory, rope_switch=switch)
    second.restore(taken, memory)
    sequence = second.submit(prompt, SamplingParams(), max_tokens=12)
    while not second.idle:
        second.step()
    assert sequence.num_cached_tokens == 28
    assert sequence.generated_ids == alone(device, family, tuple(prompt), *GREEDY, 12)
