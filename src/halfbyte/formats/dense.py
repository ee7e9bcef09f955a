"""Unquantized weights: `f32`, `f16`, `bf16`, stored as they are. bf16 is kept as its 16 bits in uint16."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halfbyte.formats import Parts, Storage, stored_part

_F16_MAX = np.float32(65504)
_STORED = {"f32": ("F32", np.float32), "f16": ("F16", np.float16), "bf16": ("BF16", np.uint16)}


def bf16_to_f32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Widen bfloat16 bits; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


@dataclass(frozen=True)
class Dense:
    """A plain format. In f16, values beyond its range become its largest."""

    name: str

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {"": (_STORED[self.name][0], shape)}

    def encode(self, values: NDArray[np.float32]) -> Parts:
        if self.name == "bf16":
            return {"": f32_to_bf16(values)}
        if self.name == "f16":
            values = np.clip(values, -_F16_MAX, _F16_MAX)
        return {"": values.astype(_STORED[self.name][1])}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> NDArray[np.float32]:
        stored = parts[""].reshape(shape)
        return bf16_to_f32(stored.view(np.uint16)) if self.name == "bf16" else stored.astype(np.float32)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape) * np.dtype(_STORED[self.name][1]).itemsize

    def storage(self, columns: int) -> Storage:
        fours = -(-columns // 4)
        nbytes = fours * 4 * np.dtype(_STORED[self.name][1]).itemsize
        return Storage("dense", {"KIND": self.name, "ROW4": fours}, {"w": stored_part("", nbytes)}, False)


NAMES = tuple(_STORED)


def parse(name: str) -> Dense | None:
    """The plain format called `name`, if it is one."""
    return Dense(name) if name in _STORED else None
