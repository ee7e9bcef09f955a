"""The hidden states of a text become one vector, gathered chunk by chunk."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import DeviceError

Float32 = NDArray[np.float32]
Pooling = Literal["mean", "last"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


class Pooler:
    """Makes the mean of a text's hidden states, or takes the last of them; sums are made in float64.

    Args:
        length: Tokens of the text.

    Attributes:
        vector: `[hidden_size]`, when all states have been taken; None before.
    """

    def __init__(self, pooling: Pooling, length: int) -> None:
        self.vector: Float32 | None = None
        self._first = 0 if pooling == "mean" else length - 1
        self._length = length
        self._taken = self._first
        self._sum: NDArray[np.float64] | float = 0.0

    def wants(self, stop: int) -> bool:
        """Whether states of tokens before position `stop` count."""
        return stop > self._first

    def take(self, start: int, states: Float32) -> None:
        """Take the states `[n, hidden_size]` of the tokens from position `start` on, in order.

        Those that were computed again count once.

        Raises:
            DeviceError: The vector has values that are no numbers.
        """
        self._sum = self._sum + states[max(0, self._taken - start) :].sum(axis=0, dtype=np.float64)
        self._taken = max(self._taken, start + len(states))
        if self._taken == self._length:
            self.vector = _finite(np.asarray(self._sum / (self._length - self._first), np.float32))


def _finite(vector: Float32) -> Float32:
    if not np.isfinite(vector).all():
        raise DeviceError(
            "The model gave no valid hidden states: some are infinite or no numbers.",
            "The device or the weights are faulty: compare with device='reference'.",
        )
    return vector
