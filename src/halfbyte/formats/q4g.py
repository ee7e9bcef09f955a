"""4-bit groups: `q4g32`, `q4g64`, `q4g128`, with a trailing `z` for zero points.

A row of K values is cut into groups of G (the last one padded); a group has a float16 scale s and codes
q in 0…15, and stands for s·(q - 8), or s·(q - z) with its own 4-bit zero point z. Parts, per row:

    .q      u8  [rows, groups·G/2]   in each block of 32 codes byte i holds code i (low nibble) and i + 16
    .scale  f16 [rows, groups]
    .zero   u8  [rows, ceil(groups/2)]   zero points, low nibble first; only with z

Encoding is round-to-nearest, as in the AWQ and GPTQ papers: symmetric over the full range,
s = (signed value of largest magnitude)/-8; with zero points s = (max - min)/15 over a range that
includes 0, z = round(-min/s). Codes and zero points are rounded against the float16 scale that is stored.
Values must be finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from halfbyte.formats import Parts, Storage, group_storage

BLOCK = 32
_F16_MAX = np.float32(65504)


@dataclass(frozen=True)
class Q4G:
    """4-bit groups of `group` values, symmetric or with zero points."""

    group: int
    zero_points: bool
    bits: ClassVar[int] = 4

    @property
    def name(self) -> str:
        return f"q4g{self.group}{'z' if self.zero_points else ''}"

    def groups(self, columns: int) -> int:
        """Groups in a row of this many values."""
        return -(-columns // self.group)

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        rows, columns = shape
        groups = self.groups(columns)
        parts: dict[str, tuple[str, tuple[int, ...]]] = {
            ".q": ("U8", (rows, groups * self.group // 2)),
            ".scale": ("F16", (rows, groups)),
        }
        if self.zero_points:
            parts[".zero"] = ("U8", (rows, -(-groups // 2)))
        return parts

    def nbytes(self, shape: tuple[int, ...]) -> int:
        item = {"U8": 1, "F16": 2}
        return sum(item[dtype] * part[0] * part[1] for dtype, part in self.layout(shape).values())

    def storage(self, columns: int) -> Storage:
        return group_storage("q4g", self, self.group, columns)

    def encode(self, values: NDArray[np.float32]) -> Parts:
        rows, columns = values.shape
        groups = self.groups(columns)
        padded = np.zeros((rows, groups * self.group), np.float32)
        padded[:, :columns] = values
        grouped = padded.reshape(rows, groups, self.group)
        stored, zero = _ranges(grouped, self.zero_points)
        grouped *= _inverse(stored)[..., None]
        codes = np.clip(np.rint(grouped, out=grouped) + zero[..., None], 0, 15).astype(np.uint8)
        return self.from_codes(codes.reshape(rows, -1)[:, :columns], stored, zero)

    def from_codes(self, codes: NDArray[np.uint8], scale: NDArray[np.floating], zero: NDArray[np.float32]) -> Parts:
        """Parts from codes `[rows, columns]`, and scales (float16 numbers) and zero points `[rows, groups]`."""
        rows, columns = codes.shape
        groups = self.groups(columns)
        padded = np.zeros((rows, groups * self.group), np.uint8)
        padded[:, :columns] = codes
        padded[:, columns:] = zero[:, -1:]
        parts: Parts = {".q": pack(padded), ".scale": scale.astype(np.float16)}
        if self.zero_points:
            pairs = np.zeros((rows, groups + groups % 2), np.uint8)
            pairs[:, :groups] = zero
            parts[".zero"] = pairs[:, 0::2] | pairs[:, 1::2] << np.uint8(4)
        return parts

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> NDArray[np.float32]:
        rows, columns = shape
        groups = self.groups(columns)
        codes = unpack(parts[".q"].astype(np.uint8, copy=False)).reshape(rows, groups, self.group).astype(np.float32)
        codes -= self.zeros(parts, rows, groups)[..., None]
        codes *= parts[".scale"].astype(np.float32)[..., None]
        return np.ascontiguousarray(codes.reshape(rows, -1)[:, :columns])

    def zeros(self, parts: Parts, rows: int, groups: int) -> NDArray[np.float32]:
        """Zero points as float32 `[rows, groups]`."""
        if not self.zero_points:
            return np.full((rows, groups), 8, np.float32)
        stored = parts[".zero"].astype(np.uint8, copy=False)
        return np.stack([stored & 15, stored >> 4], axis=-1).reshape(rows, -1)[:, :groups].astype(np.float32)


def _ranges(grouped: NDArray[np.float32], zero_points: bool) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Round-to-nearest float16 scale and zero point of each group of the last axis."""
    if not zero_points:
        largest = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=-1)[..., None], axis=-1)[..., 0]
        return _to_scale(largest / np.float32(-8)), np.full(largest.shape, 8, np.float32)
    low = np.minimum(grouped.min(axis=-1), 0)
    high = np.maximum(grouped.max(axis=-1), 0)
    stored = _to_scale(high / np.float32(15) - low / np.float32(15))
    return stored, np.clip(np.rint(-low * _inverse(stored)), 0, 15)


def _to_scale(scale: NDArray[np.float32]) -> NDArray[np.float16]:
    """Scales in float16; those beyond its range become its largest, so that their groups saturate."""
    return np.clip(scale, -_F16_MAX, _F16_MAX).astype(np.float16)


def _inverse(stored: NDArray[np.float16]) -> NDArray[np.float32]:
    """1 / scale, and 0 where the scale is 0."""
    scale = stored.astype(np.float32)
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)


def pack(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes 0…15 `[rows, n·32]` → bytes `[rows, n·16]`, in the order of `.q`."""
    blocks = codes.reshape(codes.shape[0], -1, 2, BLOCK // 2)
    low, high = blocks[:, :, 0], blocks[:, :, 1]
    packed: NDArray[np.uint8] = low | high << np.uint8(4)
    return packed.reshape(codes.shape[0], -1)


def unpack(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of `pack`."""
    halves = packed.reshape(packed.shape[0], -1, 1, BLOCK // 2)
    return np.concatenate([halves & 15, halves >> 4], axis=2).reshape(packed.shape[0], -1)


_FORMATS = {form.name: form for form in (Q4G(group, zeros) for group in (32, 64, 128) for zeros in (False, True))}
NAMES = tuple(_FORMATS)


def parse(name: str) -> Q4G | None:
    """The 4-bit format called `name`, if it is one."""
    return _FORMATS.get(name)
