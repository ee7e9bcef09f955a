"""Matrices in rows and groups: what every layout of packed weights is read as and written from.

A layout reads a matrix as codes, scales and zero points in rows and groups (`Grouped`). That is what Halfbyte's
own group formats are made of, so a matrix becomes one of them without any loss, unless its columns belong to groups
in no order (act-order), its groups have odd sizes, or its scales are no float16 numbers: then it is decoded to f16.
Groups larger than 128 are cut into several with the same scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.checks import shown
from halfbyte.errors import InvalidModelError
from halfbyte.formats import Format, Parts, Weight, get_format, q3g, q4g
from halfbyte.formats.ggml import F32, U8
from halfbyte.formats.q3g import Q3G
from halfbyte.formats.q4g import Q4G
from halfbyte.formats.q8g import Q8G

FALLBACK = "f16"
_GROUPS = (128, 64, 32)


@dataclass(frozen=True)
class Grouped:
    """A quantized matrix `[rows, columns]`: value = scale · (code - zero) of its row and group.

    Attributes:
        bits: Of a code: 3, 4 or 8.
        size: Columns a group has.
        scales, zeros: `[rows, groups]`.
        order: The group of each column, where that is not column // size.
        codes: Gives the codes `[rows, columns]`, 0 … 2^bits - 1.
    """

    shape: tuple[int, int]
    bits: int
    size: int
    scales: F32
    zeros: U8
    order: NDArray[np.intp] | None
    codes: Callable[[], U8]

    @cached_property
    def format(self) -> Format:
        """The format that holds it."""
        size = next((g for g in _GROUPS if self.size % g == 0 or self.size >= self.shape[1]), None)
        symmetric = bool((self.zeros == 1 << self.bits - 1).all())
        with np.errstate(over="ignore"):
            exact = bool((self.scales.astype(np.float16).astype(np.float32) == self.scales).all())
        if size is None or self.order is not None or not exact or (self.bits == 8 and not symmetric):
            return get_format(FALLBACK)
        return get_format(f"q{self.bits}g{size}{'' if symmetric else 'z'}")

    def weight(self) -> Weight:
        """The matrix in its format."""
        if self.format.name == FALLBACK:
            return Weight(self.format, self.shape, self.format.encode(self._values()))
        parts = join_groups(_groups(self.format), self.codes(), self._spread(self.scales), self._spread(self.zeros))
        return Weight(self.format, self.shape, parts)

    def _values(self) -> F32:
        order = self.order if self.order is not None else np.arange(self.shape[1]) // self.size
        values = self.codes().astype(np.float32)
        values -= self.zeros[:, order]
        values *= self.scales[:, order]
        return values

    def _spread(self, of_group: NDArray[Any]) -> NDArray[Any]:
        """Scales or zero points for the format's groups, which may be smaller than these."""
        size = _groups(self.format).group
        starts = np.arange(-(-self.shape[1] // size)) * size
        return of_group[:, starts // self.size]


def join_groups(form: Q3G | Q4G | Q8G, codes: U8, scales: F32, zeros: U8) -> Parts:
    """The parts of a matrix in one of Halfbyte's group formats.

    Args:
        codes: `[rows, columns]`, 0 … 2^bits - 1; 128 means 0 in 8 bits.
        scales, zeros: `[rows, groups]`; zero points are left out where the format has none.
    """
    if isinstance(form, Q8G):
        padded = np.zeros((len(codes), scales.shape[1] * form.group), np.uint8)
        padded[:, : codes.shape[1]] = _recentre(codes)
        return {".q": padded, ".scale": scales.astype(np.float16)}
    return form.from_codes(codes, scales, zeros.astype(np.float32))


def _groups(form: Format) -> Q3G | Q4G | Q8G:
    """A format that is known to be one of Halfbyte's group formats."""
    if not isinstance(form, Q3G | Q4G | Q8G):
        raise TypeError(f"{form.name} has no groups")
    return form


def split_groups(weight: Weight) -> tuple[U8, F32, U8]:
    """The inverse of `join_groups`: codes `[rows, columns]`, scales and zero points `[rows, groups]`."""
    form, (rows, columns), parts = _groups(weight.format), weight.shape, weight.parts
    stored = np.ascontiguousarray(parts[".q"]).view(np.uint8)
    codes = {"q4": q4g.unpack, "q3": q3g.unpack, "q8": _recentre}[form.name[:2]](stored)
    scales = parts[".scale"].astype(np.float32)
    middle = {"q4": 8, "q3": 4, "q8": 128}[form.name[:2]]
    zeros = np.full(scales.shape, middle, np.uint8)
    if ".zero" in parts and not isinstance(form, Q8G):
        zeros = form.zeros(parts, rows, scales.shape[1]).astype(np.uint8)
    return codes[:, :columns], scales, zeros


def _recentre(codes: U8) -> U8:
    """Codes around 128 to two's complement, and back."""
    return codes ^ np.uint8(128)


def unpack_words(words: NDArray[np.generic], bits: int) -> U8:
    """Codes `[n, k·32/bits]` from words of 32 bits `[n, k]` that hold them one after the other, lowest bits first."""
    stored = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
    if bits == 8:
        return stored
    if bits == 4:
        return np.stack([stored & 15, stored >> 4], axis=-1).reshape(len(words), -1)
    stream = np.unpackbits(stored, axis=-1, bitorder="little").reshape(len(words), -1, bits)
    return np.packbits(stream, axis=-1, bitorder="little")[..., 0]


def pack_words(codes: U8, bits: int) -> NDArray[np.int32]:
    """The inverse of `unpack_words`; the codes of a row must fill whole words."""
    stream = np.unpackbits(codes[..., None], axis=-1, bitorder="little", count=bits)
    return np.packbits(stream.reshape(len(codes), -1), axis=-1, bitorder="little").view("<i4")


class Scheme(Protocol):
    """How a tool lays out a quantized matrix as several stored tensors."""

    @property
    def marker(self) -> str:
        """The suffix of the tensor that every quantized matrix has."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of all tensors of a matrix, `marker` included."""
        ...

    @property
    def optional(self) -> tuple[str, ...]:
        """Those that may be missing."""
        ...

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """Rows and columns of the matrix, from its tensors' shapes by suffix; ValueError where they contradict."""
        ...

    def read(self, shape: tuple[int, int], tensors: Mapping[str, NDArray[np.generic]]) -> Grouped:
        """The matrix; ValueError where its tensors contradict each other."""
        ...


def as_float(values: NDArray[np.generic]) -> F32:
    """Stored scales in float32; 16-bit integers are bfloat16's bits."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def expect(condition: bool, what: str) -> None:
    """ValueError saying what is wrong, unless the condition holds."""
    if not condition:
        raise ValueError(what)


def whole_number(settings: Mapping[str, Any], key: str, path: Path) -> int:
    """An integer of a `quantization_config`.

    Raises:
        InvalidModelError: There is none.
    """
    value = settings.get(key)
    if type(value) is not int or abs(value) > math.pow(2, 31):
        raise InvalidModelError(f"{path}: {key} of quantization_config is {shown(value)}.", "Download the model again.")
    return value
