"""What samplers work on: the tokens that may be chosen, and what came before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """Where a token is chosen.

    Attributes:
        prompt_ids: The prompt.
        generated_ids: The answer so far.
        seed: What random numbers are made from, with the position.
    """

    prompt_ids: Sequence[int]
    generated_ids: Sequence[int]
    seed: int

    @property
    def position(self) -> int:
        """How many tokens come before."""
        return len(self.prompt_ids) + len(self.generated_ids)

    def between(self, start: int, end: int) -> tuple[Sequence[int], Sequence[int]]:
        """The tokens from position `start` up to `end`: those of the prompt, and those of the answer."""
        prompt = len(self.prompt_ids)
        return self.prompt_ids[start:end], self.generated_ids[max(0, start - prompt) : max(0, end - prompt)]


@dataclass(frozen=True)
class Candidates:
    """The tokens that may be chosen. Their probabilities are the softmax of their scores.

    Attributes:
        scores: float32 [n].
        chosen_ids: The token of each score, [n]; None where every token is left, in order.
    """

    scores: Float32
    chosen_ids: Indices | None = None

    @property
    def ids(self) -> Indices:
        """The token of each score."""
        return np.arange(self.scores.size) if self.chosen_ids is None else self.chosen_ids

    def keep(self, places: Indices) -> Candidates:
        """Only the candidates at some places, in that order."""
        return Candidates(self.scores[places], places if self.chosen_ids is None else self.chosen_ids[places])

    def rescored(self, scores: Float32) -> Candidates:
        """The same candidates with other scores."""
        return Candidates(scores, self.chosen_ids)

    def find(self, tokens: Indices) -> tuple[Indices, Indices]:
        """Which candidates are among `tokens`, no two of which are equal: their places here, and those in `tokens`."""
        if self.chosen_ids is None:
            return tokens, np.arange(tokens.size)
        _, here, there = np.intersect1d(self.chosen_ids, tokens, assume_unique=True, return_indices=True)
        return here, there
