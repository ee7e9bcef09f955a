"""How tokens are asked of an executor: which rows of logits get a token, and the answer that may come late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import HalfbyteError
from halfbyte.sampling import Sampled, Sampler, SamplingParams

Token = Sampled | HalfbyteError
"""A token, or why there is none: a failure of one sequence must not end the others."""


@dataclass(frozen=True)
class Draw:
    """What chooses the token after one row of logits.

    Attributes:
        slot: The sequence's row of the block tables; a device keeps what it knows of the sequence by it.
        sampler: The sequence's settings, its seed, and how the host chooses.
        prompt_ids: The prompt.
        generated_ids: The answer, as far as it has been read; it grows.
    """

    slot: int
    sampler: Sampler
    prompt_ids: Sequence[int]
    generated_ids: Sequence[int]

    def on_host(self, logits: NDArray[np.float32]) -> Token:
        """The token that follows a row of logits `[vocab_size]`; every earlier token has been read."""
        try:
            return self.sampler.sample(logits, self.prompt_ids, self.generated_ids)
        except HalfbyteError as error:
            return error


class Pending(Protocol):
    """Tokens that an executor was asked for."""

    def tokens(self) -> list[list[Token]]:
        """The tokens of each step, in the order of its draws; waits for them. To be called once.

        Raises:
            DeviceError: The device failed.
        """
        ...


@dataclass(frozen=True)
class Finished:
    """The `Pending` of an executor that has them at once."""

    found: list[list[Token]]

    def tokens(self) -> list[list[Token]]:
        """The tokens."""
        return self.found


class ComputesAtOnce:
    """What executors have in common whose `submit` computes the batch on the host, and chooses its tokens there."""

    @property
    def ahead(self) -> int:
        """One batch at a time."""
        return 1

    @property
    def most_steps(self) -> int:
        """One step at a time."""
        return 1

    def draws(self, sampling: SamplingParams) -> bool:
        """Tokens are chosen where the batch runs, whatever the settings."""
        return True


def drawn_on_host(logits: NDArray[np.float32], draws: Sequence[Draw]) -> Finished:
    """Tokens for rows of logits `[r, vocab_size]`, one draw for each."""
    return Finished([[draw.on_host(row) for draw, row in zip(draws, logits, strict=True)]])
