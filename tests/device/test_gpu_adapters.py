"""Adapters beside the weights on a GPU: against PEFT in float32, and the NumPy oracle with int8 activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from halfbyte.gpu.checks.oracle import Oracle
from halfbyte.gpu.run.executor import GpuExecutor
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.plan import Draw
from halfbyte.plan.ops import LowRank
from halfbyte.sampling import Sampled, Sampler, SamplingParams
from tests.device.gpu import software_gpu
from tests.models.adapters import Adapted, beside
from tests.models.test_adapters_beside import IDS, OTHERS, joined
from tests.models.tiny import batch_of

TOLERANCE = 2e-3
FAMILY = "llama-3.1-8b"


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("family", ["llama-3.1-8b", "phi-4", "gemma-3-1b", "qwen-2.5", "lfm-2", "qwen-3.5-text"])
def test_two_adapters_and_none_in_one_batch(family: str, baseline: bool, tmp_path: Path) -> None:
    """Prompts in chunks, then token by token, every sequence with another adapter."""
    model = Adapted(family)
    folders = {"first": model.add("first", tmp_path / "1", r=3), "second": model.add("second", tmp_path / "2", seed=9)}
    expected = [model.logits(ids, name) for ids, name in ((IDS, "first"), (OTHERS, None), (OTHERS, "second"))]
    assert np.abs(expected[1] - expected[2]).max() > 0.05, "the adapter shows"
    plan, weights = beside(family, folders, sequences=3, block_size=8)
    gpu = GpuExecutor(plan, weights, device=software_gpu(baseline=baseline), off=("int8",), tuning=Tuning())
    for start, stop in ((0, 11), (11, 12), (12, 15), (15, 16)):
        chunks = zip((IDS, OTHERS, OTHERS), range(3), (1, 0, 2), strict=True)
        parts = [batch_of(plan, ids[start:stop], start, sequence=s, adapter=k) for ids, s, k in chunks]
        got = gpu.run(joined(*parts)).reshape(3, stop - start, -1)
        for found, wanted in zip(got, expected, strict=True):
            assert np.abs(found - wanted[start:stop]).max() < TOLERANCE
    for s, k in ((0, 1), (1, 0), (2, 2)):
        ids = IDS if s == 0 else OTHERS
        got = gpu.run(batch_of(plan, ids[16:17], 16, sequence=s, adapter=k))
        assert np.abs(got - expected[s][16:17]).max() < TOLERANCE
    got = gpu.run(batch_of(plan, IDS, sequence=1))
    assert np.abs(got - model.logits(IDS)).max() < TOLERANCE, "a batch that names none has none"


@pytest.mark.parametrize("targets", [["q_proj"], ["o_proj", "down_proj"], ["up_proj"], None])
def test_input_of_adapters_stays_in_float32_beside_int8_products(targets: list[str] | None, tmp_path: Path) -> None:
    """Deferred norms, fused rounding and merged attention leave the input of what an adapter changes alone."""
    model = Adapted(FAMILY)
    folder = model.add("default", tmp_path, **({"target_modules": targets} if targets else {}))
    plan, weights = beside(FAMILY, {"a": folder}, weight_format="q8g32", sequences=2)
    assert any(isinstance(step, LowRank) for step in plan.steps)
    gpu = GpuExecutor(plan, weights, device=software_gpu(), off=(), tuning=Tuning())
    oracle = Oracle(plan, weights, int8=True)
    for start, stop in ((0, 1), (1, 4), (4, 14), (14, 15)):
        for adapter in (1, 0):
            batch = batch_of(plan, IDS[start:stop], start, sequence=adapter, adapter=adapter)
            got, expected = gpu.run(batch).copy(), oracle.run(batch)
            assert np.abs(got - expected).max() / np.abs(expected).max() < 0.03, (start, adapter)


def test_steps_on_the_device_keep_the_adapter(tmp_path: Path) -> None:
    """Several tokens of one submit, chosen there: as greedy as PEFT is."""
    model = Adapted(FAMILY)
    folder = model.add("default", tmp_path)
    plan, weights = beside(FAMILY, {"a": folder})
    gpu = GpuExecutor(plan, weights, device=software_gpu(), off=("int8",), tuning=Tuning())
    ids, wanted = list(IDS), []
    for _ in range(6):
        wanted.append(int(model.logits(ids, "default")[-1].argmax()))
        ids.append(wanted[-1])
    gpu.run(batch_of(plan, IDS[:-1], adapter=1))
    found: list[int] = []
    draw = Draw(0, Sampler(SamplingParams()), (), found)
    steps = min(gpu.most_steps, 6)
    for (token,) in gpu.submit(batch_of(plan, IDS[-1:], len(IDS) - 1, adapter=1), [draw], steps=steps).tokens():
        assert isinstance(token, Sampled)
        found.append(token.id)
    assert found == wanted[:steps]
    assert wanted != [int(model.logits([*IDS, *wanted[:i]])[-1].argmax()) for i in range(6)]
