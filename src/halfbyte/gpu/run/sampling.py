"""Choosing the next token on the GPU: what settings it can do, and the kernels for them.

    logits → penalties, bias → temperature → top-k → top-p → min-p → draw

The same filters and random numbers as the host's sampler (`plan/draws.py`): a seed draws the same tokens here and
there, as long as the logits are the same.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from halfbyte.gpu.device.device import Device
from halfbyte.gpu.lowering.state import StateLayout
from halfbyte.gpu.lowering.value import Value
from halfbyte.gpu.run.pipelines import Pipelines
from halfbyte.gpu.run.recorder import Buffer, Dimensions, Dispatch, Extent, Program
from halfbyte.gpu.shaders import rules
from halfbyte.gpu.shaders.variants import KernelConfig
from halfbyte.plan.sampling import SamplingParams

PARAMS = ("TEMPERATURE", "TOP_K", "TOP_P", "MIN_P", "REPETITION", "PRESENCE", "FREQUENCY")
RING = 8
"""Tokens whose results the GPU keeps."""
RESULT_NBYTES = 8
IN_PROMPT = np.uint32(1 << 31)


def supported(sampling: SamplingParams) -> bool:
    """Whether the GPU can choose tokens this way: all but typical-p and the log-probabilities of other tokens."""
    return sampling.typical_p >= 1 and not sampling.logprobs


@dataclass(frozen=True)
class _Mode:
    greedy: bool
    penalized: bool


class Sampler:
    """The sampling kernels over one buffer of logits."""

    def __init__(
        self,
        device: Device,
        pipelines: Pipelines,
        layout: StateLayout,
        state: Buffer,
        logits: Value,
        config: KernelConfig,
    ) -> None:
        self._device = device
        self._pipelines = pipelines
        sizes = rules.sample(config, vocabulary=logits.width)
        self._groups: int = sizes["GROUPS"]
        self._constants = {
            **layout.offsets,
            **{name: i for i, name in enumerate(PARAMS)},
            "V": logits.width,
            **sizes,
            "RING": RING,
        }
        self._logits = logits
        self._programs: dict[_Mode, Program] = {}

        def made(nbytes: int) -> Buffer:
            return Buffer(device.buffer(nbytes, "sampling"))

        width = logits.width * 4
        self.result = made(RING * RESULT_NBYTES)
        self._buffers = {
            "state": state,
            "parts": made(self._groups * 16),
            "found": made(4),
            "params": made(64),
            "seed": made(8),
            "result": self.result,
            "logits": self._f32(logits),
        }
        self._large = {"counts": width, "bias": width, "scores": width, "candidates": 2 * width}

    def _f32(self, logits: Value) -> Buffer:
        if logits.f32 is None:
            raise TypeError("logits are float32")
        return logits.f32

    def begin(self, sampling: SamplingParams, prompt_ids: Sequence[int], generated_ids: Sequence[int]) -> Program:
        """Set everything for a sequence; the program that chooses each of its tokens."""
        mode = _mode(sampling)
        if not mode.greedy:
            seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
            self._device.write(self._buffers["seed"].handle, 0, np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32))
        self._device.write(self._buffers["params"].handle, 0, _params(sampling))
        if mode not in self._programs:
            self._programs[mode] = Program(self._device, self._dispatches(mode))
        if mode.penalized:
            self._device.write(
                self._buffers["counts"].handle, 0, _counts(self._logits.width, sampling, prompt_ids, generated_ids)
            )
            self._device.write(self._buffers["bias"].handle, 0, _bias(self._logits.width, sampling))
        return self._programs[mode]

    def _dispatches(self, mode: _Mode) -> list[Dispatch]:
        flags = {"GREEDY": mode.greedy, "PENALIZED": mode.penalized, "COUNTED": mode.penalized}
        needed = ("counts", "bias", "scores") if mode.penalized else ()
        for name in needed if mode.greedy else (*needed, "candidates"):
            if name not in self._buffers:
                self._buffers[name] = Buffer(self._device.buffer(self._large[name], "sampling"))
        buffers = {**self._buffers, "scores": self._buffers["scores" if mode.penalized else "logits"]}
        groups = self._groups
        kernels = {"sample_stats": groups, "sample_collect": 0 if mode.greedy else groups, "sample_pick": 1}
        return [
            Dispatch(self._pipelines.get(kernel, {**self._constants, **flags}), buffers, _one_row(count), kernel)
            for kernel, count in kernels.items()
            if count
        ]


def _one_row(groups: int) -> Callable[[Extent], Dimensions]:
    return lambda _: (groups, 1, 1)


def _mode(sampling: SamplingParams) -> _Mode:
    penalties = sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
    return _Mode(sampling.greedy, bool(penalties or sampling.logit_bias))


def _params(sampling: SamplingParams) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array(
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
