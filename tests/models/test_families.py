"""Every family's arithmetic against transformers in float32: full passes, chunks, decoding, both executors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from halfbyte.cpu import CpuExecutor
from halfbyte.reference.executor import ReferenceExecutor
from tests.models.tiny import FAMILIES, VOCABULARY, Tiny, feed, tiny

EXECUTORS = {"reference": ReferenceExecutor, "cpu": CpuExecutor}
TOLERANCE = 1e-4

pytestmark = [pytest.mark.parametrize("family", FAMILIES), pytest.mark.parametrize("device", EXECUTORS)]


def prompt(length: int) -> list[int]:
    """Token ids below the special image tokens of Gemma's vision models."""
    return np.random.default_rng(length).integers(3, VOCABULARY - 8, length).tolist()


def rope_set(model: Tiny, total: int) -> int:
    """Which set of LongRoPE factors holds for a sequence of `total` tokens."""
    return int(model.spec.rope_switch is not None and total > model.spec.rope_switch)


def run(device: str, model: Tiny, chunks: list[list[int]], **capacities: Any) -> np.ndarray:
    """Logits of every position when the chunks are fed one after another."""
    executor = EXECUTORS[device](model.plan(**capacities), model)
    total, start, logits = sum(map(len, chunks)), 0, []
    for chunk in chunks:
        logits.append(feed(executor, chunk, start=start, rope_set=rope_set(model, total)))
        start += len(chunk)
    return np.concatenate(logits)


@pytest.mark.parametrize("length", [1, 15, 24, 25, 40, 64])
def test_a_full_pass_agrees(family: str, device: str, length: int) -> None:
    model, ids = tiny(family), prompt(length)
    expected = model.logits(ids)
    assert np.abs(expected).max() > 0.5
    assert np.abs(run(device, model, [ids]) - expected).max() < TOLERANCE


@pytest.mark.parametrize("chunk", [7, 16])
def test_chunked_prefill_then_decode_agrees(family: str, device: str, chunk: int) -> None:
    model, ids = tiny(family), prompt(60)
    chunks = [ids[i : min(i + chunk, 40)] for i in range(0, 40, chunk)] + [[i] for i in ids[40:]]
    got = run(device, model, chunks, tokens=chunk, block_size=4, context=64)
    assert np.abs(got - model.logits(ids)).max() < TOLERANCE


def test_fusions_change_nothing(family: str, device: str) -> None:
    model, ids = tiny(family), prompt(33)
    plain, fused = (run(device, model, [ids], fused=fused) for fused in (False, True))
    assert np.abs(plain - fused).max() < 1e-5
