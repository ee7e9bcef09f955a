"""Conversations on a GPU that outgrow a boundary, through the engine: the tokens of the reference, little memory."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.gpu.lowering.program import Ref
from halfbyte.gpu.run.executor import GpuExecutor
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.plan import Executor
from halfbyte.reference.executor import ReferenceExecutor
from halfbyte.runtime import Engine, SamplingParams
from tests.device.gpu import software_gpu
from tests.models.tiny import VOCABULARY, Tiny, tiny

PROMPT = np.random.default_rng(1).integers(3, VOCABULARY - 8, 20).tolist()
NEW_TOKENS = 60
SIZES = {"tokens": 8, "rows": 1, "block_size": 4}


def answered(model: Tiny, executor: Executor, *, ahead: bool = True) -> list[int]:
    engine = Engine(executor, rope_switch=model.spec.rope_switch, each_token=not ahead)
    sequence = engine.submit(PROMPT, SamplingParams(), max_tokens=NEW_TOKENS)
    while not sequence.finished:
        engine.step()
    return sequence.generated_ids


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("family", ["phi-3.5-mini", "phi-4-mini"])
def test_decoding_across_longropes_switch_reads_everything_anew(family: str, ahead: bool) -> None:
    """The switch is at 24 tokens: reached while tokens are on their way, and when each is read back."""
    model = tiny(family)
    gpu = GpuExecutor(model.plan(**SIZES), model, device=software_gpu(), off=("int8",), tuning=Tuning())
    positions: list[int] = []
    load = gpu.load
    gpu.load = lambda batch: positions.append(int(batch.positions[0])) or load(batch)  # type: ignore[method-assign]
    got = answered(model, gpu, ahead=ahead)
    assert got == answered(model, ReferenceExecutor(model.plan(**SIZES), model))
    assert positions.count(0) == 2, "the prompt, then prompt and answer under the other frequencies"


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("family", ["gemma-3-1b", "mistral-7b-v0.1"])
def test_windows_keep_their_blocks_and_the_rest_grows(
    monkeypatch: pytest.MonkeyPatch, family: str, ahead: bool
) -> None:
    """Windows of 17 and 19 wrap several times before the end; the context would be 128."""
    monkeypatch.setattr("halfbyte.gpu.run.caches.FIRST_POSITIONS", 4)
    model = tiny(family)
    gpu = GpuExecutor(model.plan(**SIZES), model, device=software_gpu(), off=("int8",), tuning=Tuning())
    got = answered(model, gpu, ahead=ahead)
    assert got == answered(model, ReferenceExecutor(model.plan(**SIZES), model))
    used = len(PROMPT) + NEW_TOKENS
    windowed = 0
    for group in gpu.plan.groups:
        name = group.caches[0][0]
        whole = gpu.plan.tensors[name]
        ring = group.columns * gpu.plan.block_size
        _, kv_heads, _, head_dim = whole.shape
        held = gpu.buffer(Ref("cache", name)).handle.size // (kv_heads * -(-head_dim // 8) * 8 * 4)
        if group.window is not None:
            windowed += 1
            assert held == ring < gpu.plan.context // 3
        else:
            assert used - 1 <= held < gpu.plan.context
    assert windowed
