"""Real executors in float32 give every sequence what it gets alone, whatever shares its blocks or takes them away.

A few schedules each; a thousand with `--hypothesis-profile=thousand`, as CONTRIBUTING.md says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from halfbyte.cpu import CpuExecutor
from halfbyte.gpu.run.executor import GpuExecutor
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.plan import Executor
from halfbyte.reference.executor import ReferenceExecutor
from halfbyte.runtime import Engine, SamplingParams, Sequence
from tests.device.gpu import software_gpu, software_pipelines
from tests.models.tiny import VOCABULARY, tiny
from tests.scale import examples

BLOCK = 4
TOLERANCE = 1e-4
TEXT = np.random.default_rng(3).integers(3, VOCABULARY - 8, 30).tolist()
GREEDY = (0.0, 0)
SETTINGS = (GREEDY, (1.0, 5), (2.0, 9))
"""Temperatures and seeds."""
FAMILIES = ("llama-3.2-1b", "mistral-7b-v0.1", "gemma-3-1b", "phi-4-mini", "lfm-2", "qwen-3.5-text")
"""Without a window; all layers, and most layers, with one; with LongRoPE, which switches at 24 tokens;
with states."""

REQUEST = st.tuples(
    st.just("ask"), st.integers(0, 30), st.lists(st.integers(3, 20), min_size=1, max_size=4), st.sampled_from(SETTINGS),
    st.integers(1, 2), st.integers(1, 20), st.integers(0, 1),
)  # fmt: skip
EMBEDDING = st.tuples(
    st.just("embed"), st.integers(0, 30), st.lists(st.integers(3, 20), min_size=1, max_size=4),
    st.sampled_from(["mean", "last"]),
)  # fmt: skip
ACTIONS = st.lists(
    st.one_of(
        REQUEST,
        EMBEDDING,
        st.tuples(st.just("step"), st.integers(1, 8)),
        st.tuples(st.just("cancel"), st.integers(0, 5)),
    ),
    min_size=2,
    max_size=8,
)


OPTIONS: dict[type[Any], Callable[[], dict[str, Any]]] = {
    CpuExecutor: lambda: {"activations": "f32", "threads": 1},
    ReferenceExecutor: dict,
    GpuExecutor: lambda: {
        "device": software_gpu(), "pipelines": software_pipelines(), "off": ("int8",), "tuning": Tuning(),
    },
}  # fmt: skip


@cache
def executor_of(device: type[Any], family: str, cache_tokens: int, sequences: int) -> Executor:
    """Made once: what an engine that begins anew finds in its caches is of no use to it."""
    model = tiny(family)
    plan = model.plan(tokens=8, rows=4, sequences=sequences, block_size=BLOCK, context=64, cache_tokens=cache_tokens)
    made: Executor = device(plan, model, **OPTIONS[device]())
    return made


@cache
def rope_switch(family: str) -> int | None:
    return tiny(family).spec.rope_switch


def engine_of(device: type[Any], family: str) -> Engine:
    """An engine that four sequences have to share the blocks of little more than one context."""
    return Engine(executor_of(device, family, 80, 4), rope_switch=rope_switch(family), prefill_chunk=5)


@cache
def alone(
    device: type[Any], family: str, prompt: tuple[int, ...], temperature: float, seed: int, count: int
) -> list[int]:
    """The answer of an engine that has nothing else, and has never had; of a GPU that of the reference."""
    judge = ReferenceExecutor if device is GpuExecutor else device
    engine = Engine(executor_of(judge, family, 64, 1), rope_switch=rope_switch(family))
    sequence = engine.submit(prompt, SamplingParams(temperature=temperature, seed=seed), max_tokens=count)
    finish(engine)
    return sequence.generated_ids


@cache
def hidden(family: str, prompt: tuple[int, ...]) -> np.ndarray:
    """The hidden states of transformers."""
    return tiny(family).hidden(list(prompt))


def finish(engine: Engine) -> None:
    while not engine.idle:
        engine.step()


def check_schedule(device: type[Any], family: str, actions: list[Any]) -> None:
    engine = engine_of(device, family)
    asked: list[Sequence] = []
    pooled: list[tuple[Sequence, str]] = []
    for action, *details in actions:
        if action == "ask":
            cut, tail, (temperature, seed), n, count, priority = details
            sampling = SamplingParams(temperature=temperature, seed=seed)
            made = engine.requests([*TEXT[:cut], *tail], sampling, n, max_tokens=count, priority=priority)
            for sequence in made:
                engine.add(sequence)
            asked += made
        elif action == "embed":
            cut, tail, pooling = details
            pooled.append((engine.pooled([*TEXT[:cut], *tail], pooling), pooling))
            engine.add(pooled[-1][0])
        elif action == "step":
            for _ in range(details[0]):
                engine.step()
        elif asked:
            engine.cancel(asked[details[0] % len(asked)])
    finish(engine)
    for s in asked:
        expected = alone(device, family, s.prompt_ids, s.sampling.temperature, s.sampling.seed or 0, s.max_tokens)
        assert s.generated_ids == (expected[: len(s.generated_ids)] if s.finish_reason == "cancelled" else expected)
    for s, pooling in pooled:
        vector, states = s.pooler.vector, hidden(family, s.prompt_ids)
        assert np.abs(vector - (states.mean(axis=0) if pooling == "mean" else states[-1])).max() < TOLERANCE
    note([*asked, *(s for s, _ in pooled)])


def note(asked: list[Sequence]) -> None:
    """What happened, for `--hypothesis-show-statistics`."""
    event("cancelled", any(s.finish_reason == "cancelled" for s in asked))
    event("gave way", any(s.num_preemptions for s in asked))
    event("shared", any(s.num_cached_tokens for s in asked))


@pytest.mark.parametrize("family", FAMILIES)
@given(actions=ACTIONS)
@settings(max_examples=examples(60), deadline=None)
def test_the_cpu_gives_every_sequence_what_it_gets_alone(family: str, actions: list[Any]) -> None:
    check_schedule(CpuExecutor, family, actions)


@pytest.mark.parametrize("family", FAMILIES)
@given(actions=ACTIONS)
@settings(max_examples=examples(15), deadline=None)
def test_the_reference_gives_every_sequence_what_it_gets_alone(family: str, actions: list[Any]) -> None:
    check_schedule(ReferenceExecutor, family, actions)


@pytest.mark.parametrize("family", FAMILIES)
@given(actions=ACTIONS)
@settings(max_examples=examples(5, among=len(FAMILIES)), deadline=None)
def test_a_gpu_gives_every_sequence_what_it_gets_alone(family: str, actions: list[Any]) -> None:
    """While batches are ahead of what was read."""
    check_schedule(GpuExecutor, family, actions)


@pytest.mark.parametrize("device", [CpuExecutor, ReferenceExecutor])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_begin_alike_share_what_is_computed(family: str, device: type[Any]) -> None:
    """Those of LongRoPE's short and long sets each their own; windowed layers where the window is still there."""
    engine = engine_of(device, family)
    for cut, cached in ((12, 0), (12, 12), (28, 0 if family == "phi-4-mini" else 12), (28, 28)):
        sequence = engine.submit([*TEXT[:cut], 11], SamplingParams(), max_tokens=3)
        finish(engine)
        assert sequence.num_cached_tokens == cached
        assert sequence.generated_ids == alone(device, family, sequence.prompt_ids, *GREEDY, 3)


