"""Choosing tokens on the GPU: which settings it can do, and what its kernels are told of each sequence.

The same filters and random numbers as the host's sampler (`sampling/noise.py`): a seed draws the same tokens here and
there, as long as the logits are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import HalfbyteError
from halfbyte.gpu.device.device import Device
from halfbyte.gpu.device.staging import Staging
from halfbyte.gpu.lowering.program import Ref
from halfbyte.gpu.lowering.sampling import MASK, params_pitch, sampling_ref
from halfbyte.gpu.run.bound import Buffer
from halfbyte.plan.drawing import Draw, Token, asked_for
from halfbyte.sampling import Sampled, Sampler, SamplingParams
from halfbyte.sampling.noise import coins_below
from halfbyte.sampling.sampler import invalid_logits

IN_PROMPT = np.uint32(1 << 31)
_BEYOND_PLAIN = {"xtc_probability"}
"""What the kernels know of the settings that `SamplingParams.beyond_plain` lists."""


def supported(sampling: SamplingParams) -> bool:
    """Whether the GPU can choose tokens this way, which gives no log-probabilities of other tokens."""
    return sampling.in_default_order and not sampling.logprobs and _BEYOND_PLAIN.issuperset(sampling.beyond_plain)


def penalizes(sampling: SamplingParams) -> bool:
    """Whether penalties or biases change the logits."""
    penalties = sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
    return bool(penalties or sampling.logit_bias)


def masks(draw: Draw) -> bool:
    """Whether the GPU chooses a token and has to be told what may come."""
    return draw.allowed is not None and supported(draw.sampler.params)


def program_for(draws: Sequence[Draw]) -> str:
    """The program that chooses a token for each of these."""
    drawn = [draw.sampler.params for draw in draws if supported(draw.sampler.params)]
    kind = "greedy" if all(params.greedy for params in drawn) else "random"
    penalized, masked = any(map(penalizes, drawn)), any(map(masks, draws))
    return f"sample.{kind}{'.penalized' * penalized}{'.masked' * masked}"


class Slots:
    """What the GPU knows of the sequences whose tokens it chooses, by slot.

    Args:
        buffer: Finds the buffers of the sampling programs.
        words: The vocabulary.
    """

    def __init__(self, device: Device, buffer: Callable[[Ref], Buffer], words: int) -> None:
        self._device, self._buffer, self._words = device, buffer, words
        self._owners: dict[int, Sampler] = {}

    def tell(self, draws: Sequence[Draw]) -> None:
        """Tell the GPU of sequences that it does not know; their program is bound."""
        for draw in draws:
            if self._owners.get(draw.slot) is not draw.sampler:
                self._tell(draw)

    def allow(self, draws: Sequence[Draw]) -> dict[int, HalfbyteError]:
        """Tell the GPU what may come; the errors of draws where nothing may, by row. Their program is bound."""
        errors: dict[int, HalfbyteError] = {}
        for row, draw in enumerate(draws):
            try:
                if masks(draw) and (mask := draw.mask(self._words)) is not None:
                    self._write("params", draw.slot * params_pitch(self._words) + MASK, mask)
            except HalfbyteError as error:
                errors[row] = error
        return errors

    def _tell(self, draw: Draw) -> None:
        sampling, words = draw.sampler.params, self._words
        self._owners[draw.slot] = draw.sampler
        self._write("params", draw.slot * params_pitch(words), _params(draw))
        if supported(sampling) and penalizes(sampling):
            self._write("counts", draw.slot * words, _counts(words, sampling, draw.prompt_ids, draw.generated_ids))
            self._write("bias", draw.slot * words, _bias(words, sampling))

    def _write(self, name: str, first: int, values: NDArray[np.generic]) -> None:
        """Write words of a buffer."""
        self._device.write(self._buffer(sampling_ref(name)).handle, first * 4, values)


@dataclass(frozen=True)
class RowsRead:
    """Rows of logits on their way to the host, which chooses their tokens.

    Attributes:
        draws: By the row of logits.
        stride: Values from one row to the next.
    """

    staging: Staging
    draws: dict[int, Draw]
    words: int
    stride: int

    def tokens(self) -> dict[int, Token]:
        """The tokens, by row; waits for the logits."""
        last = max(self.draws) + 1
        logits = self.staging.take(last * self.stride * 4).view(np.float32).reshape(last, self.stride)
        return {row: draw.on_host(logits[row, : self.words]) for row, draw in self.draws.items()}


@dataclass(frozen=True)
class DrawnTokens:
    """Tokens that the GPU chooses.

    Attributes:
        first: Steps before the first one since the state was written.
        draws: Rows that get a token.
        ring: Steps whose results are kept, each for `rows` rows.
        read: What the host chooses instead.
        errors: Why rows get no token.
    """

    staging: Staging
    first: int
    steps: int
    draws: int
    ring: int
    rows: int
    read: RowsRead | None
    errors: Mapping[int, HalfbyteError]

    def tokens(self) -> list[list[Token]]:
        """The tokens of each step; waits for them."""
        raw = self.staging.take(self.ring * self.rows * 8).view(np.uint32).reshape(self.ring, self.rows, 2)
        entries = (raw[(self.first + step) % self.ring, : self.draws] for step in range(self.steps))
        found = [[self._token(*pair) for pair in zip(e[:, 0].tolist(), _floats(e[:, 1]), strict=True)] for e in entries]
        if self.read is not None:
            for row, token in self.read.tokens().items():
                found[0][row] = token
        for row, error in self.errors.items():
            found[0][row] = error
        return found

    def _token(self, token: int, logprob: float) -> Token:
        return Sampled(token, logprob) if isfinite(logprob) else invalid_logits(logprob, token)


@dataclass(frozen=True)
class StatesRead:
    """Hidden states on their way to the host.

    Attributes:
        stride: Values from one token to the next, of which the first `width` count.
    """

    staging: Staging
    tokens: int
    width: int
    stride: int

    def values(self) -> NDArray[np.float32]:
        """Hidden states `[tokens, width]`; waits for them."""
        values = self.staging.take(self.tokens * self.stride * 4).view(np.float32)
        return values.reshape(self.tokens, self.stride)[:, : self.width]


class PendingTokens:
    """The `Pending` of tokens that are being chosen, or wait until it is known what may come.

    Args:
        drawn: What is on its way, or has it chosen.
        states: The hidden states, if the batch asked for them.
    """

    def __init__(self, drawn: DrawnTokens | Callable[[], DrawnTokens], states: StatesRead | None = None) -> None:
        self._drawn, self._states = drawn, states

    def choose(self) -> None:
        """Have the tokens chosen, if they wait.

        Raises:
            DeviceError: The device failed.
        """
        self._chosen()

    def tokens(self) -> list[list[Token]]:
        """The tokens of each step; waits for them."""
        return self._chosen().tokens()

    def hidden(self) -> NDArray[np.float32]:
        """The hidden states; waits for them."""
        return asked_for(self._states).values()

    def _chosen(self) -> DrawnTokens:
        if not isinstance(self._drawn, DrawnTokens):
            self._drawn = self._drawn()
        return self._drawn


def _floats(bits: NDArray[np.uint32]) -> list[float]:
    found: list[float] = np.ascontiguousarray(bits).view(np.float32).tolist()
    return found


def _params(draw: Draw) -> NDArray[np.uint32]:
    """A slot's words; a sequence whose tokens the host chooses is told as one that takes the most likely."""
    sampling, seed = draw.sampler.params, draw.sampler.seed
    drawn = supported(sampling) and not sampling.greedy
    numbers = np.array(
        [
            sampling.temperature if drawn else 0.0,
            sampling.top_k,
            sampling.top_p,
            sampling.min_p,
            sampling.repetition_penalty,
            sampling.presence_penalty,
            sampling.frequency_penalty,
        ],
        np.float32,
    )
    words = np.zeros(MASK, np.uint32)
    words[:7] = numbers.view(np.uint32)
    words[7:9] = seed & 0xFFFFFFFF, seed >> 32
    words[9:11] = supported(sampling) and penalizes(sampling), masks(draw)
    words[11] = coins_below(sampling.xtc_probability) if drawn else 0
    words[12:13] = np.float32(sampling.xtc_threshold).view(np.uint32)
    return words


def _counts(
    width: int, sampling: SamplingParams, prompt_ids: Sequence[int], generated_ids: Sequence[int]
) -> NDArray[np.uint32]:
    counts = np.zeros(width, np.uint32)
    for token, count in Counter(generated_ids).items():
        counts[token] = count
    if sampling.repetition_penalty != 1:
        counts[list(set(prompt_ids))] |= IN_PROMPT
    return counts


def _bias(width: int, sampling: SamplingParams) -> NDArray[np.float32]:
    bias = np.zeros(width, np.float32)
    for token, value in sampling.logit_bias.items():
        bias[token] = value
    return bias
