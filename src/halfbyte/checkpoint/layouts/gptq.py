"""GPTQ's layout (AutoGPTQ, GPTQModel): codes of 3, 4 or 8 bits packed along the inputs, lowest bits first.

    qweight  i32 [in·bits/32, out]      in 3 bits, 32 codes fill 3 words, and codes 10 and 21 straddle two
    qzeros   i32 [groups, out·bits/32]  packed along the outputs; version 1 stores z - 1, version 2 stores z
    scales   f16 [groups, out]          value = (q - z)·s
    g_idx    i32 [in]                   the group of each input; missing or in order unless act-order was used

Version 1 subtracts 1 from whole words, so that a zero point of 0 borrows from its neighbour (GPTQModel,
convert_gptq_v2_to_v1_format); adding 1 to whole words undoes that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.checks import shown
from halfbyte.checkpoint.layouts.grouped import (
    Grouped,
    as_float,
    expect,
    pack_words,
    split_groups,
    unpack_words,
    whole_number,
)
from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import Weight
from halfbyte.formats.ggml import U8

V1, V2 = "gptq", "gptq_v2"
_ONES = {4: 0x11111111, 8: 0x01010101}
_BITS = (3, 4, 8)


class Gptq:
    """Reads and writes matrices of this layout.

    Args:
        bits: Of a code: 3, 4 or 8.
        group_size: Inputs that share a scale; -1 for all.
        version: `gptq`, whose zero points are stored less 1, or `gptq_v2`.
        symmetric: Whether every zero point is the middle of the range. Then it does not matter which version stored
            them: files are known that have those of the other one.
    """

    marker = "qweight"
    suffixes = ("qweight", "qzeros", "scales", "g_idx")
    optional = ("g_idx",)

    def __init__(self, bits: int, group_size: int, version: str, *, symmetric: bool = False) -> None:
        self.bits, self.group_size, self.version, self.symmetric = bits, group_size, version, symmetric

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """Rows and columns of the matrix, from its tensors' shapes; ValueError where they contradict."""
        weight, zeros, scales = shapes["qweight"], shapes["qzeros"], shapes["scales"]
        expect(len(weight) == 2 and weight[0] * 32 % self.bits == 0, f"qweight {list(weight)}")
        columns, rows = weight[0] * 32 // self.bits, weight[1]
        groups = 1 if self.group_size == -1 else -(-columns // self.group_size)
        expect(zeros == (groups, rows * self.bits // 32), f"qzeros {list(zeros)} of {groups} groups")
        expect(scales == (groups, rows), f"scales {list(scales)} of {groups} groups")
        expect(shapes.get("g_idx", (columns,)) == (columns,), f"g_idx {list(shapes.get('g_idx', ()))}")
        return rows, columns

    def read(self, shape: tuple[int, int], tensors: Mapping[str, NDArray[np.generic]]) -> Grouped:
        """The matrix; ValueError where its tensors have other types or name groups that are not there."""
        weight, zeros, scales = tensors["qweight"], tensors["qzeros"], as_float(tensors["scales"])
        expect(weight.dtype.itemsize == zeros.dtype.itemsize == 4, "qweight and qzeros are not 32 bits wide")
        size = shape[1] if self.group_size == -1 else self.group_size
        order = group_order(tensors.get("g_idx"), size, len(scales))
        unpacked = self._zeros(np.ascontiguousarray(zeros))
        bits = self.bits
        return Grouped(shape, bits, size, scales.T, unpacked.T, order, lambda: unpack_words(weight.T, bits))

    def write(self, weight: Weight) -> dict[str, NDArray[np.generic]]:
        """The tensors, by suffix, of a matrix in groups of these bits; rows and columns are multiples of 32."""
        codes, scales, zeros = split_groups(weight)
        size: int = weight.format.group  # type: ignore[attr-defined]
        return {
            "qweight": np.ascontiguousarray(pack_words(codes, self.bits).T),
            "qzeros": self._pack_zeros(np.ascontiguousarray(zeros.T)),
            "scales": np.ascontiguousarray(scales.T.astype(np.float16)),
            "g_idx": (np.arange(weight.shape[1]) // size).astype(np.int32),
        }

    def settings(self, symmetric: bool, skipped: list[str]) -> dict[str, Any]:
        """The `quantization_config` of what `write` makes; `skipped` names modules that are not quantized."""
        return {
            "quant_method": "gptq", "bits": self.bits, "group_size": self.group_size, "desc_act": False,
            "sym": symmetric, "checkpoint_format": self.version, "modules_to_not_convert": skipped or None,
        }  # fmt: skip

    def _zeros(self, words: NDArray[np.generic]) -> U8:
        if not self.symmetric:
            return self._unpack_zeros(words)
        stored, middle = unpack_words(words, self.bits), 1 << self.bits - 1
        as_stored = bool((stored == middle).all() or (stored == middle - 1).all())
        expect(as_stored, f"sym is true, but zero points other than {middle} are stored")
        return np.full_like(stored, middle)

    def _unpack_zeros(self, words: NDArray[np.generic]) -> U8:
        if self.version == V2:
            return unpack_words(words, self.bits)
        if self.bits == 3:
            return unpack_words(words, 3) + np.uint8(1) & np.uint8(7)
        return unpack_words(words.view(np.uint32) + np.uint32(_ONES[self.bits]), self.bits)

    def _pack_zeros(self, zeros: U8) -> NDArray[np.int32]:
        if self.version == V2:
            return pack_words(zeros, self.bits)
        if self.bits == 3:
            return pack_words(zeros - np.uint8(1) & np.uint8(7), 3)
        return (pack_words(zeros, self.bits).view(np.uint32) - np.uint32(_ONES[self.bits])).view(np.int32)


def scheme(path: Path, settings: Mapping[str, Any]) -> Gptq:
    """The layout that a `quantization_config` describes.

    Raises:
        UnsupportedModelError: A number of bits or a layout that Halfbyte cannot read.
        InvalidModelError: A value is missing or out of range.
    """
    version, bits = settings.get("checkpoint_format", settings.get("format", V1)), whole_number(settings, "bits", path)
    if bits not in _BITS or version not in (V1, V2):
        raise UnsupportedModelError(
            f"{path} is GPTQ of {bits} bits in the layout {shown(version)}.",
            f"Halfbyte reads 3, 4 and 8 bits in the layouts {V1} and {V2}.",
        )
    size = whole_number(settings, "group_size", path)
    if size != -1 and not 1 <= size <= 1 << 20:
        hint = "Halfbyte reads groups of 1 or more, or -1."
        raise UnsupportedModelError(f"{path} is GPTQ in groups of {size}.", hint)
    _refuse_dynamic(path, settings.get("dynamic"))
    return Gptq(bits, size, version, symmetric=settings.get("sym") is True)


def _refuse_dynamic(path: Path, rules: Any) -> None:
    """Refuse modules with settings of their own; modules that are left as they are (`-:`) are no trouble."""
    named = rules if isinstance(rules, dict | list) else [rules] if rules else []
    own = [rule for rule in named if not str(rule).startswith("-:")]
    if own:
        raise UnsupportedModelError(
            f"{path} is GPTQ with settings of their own for some modules (`dynamic`: {shown(own[0])}).",
            "Halfbyte reads GPTQ with the same settings for all modules.",
        )


def group_order(stored: NDArray[np.generic] | None, size: int, groups: int) -> NDArray[np.intp] | None:
    """The group of each column, or None where they come in order; ValueError for groups that are not there."""
    if stored is None or not stored.size or (stored.astype(np.int64) == -1).all():
        return None
    expect(stored.dtype.kind in "iu", "the group indices are no integers")
    order = stored.astype(np.intp)
    expect(order.min() >= 0 and order.max() < groups, f"a group index is outside 0 … {groups - 1}")
    return None if (order == np.arange(len(order)) // size).all() else order
