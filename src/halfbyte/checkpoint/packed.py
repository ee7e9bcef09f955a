"""Weights packed into another format while they are read, a few rows at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.checks import shown
from halfbyte.errors import InvalidModelError
from halfbyte.formats import Format, Parts, Weight, WeightSource, get_format


class TensorSource(WeightSource, Protocol):
    """What a `RepackedWeights` reads: a checkpoint, or one with an adapter merged into it."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Logical shape of every tensor, by logical name."""
        ...

    def format(self, name: str) -> Format:
        """The format of a tensor."""
        ...


Recipe = Callable[[str, tuple[int, ...]], str | None]
"""From a tensor's name and shape to the name of the format it should be in; None leaves it as it is stored."""

Change = Callable[[NDArray[np.float32], int], NDArray[np.float32]]
"""From rows of a tensor, in float32, and the number of the first to what they become."""

_CHUNK_VALUES = 1 << 20
_MOST_THREADS = 8


class RepackedWeights:
    """A `WeightSource` over a checkpoint, with tensors encoded as a recipe says when they are asked for.

    What a tensor takes besides its packed form is a few megabytes; its pages are given back as it is read.
    Tensors of Halfbyte's own folder that are packed already stay as they are. Nothing is kept: asking twice
    encodes twice.

    Args:
        checkpoint: Where the tensors come from, maybe with an adapter merged into them.
        recipe: Which format each gets; the name of a format means that of every matrix.

    Raises:
        UnsupportedModelError: No format has that name.
    """

    def __init__(self, checkpoint: TensorSource, recipe: Recipe | str) -> None:
        self.checkpoint = checkpoint
        self._recipe = matrices(recipe) if isinstance(recipe, str) else recipe

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Logical shape of every tensor, by logical name."""
        return self.checkpoint.shapes

    def format(self, name: str) -> Format:
        """The format `weight` gives a tensor in. Raises as `Checkpoint.format` does."""
        stored = self.checkpoint.format(name)
        wanted = None if is_packed(stored) else self._recipe(name, self.checkpoint.shapes[name])
        return stored if wanted is None else get_format(wanted)

    def weight(self, name: str) -> Weight:
        """A tensor in its format.

        Raises:
            InvalidModelError: It holds NaN or infinity, or does not exist.
        """
        weight, form = self.checkpoint.weight(name), self.format(name)
        if form == weight.format:
            return weight
        return repack(weight, form, name, lambda: self.checkpoint.release(name))

    def release(self, name: str) -> None:
        """Give back the memory map's pages of a tensor."""
        self.checkpoint.release(name)


def matrices(format_name: str) -> Recipe:
    """Every matrix in one format; norms and other vectors stay as they are stored.

    Raises:
        UnsupportedModelError: No format has that name.
    """
    get_format(format_name)
    return lambda name, shape: format_name if len(shape) == 2 else None


def is_packed(form: Format) -> bool:
    """Whether a format stores a tensor in more than one part."""
    return set(form.layout((1, 1))) != {""}


def repack(
    weight: Weight, form: Format, name: str, release: Callable[[], None], change: Change = lambda values, start: values
) -> Weight:
    """A tensor in another format, encoded by several threads, a few rows at a time; `release` is called after each.

    Args:
        change: What is done to the values before they are encoded.

    Raises:
        InvalidModelError: It holds NaN or infinity.
    """
    rows, inner = weight.shape[0], weight.shape[1:]
    step = max(1, _CHUNK_VALUES // max(1, math.prod(inner)))

    def encode(start: int) -> Parts:
        stop = min(start + step, rows)
        chunk = {suffix: part[start:stop] for suffix, part in weight.parts.items()}
        values = weight.format.decode(chunk, (stop - start, *inner))
        if not np.isfinite(values).all():
            raise InvalidModelError(
                f"The tensor {shown(name)} holds NaN or infinity in rows {start} to {stop - 1}.",
                "The checkpoint is damaged; download it again.",
            )
        release()
        return form.encode(change(values, start))

    first = encode(0)
    parts: Parts = {suffix: np.empty((rows, *part.shape[1:]), part.dtype) for suffix, part in first.items()}

    def fill(start: int) -> None:
        for suffix, encoded in (encode(start) if start else first).items():
            parts[suffix][start : start + step] = encoded

    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        try:
            for _ in pool.map(fill, range(0, max(rows, 1), step)):
                pass
        finally:
            pool.shutdown(cancel_futures=True)
    return Weight(form, weight.shape, parts)
