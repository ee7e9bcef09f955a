"""One module an engine, each with a class `Engine` that a worker loads. Nothing else imports the engine's library."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """What is asked of every engine. Made with the path of its files, its threads and the most tokens of a sequence.

    Attributes:
        versions: Of the packages that matter, by name.
        settings: What differs from the engine's defaults.
    """

    versions: dict[str, str]
    settings: dict[str, str]

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """Logits `[vocabulary]` after the last of `ids`, from an empty cache."""
        ...

    def prefill(self, ids: list[int]) -> float:
        """Seconds from an empty cache to the first token."""
        ...

    def decode(self, ids: list[int], tokens: int) -> float:
        """Seconds that `tokens` greedy steps took, after `ids` and a first token that is not counted.

        What the cache still holds of the same `ids` from the call before may be used again.
        """
        ...


class BatchedEngine(Engine, Protocol):
    """One that answers several prompts together. Made with the most sequences too."""

    def batch(self, prompts: list[list[int]], tokens: int) -> float:
        """Seconds from an empty cache until there are `tokens` greedy tokens after each of the prompts."""
        ...