def test_conversations_beyond_the_cache_give_way_and_lose_nothing() -> None:
    engine = engine_of(CpuExecutor, "llama-3.2-1b")
    sequences = [engine.submit([i, *TEXT[:10]], SamplingParams(), max_tokens=40) for i in range(3, 7)]
    finish(engine)
    assert sum(s.num_preemptions for s in sequences) > 0
    for s in sequences:
        assert s.generated_ids == alone(CpuExecutor, "llama-3.2-1b", s.prompt_ids, *GREEDY, 40)


@pytest.mark.parametrize("device", [CpuExecutor, ReferenceExecutor])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_moves_from_one_executor_to_another(family: str, device: type[Any]) -> None:
    prompt = [*TEXT[:28], 12]
    first = engine_of(device, family)
    first.submit(prompt, SamplingParams(), max_tokens=1)
    finish(first)
    taken = first.cached_prompt(prompt, executor_of(device, family, 80, 4))
    assert taken.token_ids == tuple(prompt[:28])
    memory = executor_of(device, family, 64, 1)
    second = Engine(memory, rope_switch=rope_switch(family))
    second.restore(taken, memory)
    sequence = second.submit(prompt, SamplingParams(), max_tokens=12)
    finish(second)
    assert sequence.num_cached_tokens == 28
    assert sequence.generated_ids == alone(device, family, tuple(prompt), *GREEDY, 12)
