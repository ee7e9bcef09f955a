"""Choosing the next token on the GPU: which settings it can do, and what its kernels are told for a sequence.

The same filters and random numbers as the host's sampler (`sampling/noise.py`): a seed draws the same tokens here and
there, as long as the logits are the same.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from halfbyte.gpu.lowering.sampling import sampling_ref
from halfbyte.gpu.run.bound import BoundProgram, Buffer
from halfbyte.gpu.run.executor import GpuExecutor
from halfbyte.sampling.params import SamplingParams

IN_PROMPT = np.uint32(1 << 31)


def supported(sampling: SamplingParams) -> bool:
    """Whether the GPU can choose tokens this way: all but typical-p and the log-probabilities of other tokens."""
    return sampling.typical_p >= 1 and not sampling.logprobs


class Sampler:
    """Chooses tokens from the logits of an executor's program of one token."""

    def __init__(self, executor: GpuExecutor) -> None:
        self._executor = executor

    @property
    def result(self) -> Buffer:
        """Where results are left, slot by slot."""
        return self._executor.buffer(sampling_ref("result"))

    def begin(self, sampling: SamplingParams, prompt_ids: Sequence[int], generated_ids: Sequence[int]) -> BoundProgram:
        """Set everything for a sequence; the program that chooses each of its tokens."""
        penalized, words = _penalized(sampling), self._executor.words
        program = self._executor.program(
            f"sample.{'greedy' if sampling.greedy else 'random'}{'.penalized' if penalized else ''}"
        )
        self._write("params", _params(sampling))
        if penalized:
            self._write("counts", _counts(words, sampling, prompt_ids, generated_ids))
            self._write("bias", _bias(words, sampling))
        return program

    def _write(self, name: str, values: NDArray[np.generic]) -> None:
        self._executor.device.write(self._executor.buffer(sampling_ref(name)).handle, 0, values)


def _penalized(sampling: SamplingParams) -> bool:
    penalties = sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
    return bool(penalties or sampling.logit_bias)


def _params(sampling: SamplingParams) -> NDArray[np.uint32]:
    seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
    numbers = np.array(
        [
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            sampling.min_p,
            sampling.repetition_penalty,
            sampling.presence_penalty,
            sampling.frequency_penalty,
        ],
        np.float32,
    )
    return np.append(numbers.view(np.uint32), np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32))


def _counts(
    width: int, sampling: SamplingParams, prompt_ids: Sequence[int], generated_ids: Sequence[int]
) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    counts = np.zeros(width, np.uint32)
    for token, count in Counter(generated_ids).items():
        counts[token] = count
    if sampling.repetition_penalty != 1:
        counts[list(set(prompt_ids))] |= IN_PROMPT
    return counts


def _bias(width: int, sampling: SamplingParams) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    bias = np.zeros(width, np.float32)
    for token, value in sampling.logit_bias.items():
        bias[token] = value
    return bias
