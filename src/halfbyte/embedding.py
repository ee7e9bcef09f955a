"""Texts as vectors: what may be asked for, and what becomes of a text's pooled hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UsageError
from halfbyte.options import whole
from halfbyte.prompts import check_prompt
from halfbyte.runtime import AnswerStream
from halfbyte.runtime.pooling import POOLINGS, Pooling

Float32 = NDArray[np.float32]
Texts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""One text or several, each as it is or as token ids."""


class EmbeddingOptions(TypedDict, total=False):
    """Keyword arguments of `Model.embed`, which explains them."""

    pooling: Pooling
    normalize: bool
    dimensions: int | None


@dataclass(frozen=True)
class EmbeddingParams:
    """The options of `Model.embed`.

    Raises:
        UsageError: One is out of range, for a model of this hidden size.
    """

    hidden_size: int
    pooling: Pooling = "mean"
    normalize: bool = True
    dimensions: int | None = None

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise UsageError(f"pooling is {self.pooling!r}.", f"It may be {' or '.join(POOLINGS)}.")
        if not isinstance(self.normalize, bool):
            raise UsageError(f"normalize is {self.normalize!r}.", "Give True or False.")
        if self.dimensions is not None and not 1 <= (whole(self.dimensions) or 0) <= self.hidden_size:
            raise UsageError(
                f"dimensions is {self.dimensions!r}.", f"Vectors of this model have 1 to {self.hidden_size:,}."
            )

    def vector(self, stream: AnswerStream) -> Float32:
        """The vector `[dimensions]` of a text whose stream has ended.

        Raises:
            UsageError: It ended early.
        """
        pooler = stream.sequence.pooler
        if pooler is None or pooler.vector is None:
            raise UsageError("the embedding was cancelled.", "Ask again.")
        vector = pooler.vector[: self.dimensions].astype(np.float64)
        if self.normalize and (length := np.linalg.norm(vector)) > 0:
            vector /= length
        return vector.astype(np.float32)


def texts_of(texts: Texts) -> list[str | Sequence[int]]:
    """Each text.

    Raises:
        UsageError: There is none, or one is empty or something else.
    """
    check_prompt(texts)
    if isinstance(texts, str) or whole(texts[0]) is not None:
        return [cast(str | Sequence[int], texts)]
    found = list(cast(Sequence[str | Sequence[int]], texts))
    for text in found:
        check_prompt(text)
    return found


def all_of(streams: Sequence[AnswerStream], params: EmbeddingParams, ahead: int) -> Float32:
    """The vectors `[texts, dimensions]` of texts, computed together.

    Args:
        ahead: Texts that are queued at once: what is asked for meanwhile waits for no more of them.
    """
    vectors = []
    try:
        for i, stream in enumerate(streams):
            for each in streams[i : i + ahead]:
                each.start()
            for _ in stream:
                pass
            vectors.append(params.vector(stream))
    finally:
        for stream in streams:
            stream.close()
    return np.stack(vectors)
