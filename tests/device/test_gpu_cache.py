"""Blocks on a GPU: taken out, put back, read and written."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from halfbyte.gpu.run.executor import GpuExecutor
from halfbyte.gpu.shaders.family import Tuning
from halfbyte.reference.executor import ReferenceExecutor
from halfbyte.runtime import Engine, SamplingParams
from tests.device.gpu import software_gpu
from tests.models.tiny import VOCABULARY, tiny

TEXT = np.random.default_rng(3).integers(3, VOCABULARY - 8, 30).tolist()
FAMILIES = ("llama-3.2-1b", "mistral-7b-v0.1", "phi-4-mini")


@cache
def gpu_of(family: str) -> GpuExecutor:
    model = tiny(family)
    plan = model.plan(tokens=16, rows=4, sequences=4, block_size=4, context=64, cache_tokens=100)
    return GpuExecutor(plan, model, device=software_gpu(), off=("int8",), tuning=Tuning())


def engine_of(family: str) -> Engine:
    return Engine(gpu_of(family), rope_switch=tiny(family).spec.rope_switch, prefill_chunk=5)


def alone(family: str, prompt: tuple[int, ...], count: int) -> list[int]:
    """The reference's greedy answer."""
    model = tiny(family)
    reference = ReferenceExecutor(model.plan(tokens=16, rows=1, block_size=4, context=64), model)
    engine = Engine(reference, rope_switch=model.spec.rope_switch)
    sequence = engine.submit(prompt, SamplingParams(), max_tokens=count)
    finish(engine)
    return sequence.generated_ids


def finish(engine: Engine) -> None:
    while not engine.idle:
        engine.step()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_taken_out_and_put_back_elsewhere(family: str) -> None:
    prompt = [*TEXT[:28], 12]
    first = engine_of(family)
    first.submit(prompt, SamplingParams(), max_tokens=1)
    finish(first)
    taken = first.cached_prompt(prompt, gpu_of(family))
    assert taken.token_ids == tuple(prompt[:28])
    second = engine_of(family)
    second.submit([7] * 30, SamplingParams(), max_tokens=20)
    finish(second)
    second.restore(taken, gpu_of(family))
    sequence = second.submit(prompt, SamplingParams(), max_tokens=12)
    finish(second)
    assert sequence.num_cached_tokens == 28
    assert sequence.generated_ids == alone(family, tuple(prompt), 12)


def test_blocks_are_read_as_they_were_written_wherever_they_lie() -> None:
    """Beyond what the caches have room for at the start, too."""
    model = tiny("llama-3.2-1b")
    plan = model.plan(tokens=8, rows=1, sequences=40, block_size=4, context=128)
    gpu = GpuExecutor(plan, model, device=software_gpu(), off=("int8",), tuning=Tuning())
    name, before = plan.groups[0].names[0], gpu.cache_nbytes
    nbytes = gpu.read_blocks(name, [0]).shape[1]
    blocks = [3, 4, 5, 1, 900, 7, 901]
    values = np.random.default_rng(0).integers(0, 256, (len(blocks), nbytes), np.uint8)
    gpu.write_blocks(name, blocks, values)
    assert gpu.cache_nbytes > before
    np.testing.assert_array_equal(gpu.read_blocks(name, blocks), values)
    np.testing.assert_array_equal(gpu.read_blocks(name, [901, 1]), values[[6, 3]])
    with pytest.raises(ValueError, match=f"blocks of {nbytes} bytes"):
        gpu.write_blocks(name, [0], values[:, :-4])
