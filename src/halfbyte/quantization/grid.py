"""The values a packed tensor can take: scales and zero points of its groups, found by minimising an error.

Everything works on rows cut into groups; a format with `from_codes` says how many bits a code has, how large
a group is, and whether it has zero points. A value is scale · (code - zero).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from halfbyte.formats import Format, Parts

Array = NDArray[np.float32]

PLAIN = (1.0,)
CLIPS = tuple(1 - i / 25 for i in range(14))
"""Shares of a group's range that an error-minimising clip tries."""

_F16_MAX = 65504.0
_REFITS = 2
_CHUNK_VALUES = 1 << 20
_MATRIX_VALUES = 1 << 24


class GroupFormat(Format, Protocol):
    """A format of groups of codes."""

    @property
    def bits(self) -> int: ...

    @property
    def group(self) -> int: ...

    @property
    def zero_points(self) -> bool: ...

    def from_codes(self, codes: NDArray[np.uint8], scale: Array, zero: Array) -> Parts:
        """Parts from codes `[rows, columns]` and, per group, float16-exact scales and whole zero points."""
        ...


def is_grouped(form: Format) -> TypeGuard[GroupFormat]:
    """Whether a format is made of groups of codes."""
    return hasattr(form, "from_codes")


@dataclass(frozen=True)
class Grid:
    """Where the values of each group may lie.

    Attributes:
        scale: `[rows, groups]`, each exact in float16.
        zero: `[rows, groups]`, whole numbers from 0 to `top`.
        top: The largest code.
        group: Values of a group.
    """

    scale: Array
    zero: Array
    top: int
    group: int

    def __getitem__(self, rows: slice) -> Grid:
        """The grid of some rows."""
        return replace(self, scale=self.scale[rows], zero=self.zero[rows])

    def codes(self, values: Array) -> NDArray[np.uint8]:
        """The nearest codes of values `[rows, columns]`."""
        grouped = pad(values, self.group)
        codes = nearest(grouped, self.scale[..., None], self.zero[..., None], self.top)
        return codes.astype(np.uint8).reshape(len(values), -1)[:, : values.shape[1]]

    def values(self, codes: NDArray[np.uint8]) -> Array:
        """What codes `[rows, columns]` stand for."""
        grouped = pad(codes.astype(np.float32), self.group)
        grouped -= self.zero[..., None]
        grouped *= self.scale[..., None]
        return grouped.reshape(len(codes), -1)[:, : codes.shape[1]]

    def round(self, values: Array) -> Array:
        """The nearest values of the grid."""
        return self.values(self.codes(values))


def stacked(grids: Sequence[Grid]) -> Grid:
    """The grid of all rows from those of some rows each."""
    scale, zero = (np.concatenate([getattr(grid, part) for grid in grids]) for part in ("scale", "zero"))
    return replace(grids[0], scale=scale, zero=zero)


