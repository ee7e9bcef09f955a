"""Every family's arithmetic against transformers in float32: full passes, chunks, decoding, both executors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from halfbyte.cpu import CpuExecutor
from halfbyte.plan import Draw
from halfbyte.reference.executor import ReferenceExecutor
from halfbyte.sampling import Sampled, Sampler, SamplingParams
from tests.models.tiny import FAMILIES, VOCABULARY, Tiny, batch_of, feed, feed_hidden, tiny

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


@pytest.mark.parametrize("fused", [True, False])
def test_hidden_states_are_those_before_the_output_matrix(family: str, device: str, fused: bool) -> None:
    """Of all tokens, however few rows of logits there may be."""
    model, ids, start, found = tiny(family), prompt(40), 0, []
    executor = EXECUTORS[device](model.plan(rows=1, fused=fused), model)
    for count in (25, 1, 14):
        found.append(feed_hidden(executor, ids[start : start + count], start=start, rope_set=rope_set(model, 40)))
        start += count
    expected = model.hidden(ids)
    assert np.abs(expected).max() > 1
    assert np.abs(np.concatenate(found) - expected).max() < TOLERANCE


def test_hidden_states_come_beside_logits(family: str, device: str) -> None:
    model, ids = tiny(family), prompt(20)
    executor = EXECUTORS[device](model.plan(rows=1), model)
    batch = replace(batch_of(executor.plan, ids), hidden=True, logit_rows=np.array([19], np.int32))
    pending = executor.submit(batch, [Draw(0, Sampler(SamplingParams()), (), ())])
    ((token,),) = pending.tokens()
    assert isinstance(token, Sampled)
    assert token.id == int(model.logits(ids)[19].argmax())
    assert np.abs(pending.hidden() - model.hidden(ids)).max() < TOLERANCE
    with pytest.raises(TypeError, match="did not ask for hidden states"):
        executor.submit(replace(batch, hidden=False, logit_rows=np.empty(0, np.int32)), []).hidden()
