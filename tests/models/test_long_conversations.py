"""Conversations that outgrow a boundary give what a fresh run over the same tokens gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from halfbyte.cpu import CpuExecutor
from halfbyte.reference.executor import ReferenceExecutor
from halfbyte.runtime import Engine, SamplingParams
from tests.models.tiny import VOCABULARY, tiny

PROMPT = np.random.default_rng(1).integers(3, VOCABULARY - 8, 20).tolist()


def greedy_by_fresh_runs(family: str, count: int) -> list[int]:
    """transformers' greedy continuation, every token from a full pass over all tokens before it."""
    ids = list(PROMPT)
    for _ in range(count):
        ids.append(int(np.argmax(tiny(family).logits(ids)[-1])))
    return ids[len(PROMPT) :]


@pytest.mark.parametrize("device", [ReferenceExecutor, CpuExecutor])
@pytest.mark.parametrize(
    "family", ["phi-3.5-mini", "phi-4-mini", "gemma-3-1b", "mistral-7b-v0.1", "lfm-2", "qwen-3.5-text"]
)
def test_decoding_across_the_boundary_equals_fresh_runs(family: str, device: Any) -> None:
    """LongRoPE's switch is at 24 tokens; the windows of 17 and 19 are full, and their rings wrap, before the end."""
    model = tiny(family)
    engine = Engine(device(model.plan(tokens=8, rows=1, block_size=4), model), rope_switch=model.spec.rope_switch)
    sequence = engine.submit(PROMPT, SamplingParams(), max_tokens=60)
    while not engine.idle:
        engine.step()
    assert sequence.generated_ids == greedy_by_fresh_runs(family, 60)


def test_sequences_side_by_side_give_what_each_gives_alone() -> None:
    model = tiny("llama-3.2-1b")
    engine = Engine(CpuExecutor(model.plan(tokens=16, rows=4, sequences=4, block_size=8), model))
    prompts = [PROMPT[:n] for n in (3, 20, 11, 7, 1)]
    sequences = [engine.submit(prompt, SamplingParams(), max_tokens=12) for prompt in prompts]
    together: dict[int, list[int]] = {id(s): [] for s in sequences}
    while any(s.finish_reason is None for s in sequences):
        for output in engine.step():
            together[id(output.sequence)].append(output.token_id)
    for prompt, sequence in zip(prompts, sequences, strict=True):
        with torch.no_grad():
            expected = model.model.generate(
                torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None
            )
        assert together[id(sequence)] == expected[0, len(prompt) :].tolist()
