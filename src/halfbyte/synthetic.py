"""Random weights in a model's shapes, and tokens for it: what it costs on a device, and whether it is right there."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from halfbyte.formats import Format, Parts, Weight, get_format
from halfbyte.formats.q4g import Q4G
from halfbyte.models.spec import DeltaNet, ModelSpec
from halfbyte.plan import Batch, Plan

DISTINCT_ROWS = 512
"""Rows that are really random; larger matrices repeat them, which no kernel can profit from."""

_PRIME = 7919


class SyntheticWeights:
    """The `WeightSource` protocol with random values of a size that keeps activations in range.

    Args:
        weight_format: The format of matrices, or a tensor's format by its name; vectors are float32.
    """

    def __init__(self, spec: ModelSpec, weight_format: str | Callable[[str], Format] = "q4g32") -> None:
        self._spec = spec
        self._matrix_format = weight_format

    def format(self, name: str) -> Format:
        """The format of a tensor."""
        if len(self._spec.shapes[name]) != 2:
            return get_format("f32")
        wanted = self._matrix_format
        return get_format(wanted) if isinstance(wanted, str) else wanted(name)

    def weight(self, name: str) -> Weight:
        """Random parts, the same at each call; norms' weights leave their input's size as it is."""
        shape, stored = self._spec.shapes[name], self.format(name)
        if len(shape) == 1:
            return Weight(stored, shape, {"": np.full(shape, self._vector_value(name), np.float32)})
        if len(shape) > 2:
            return Weight(stored, shape, {"": np.full(shape, shape[-1] ** -0.5, np.float32)})
        parts = self.tile(name).parts
        return Weight(stored, shape, {suffix: _repeated(part, shape[0]) for suffix, part in parts.items()})

    def _vector_value(self, name: str) -> float:
        """The value of all of a vector's; norms inside mixers have no offset."""
        plain = {layer.mixer.norm for layer in self._spec.layers if isinstance(layer.mixer, DeltaNet)}
        return 1.0 if name in plain else 1 - self._spec.norm_offset

    def tile(self, name: str) -> Weight:
        """The first rows of a matrix, which the others repeat: a device can copy them by itself."""
        (rows, columns), stored = self._spec.shapes[name], self.format(name)
        shape = (min(DISTINCT_ROWS, rows), columns)
        return Weight(stored, shape, _random_parts(stored, shape, np.random.default_rng(zlib.crc32(name.encode()))))

    def release(self, name: str) -> None:
        """Nothing is kept."""


def batch_of_one(plan: Plan, start: int, count: int, *, rows: int = 1, words: int = 1) -> Batch:
    """Tokens of the one sequence from a position on; a position has the same token in every batch.

    Args:
        rows: Of the last so many tokens logits are wanted.
        words: Different tokens.
    """
    positions, zeros = np.arange(start, start + count, dtype=np.int32), np.zeros(count, np.int32)
    tables = {name: table[:1] for name, table in plan.own_tables().items()}
    wanted = np.arange(max(0, count - rows), count, dtype=np.int32)
    return Batch(positions * _PRIME % words, positions, zeros, zeros, tables, wanted)


def spiked(weight: Weight) -> Weight:
    """A weight with outliers, norms' with values that differ: on tame ones wrong kernels look right."""
    values = weight.decode()
    if len(weight.shape) == 1:
        values += np.linspace(-0.5, 0.5, len(values), dtype=np.float32)
        return Weight(weight.format, weight.shape, {"": values})
    values[::7, 3::29] *= 5
    return Weight(weight.format, weight.shape, weight.format.encode(values))


def _random_parts(stored: Format, shape: tuple[int, int], random: np.random.Generator) -> Parts:
    if not isinstance(stored, Q4G):
        return stored.encode(random.standard_normal(shape, np.float32) / np.float32(math.sqrt(shape[1])))
    parts: Parts = {}
    for suffix, (kind, part_shape) in stored.layout(shape).items():
        if kind == "F16":
            parts[suffix] = random.uniform(0.8, 1.2, part_shape).astype(np.float16) / np.float16(
                4.6 * math.sqrt(shape[1])
            )
        else:
            parts[suffix] = random.integers(0, 256, part_shape, np.uint8)
    return parts


def _repeated(part: NDArray[np.generic], rows: int) -> NDArray[np.generic]:
    return np.resize(part, (rows, *part.shape[1:]))
