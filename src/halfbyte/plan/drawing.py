"""How tokens are asked of an executor: which rows of logits get a token, and the answer that may come late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GrammarError, HalfbyteError
from halfbyte.sampling import Sampled, Sampler, SamplingParams

Token = Sampled | HalfbyteError
"""A token, or why there is none: a failure of one sequence must not end the others."""
UInt32 = NDArray[np.uint32]
Float32 = NDArray[np.float32]
T = TypeVar("T")


class Allowed(Protocol):
    """Says which tokens may come next in one answer."""

    def words(self) -> UInt32:
        """A bit for each token, which is set if it may come: that of token i is bit i % 32 of word i // 32.

        Tokens beyond the last word may not come. It is asked for when every earlier token of the answer is known here,
        once for each token.
        """
        ...


@dataclass(frozen=True)
class Draw:
    """What chooses the token after one row of logits.

    Attributes:
        slot: The sequence's row of the block tables; a device keeps what it knows of the sequence by it.
        sampler: The sequence's settings, its seed, and how the host chooses.
        prompt_ids: The prompt.
        generated_ids: The answer, as far as it has been read; it grows.
        allowed: What may come next; None for any token.
    """

    slot: int
    sampler: Sampler
    prompt_ids: Sequence[int]
    generated_ids: Sequence[int]
    allowed: Allowed | None = None

    def mask(self, vocab_size: int) -> UInt32 | None:
        """What may come next, as `Allowed.words` of exactly a vocabulary; None for any token.

        Raises:
            HalfbyteError: Nothing may come, or what was asked for it failed.
        """
        if self.allowed is None:
            return None
        given, words = self.allowed.words(), np.zeros(mask_words(vocab_size), np.uint32)
        words[: len(given)] = given[: len(words)]
        if vocab_size % 32:
            words[-1] &= np.uint32((1 << vocab_size % 32) - 1)
        if not words.any():
            raise GrammarError(
                f"the grammar allows no token after {len(self.generated_ids):,} tokens of the answer.",
                "A grammar has to allow a stop token where an answer may end, and must be made for this model.",
            )
        return words

    def on_host(self, logits: Float32) -> Token:
        """The token that follows a row of logits `[vocab_size]`; every earlier token has been read."""
        try:
            return self.sampler.sample(logits, self.prompt_ids, self.generated_ids, self.mask(len(logits)))
        except HalfbyteError as error:
            return error


def mask_words(vocab_size: int) -> int:
    """Words of a mask with a bit for each token."""
    return -(-vocab_size // 32)


class Pending(Protocol):
    """Tokens, and perhaps hidden states, that an executor was asked for."""

    def choose(self) -> None:
        """Make the draws that wait until it is known what may come; nothing where none does. To be called at most once.

        Every earlier token of their answers has been accepted. No other batch may be submitted before.

        Raises:
            DeviceError: The device failed.
        """
        ...

    def tokens(self) -> list[list[Token]]:
        """The tokens of each step, in the order of its draws; waits for them. To be called once.

        Draws that still wait are made first.

        Raises:
            DeviceError: The device failed.
        """
        ...

    def hidden(self) -> Float32:
        """The hidden states of the batch's tokens `[n, hidden_size]`, if it asked for them; waits for them.

        The array may be reused by the next batch. To be called at most once.

        Raises:
            DeviceError: The device failed.
            TypeError: The batch did not ask for them.
        """
        ...


@dataclass(frozen=True)
class Finished:
    """The `Pending` of an executor that has them at once."""

    found: list[list[Token]]
    states: Float32 | None = None

    def choose(self) -> None:
        """Nothing waits."""

    def tokens(self) -> list[list[Token]]:
        """The tokens."""
        return self.found

    def hidden(self) -> Float32:
        """The hidden states."""
        return asked_for(self.states)


def asked_for(states: T | None) -> T:
    """Hidden states, or what holds them, of a batch that asked for them.

    Raises:
        TypeError: There are none.
    """
    if states is None:
        raise TypeError("the batch did not ask for hidden states")
    return states


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


def drawn_on_host(logits: Float32, draws: Sequence[Draw], states: Float32 | None = None) -> Finished:
    """Tokens for rows of logits `[r, vocab_size]`, one draw for each, beside hidden states if there are any."""
    return Finished([[draw.on_host(row) for draw, row in zip(draws, logits, strict=True)]], states)
