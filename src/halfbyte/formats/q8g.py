"""8-bit groups: `q8g32`, `q8g64`, `q8g128`.

A row of K values is cut into groups of G (the last one padded); a group has a float16 scale s and signed codes q,
and stands for s·q. Parts, per row:

    .q      u8  [rows, groups·G]   the codes' two's complement, in their natural order
    .scale  f16 [rows, groups]

Encoding is round-to-nearest with s = (largest magnitude)/127; codes are rounded against the float16 scale that is
stored. -128 does not come from here, but may from elsewhere. Values must be finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from halfbyte.formats import Parts, Storage, group_storage
from halfbyte.formats.ggml import F32, inverse, to_half

TOP = 127


@dataclass(frozen=True)
class Q8G:
    """8-bit groups of `group` values."""

    group: int
    bits: ClassVar[int] = 8

    @property
    def name(self) -> str:
        return f"q8g{self.group}"

    def groups(self, columns: int) -> int:
        """Groups in a row of this many values."""
        return -(-columns // self.group)

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        rows, columns = shape
        groups = self.groups(columns)
        return {".q": ("U8", (rows, groups * self.group)), ".scale": ("F16", (rows, groups))}

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return shape[0] * self.groups(shape[1]) * (self.group + 2)

    def storage(self, columns: int) -> Storage:
        return group_storage("q8g", self, self.group, columns)

    def encode(self, values: F32) -> Parts:
        rows, columns = values.shape
        padded = np.zeros((rows, self.groups(columns) * self.group), np.float32)
        padded[:, :columns] = values
        grouped = padded.reshape(rows, -1, self.group)
        scale = to_half(np.abs(grouped).max(axis=-1) / np.float32(TOP))
        codes = np.clip(np.rint(grouped * inverse(scale.astype(np.float32))[..., None]), -TOP, TOP)
        return {".q": codes.astype(np.int8).view(np.uint8).reshape(rows, -1), ".scale": scale}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> F32:
        rows, columns = shape
        codes = np.ascontiguousarray(parts[".q"]).view(np.int8).reshape(rows, -1, self.group).astype(np.float32)
        codes *= parts[".scale"].astype(np.float32)[..., None]
        return np.ascontiguousarray(codes.reshape(rows, -1)[:, :columns])


_FORMATS = {form.name: form for form in (Q8G(group) for group in (32, 64, 128))}
NAMES = tuple(_FORMATS)


def parse(name: str) -> Q8G | None:
    """The 8-bit format called `name`, if it is one."""
    return _FORMATS.get(name)
