"""Batches of decodes and prompts on a GPU: each token gets what it would get alone, whoever else is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from halfbyte.gpu.checks.oracle import Oracle
from halfbyte.gpu.run.executor import GpuExecutor
from halfbyte.gpu.shaders import rules
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.plan import Batch, Plan
from halfbyte.reference.executor import ReferenceExecutor
from tests.device.gpu import software_gpu
from tests.models.tiny import VOCABULARY, tiny

SEQUENCES, CONTEXT, BLOCK = 70, 96, 8
TOLERANCE = 1e-4


def mixed(plan: Plan, held: np.ndarray, decodes: list[int], prompts: dict[int, int], seed: int = 0) -> Batch:
    """The next token of some slots, then so many of others, after what each holds; the logits of each one's last."""
    random = np.random.default_rng(seed)
    counts = [*((slot, 1) for slot in decodes), *prompts.items()]
    sequences = np.repeat(np.array([slot for slot, _ in counts], np.int32), [count for _, count in counts])
    positions = np.concatenate([held[slot] + np.arange(count, dtype=np.int32) for slot, count in counts])
    tables = {
        group.blocks: np.random.default_rng(1)
        .permutation(plan.sequences * group.columns)
        .astype(np.int32)
        .reshape(plan.sequences, -1)
        for group in plan.groups
    }
    tables = plan.own_tables() | tables
    rows = np.cumsum([count for _, count in counts]).astype(np.int32) - 1
    ids = random.integers(3, VOCABULARY - 8, len(sequences), np.int32)
    return Batch(ids, positions, sequences, np.zeros_like(ids), tables, rows, len(decodes))


def schedule(plan: Plan, seed: int, steps: int) -> Iterator[Batch]:
    """Batches in which sequences of all lengths go on, and others join with prompts or go on with them."""
    random = np.random.default_rng(seed)
    held = np.zeros(plan.sequences, np.int32)
    for _ in range(steps):
        slots = random.permutation(plan.sequences)
        old = [int(slot) for slot in slots if 0 < held[slot] < plan.context]
        decodes = old[: random.choice([0, 3, 9, 20, 40])]
        left, prompts = plan.tokens - len(decodes), {}
        for slot in [int(slot) for slot in slots if slot not in decodes][: random.integers(not decodes, 8)]:
            count = min(int(random.integers(1, 40)), left, plan.context - int(held[slot]))
            if count > 0:
                prompts[slot] = count
                left -= count
        yield mixed(plan, held, decodes, prompts, int(random.integers(1 << 30)))
        for slot, count in [*((slot, 1) for slot in decodes), *prompts.items()]:
            held[slot] += count


@pytest.mark.parametrize(
    ("family", "baseline"),
    [
        ("phi-4-mini", False),
        ("gemma-3-1b", False),
        ("mistral-7b-v0.1", False),
        ("gemma-3-1b", True),
        ("lfm-2-four-inputs", False),
        ("qwen-3.5-text", False),
        ("qwen-3.5-text", True),
    ],
)
def test_decodes_and_prompts_in_any_mixture_agree_with_the_reference(family: str, baseline: bool) -> None:
    """Key heads that queries share, windows shorter than the context, states, prompts in pieces, up to 40 decodes."""
    model = tiny(family)
    plan = model.plan(sequences=SEQUENCES, context=CONTEXT, block_size=BLOCK, tokens=90)
    gpu = GpuExecutor(plan, model, device=software_gpu(baseline=baseline), off=("int8",), tuning=Tuning())
    reference = ReferenceExecutor(plan, model)
    sizes = set()
    for batch in schedule(plan, seed=len(family), steps=12):
        got, expected = gpu.run(batch), reference.run(batch)
        sizes.add((batch.num_decodes > 0, batch.num_decodes < len(batch.token_ids)))
        assert np.abs(expected).max() > 0.5
        assert np.abs(got - expected).max() < TOLERANCE, (batch.num_decodes, len(batch.token_ids))
    assert {(True, True), (False, True)} <= sizes


@pytest.mark.parametrize("count", [9, 16, 17, 32, 33, 64])
@pytest.mark.parametrize("busy", [1, 40], ids=["one split", "several splits"])
def test_decodes_alone_agree_with_the_reference(count: int, busy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some see many keys, others one."""
    monkeypatch.setattr(rules, "FOR_ALL", busy)
    monkeypatch.setattr(rules, "_MANY_KEYS", dict.fromkeys((1, 2, 3, 4), (64, 1, 1, 1)))
    model = tiny("phi-4-mini")
    plan = model.plan(sequences=SEQUENCES, context=CONTEXT, block_size=BLOCK)
    gpu = GpuExecutor(plan, model, device=software_gpu(), off=("int8",), tuning=Tuning())
    reference = ReferenceExecutor(plan, model)
    held = np.zeros(SEQUENCES, np.int32)
    for slot, length in ((0, 60), (1, 30), (2, 64)):
        for executor in (gpu, reference):
            executor.run(mixed(plan, held, [], {slot: length}))
        held[slot] = length
    for executor in (gpu, reference):
        executor.run(mixed(plan, held, [], dict.fromkeys(range(3, SEQUENCES - 6), 1)))
    held[3 : SEQUENCES - 6] = 1
    batch = mixed(plan, held, list(range(count))[::-1], {})
    assert np.abs(gpu.run(batch) - reference.run(batch)).max() < TOLERANCE


@pytest.mark.parametrize("stored", ["q4g32", "q6_k"])
def test_rounded_activations_of_a_mixed_batch_agree_with_the_oracle(stored: str) -> None:
    """A sum that differs in its last bit may round one value to its neighbour; nearly all agree."""
    model = replace(tiny("llama-3.2-3b"), weight_format=stored)
    plan = model.plan(sequences=SEQUENCES, context=CONTEXT, block_size=BLOCK, tokens=90)
    gpu = GpuExecutor(plan, model, device=software_gpu(), off=(), tuning=Tuning())
    oracle = Oracle(plan, model, int8=True)
    errors = []
    for batch in schedule(plan, seed=5, steps=8):
        expected = oracle.run(batch)
        errors += list(np.abs(gpu.run(batch) - expected).max(axis=1) / np.abs(expected).max())
    assert np.median(errors) < 1e-3
    assert max(errors) < 0.05


def test_a_decode_is_the_same_whichever_prompts_are_beside_it() -> None:
    """In programs of one size, bit for bit: neither its splits nor its sums depend on the other rows."""
    model = replace(tiny("llama-3.2-1b"), weight_format="q4g32")
    plan = model.plan(sequences=SEQUENCES, context=CONTEXT, block_size=BLOCK, tokens=90)
    gpu = GpuExecutor(plan, model, device=software_gpu(), off=(), tuning=Tuning())
    held = np.zeros(SEQUENCES, np.int32)
    gpu.run(mixed(plan, held, [], {0: 50, 1: 40}))
    held[:2] = 50, 40
    token = mixed(plan, held, [0], {5: 4, 6: 4})
    alone = gpu.run(token)[0].copy()
    for decodes, prompts in (([0, 1], {7: 9}), ([0], {8: 12, 2: 3}), ([0], {9: 5, 4: 7})):
        batch = mixed(plan, held, decodes, prompts)
        batch.token_ids[0] = token.token_ids[0]
        assert np.array_equal(gpu.run(batch)[0], alone)