def chunks(shape: tuple[int, ...]) -> list[slice]:
    """The rows of a matrix, some at a time: what is worked on together does not grow with the matrix."""
    step = max(1, _MATRIX_VALUES // shape[1])
    return [slice(start, start + step) for start in range(0, shape[0], step)]


def pack_rows(form: Format, shape: tuple[int, ...], encode: Callable[[slice], Parts]) -> Parts:
    """Parts of a matrix from those of some rows each."""
    done = [encode(rows) for rows in chunks(shape)]
    return {suffix: np.concatenate([parts[suffix] for parts in done]) for suffix in form.layout(shape)}


def pad(values: Array, group: int) -> Array:
    """Rows cut into groups, `[rows, groups, group]`, the last filled with zeros; always a copy."""
    rows, columns = values.shape
    groups = -(-columns // group)
    padded = np.zeros((rows, groups * group), np.float32)
    padded[:, :columns] = values
    return padded.reshape(rows, groups, group)


def fit(values: Array, form: GroupFormat, importance: Array | None = None, clips: tuple[float, ...] = CLIPS) -> Grid:
    """The grid of each group with the least Σ importance · (value - nearest)².

    Tries shares of each group's range; where there are several, the best is improved by least squares over its codes.

    Args:
        values: `[rows, columns]`.
        importance: `[columns]`, such as the mean square of each input; all alike if None.
        clips: Shares of the range to try; `PLAIN` gives round-to-nearest as in the papers.
    """
    weights = pad(np.ones((1, values.shape[1]), np.float32) if importance is None else importance[None], form.group)
    step = max(1, _CHUNK_VALUES // values.shape[1])
    chunks = [_fit(pad(values[i : i + step], form.group), weights, form, clips) for i in range(0, len(values), step)]
    scale, zero = (np.concatenate(part) for part in zip(*chunks, strict=True))
    return Grid(scale, zero, 2**form.bits - 1, form.group)


def _fit(grouped: Array, weights: Array, form: GroupFormat, clips: tuple[float, ...]) -> tuple[Array, Array]:
    top = 2**form.bits - 1
    scale, zero = covering(grouped, form, clips[0])
    if len(clips) == 1:
        return scale, zero
    error = _error(grouped, weights, scale, zero, top)
    for clip in clips[1:]:
        _keep_better(scale, zero, error, grouped, weights, covering(grouped, form, clip), top)
    for _ in range(_REFITS):
        _keep_better(scale, zero, error, grouped, weights, (_refit(grouped, weights, scale, zero, top), zero), top)
    return scale, zero


def covering(grouped: Array, form: GroupFormat, clip: float) -> tuple[Array, Array]:
    """Scale and zero point of each group when a share of its range is covered.

    Symmetric: scale = (signed value of largest magnitude) / -2^(bits-1). With zero points: scale =
    (max - min) / (2^bits - 1) over a range that includes 0, zero = round(-min / scale).
    """
    top, half = 2**form.bits - 1, 2 ** (form.bits - 1)
    if not form.zero_points:
        largest = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=-1)[..., None], axis=-1)[..., 0]
        return to_f16(largest * np.float32(-clip / half)), np.full(largest.shape, half, np.float32)
    low = np.minimum(grouped.min(axis=-1), 0) * np.float32(clip)
    high = np.maximum(grouped.max(axis=-1), 0) * np.float32(clip)
    scale = to_f16(high / np.float32(top) - low / np.float32(top))
    return scale, np.clip(np.rint(-low * inverse(scale)), 0, top)


def _refit(grouped: Array, weights: Array, scale: Array, zero: Array, top: int) -> Array:
    """The scales that fit the present codes best."""
    steps = nearest(grouped, scale[..., None], zero[..., None], top) - zero[..., None]
    above = (weights * grouped * steps).sum(axis=-1)
    below = (weights * steps * steps).sum(axis=-1)
    return to_f16(np.divide(above, below, out=np.zeros_like(above), where=below > 0))


def _keep_better(
    scale: Array, zero: Array, error: Array, grouped: Array, weights: Array, other: tuple[Array, Array], top: int
) -> None:
    """Replace, in place, the groups that another scale and zero point serve better."""
    found = _error(grouped, weights, *other, top)
    better = found < error
    for kept, new in ((scale, other[0]), (zero, other[1]), (error, found)):
        kept[better] = new[better]


def _error(grouped: Array, weights: Array, scale: Array, zero: Array, top: int) -> Array:
    """Weighted squared error of each group."""
    values = nearest(grouped, scale[..., None], zero[..., None], top)
    values -= zero[..., None]
    values *= scale[..., None]
    values -= grouped
    np.square(values, out=values)
    values *= weights
    total: Array = values.sum(axis=-1, dtype=np.float32)
    return total


def nearest(values: Array, scale: Array, zero: Array, top: int) -> Array:
    """Codes, as float32, nearest to values; all arguments broadcast."""
    codes = values * inverse(scale)
    codes += zero
    np.rint(codes, out=codes)
    return np.clip(codes, 0, top, out=codes)


def inverse(scale: Array) -> Array:
    """1 / scale, and 0 where the scale is 0."""
    result: Array = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    return result


def to_f16(scale: Array) -> Array:
    """Scales as float16 holds them, saturating."""
    return np.clip(scale, -_F16_MAX, _F16_MAX).astype(np.float16).astype(np.float32)
