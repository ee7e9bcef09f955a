"""3-bit groups: `q3g32`, `q3g64`, `q3g128`, with a trailing `z` for zero points.

A row of K values is cut into groups of G (the last one padded); a group has a float16 scale s and codes
q in 0…7, and stands for s·(q - 4), or s·(q - z) with its own zero point z. Parts, per row:

    .q      u8  [rows, groups·G/32·12]   see below
    .scale  f16 [rows, groups]
    .zero   u8  [rows, ceil(groups/2)]   zero points in 4 bits each, low nibble first; only with z

Each 32 codes are 12 bytes, which are 3 words of 32 bits: byte j of the first 8 holds the two low bits of codes
j, j + 8, j + 16, j + 24, lowest bits first; bit t of byte 8 + j holds the high bit of code 4t + j. So the four codes
4t … 4t + 3 are the bytes of

    low[t & 1] >> 2·(t >> 1) & 0x03030303  |  (high >> t & 0x01010101) << 2

with low the first two words and high the third. Encoding is round-to-nearest: symmetric over the full range,
s = (signed value of largest magnitude)/-4; with zero points s = (max - min)/7 over a range that includes 0,
z = round(-min/s). Codes and zero points are rounded against the float16 scale that is stored. Values must be finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from halfbyte.formats import Parts, Storage, group_storage
from halfbyte.formats.ggml import F32, U8, inverse, to_half

BLOCK = 32
BLOCK_BYTES = 12
MIDDLE = 4
TOP = 7
_LOW_SHIFTS = np.array([0, 2, 4, 6], np.uint8)[:, None]


@dataclass(frozen=True)
class Q3G:
    """3-bit groups of `group` values, symmetric or with zero points."""

    group: int
    zero_points: bool
    bits: ClassVar[int] = 3

    @property
    def name(self) -> str:
        return f"q3g{self.group}{'z' if self.zero_points else ''}"

    def groups(self, columns: int) -> int:
        """Groups in a row of this many values."""
        return -(-columns // self.group)

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        rows, columns = shape
        groups = self.groups(columns)
        parts: dict[str, tuple[str, tuple[int, ...]]] = {
            ".q": ("U8", (rows, groups * self.group // BLOCK * BLOCK_BYTES)),
            ".scale": ("F16", (rows, groups)),
        }
        if self.zero_points:
            parts[".zero"] = ("U8", (rows, -(-groups // 2)))
        return parts

    def nbytes(self, shape: tuple[int, ...]) -> int:
        item = {"U8": 1, "F16": 2}
        return sum(item[dtype] * part[0] * part[1] for dtype, part in self.layout(shape).values())

    def storage(self, columns: int) -> Storage:
        return group_storage("q3g", self, self.group, columns)

    def encode(self, values: F32) -> Parts:
        rows, columns = values.shape
        groups = self.groups(columns)
        padded = np.zeros((rows, groups * self.group), np.float32)
        padded[:, :columns] = values
        grouped = padded.reshape(rows, groups, self.group)
        scale, zero = _ranges(grouped, self.zero_points)
        codes = np.clip(np.rint(grouped * inverse(scale.astype(np.float32))[..., None]) + zero[..., None], 0, TOP)
        return self.from_codes(codes.astype(np.uint8).reshape(rows, -1)[:, :columns], scale, zero)

    def from_codes(self, codes: U8, scale: NDArray[np.floating], zero: F32) -> Parts:
        """Parts from codes `[rows, columns]`, and each group's scale (a float16 number) and zero `[rows, groups]`."""
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

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> F32:
        rows, columns = shape
        groups = self.groups(columns)
        codes = unpack(parts[".q"].astype(np.uint8, copy=False)).reshape(rows, groups, self.group).astype(np.float32)
        codes -= self.zeros(parts, rows, groups)[..., None]
        codes *= parts[".scale"].astype(np.float32)[..., None]
        return np.ascontiguousarray(codes.reshape(rows, -1)[:, :columns])

    def zeros(self, parts: Parts, rows: int, groups: int) -> F32:
        """Zero points as float32 `[rows, groups]`."""
        if not self.zero_points:
            return np.full((rows, groups), MIDDLE, np.float32)
        stored = parts[".zero"].astype(np.uint8, copy=False)
        return np.stack([stored & 15, stored >> 4], axis=-1).reshape(rows, -1)[:, :groups].astype(np.float32)


def _ranges(grouped: F32, zero_points: bool) -> tuple[NDArray[np.float16], F32]:
    """Round-to-nearest float16 scale and zero point of each group of the last axis."""
    if not zero_points:
        largest = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=-1)[..., None], axis=-1)[..., 0]
        return to_half(largest / np.float32(-MIDDLE)), np.full(largest.shape, MIDDLE, np.float32)
    low = np.minimum(grouped.min(axis=-1), 0)
    high = np.maximum(grouped.max(axis=-1), 0)
    scale = to_half(high / np.float32(TOP) - low / np.float32(TOP))
    return scale, np.clip(np.rint(-low * inverse(scale.astype(np.float32))), 0, TOP)


def pack(codes: U8) -> U8:
    """Codes 0…7 `[rows, n·32]` → bytes `[rows, n·12]`, in the order of `.q`."""
    rows = len(codes)
    low = np.bitwise_or.reduce((codes.reshape(rows, -1, 4, 8) & 3) << _LOW_SHIFTS, axis=2)
    high = np.packbits(codes.reshape(rows, -1, 8, 4) >> 2, axis=2, bitorder="little").reshape(rows, -1, 4)
    return np.concatenate([low, high], axis=-1).reshape(rows, -1)


def unpack(packed: U8) -> U8:
    """The inverse of `pack`."""
    rows = len(packed)
    blocks = packed.reshape(rows, -1, BLOCK_BYTES)
    low = (blocks[:, :, None, :8] >> _LOW_SHIFTS & np.uint8(3)).reshape(rows, -1, BLOCK)
    high = np.unpackbits(blocks[:, :, None, 8:], axis=2, bitorder="little").reshape(rows, -1, BLOCK)
    codes: U8 = low | high << np.uint8(2)
    return codes.reshape(rows, -1)


_FORMATS = {form.name: form for form in (Q3G(group, zeros) for group in (32, 64, 128) for zeros in (False, True))}
NAMES = tuple(_FORMATS)


def parse(name: str) -> Q3G | None:
    """The 3-bit format called `name`, if it is one."""
    return _FORMATS.get(name)
