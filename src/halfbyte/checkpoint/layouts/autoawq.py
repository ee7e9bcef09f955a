"""AutoAWQ's layout ("GEMM"): 4-bit codes packed along the outputs, eight to a word in an order of their own.

qweight  i32 [in, out/8]      nibble i of a word holds output column (0, 2, 4, 6, 1, 3, 5, 7)[i] of its eight
qzeros   i32 [groups, out/8]  in the same order
scales   f16 [groups, out]    value = (q - z)·s
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

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_BACK = tuple(ORDER.index(column) for column in range(8))


class AutoAwq:
    """Reads and writes matrices of this layout.

    Args:
        group_size: Inputs that share a scale; -1 for all.
    """

    marker = "qweight"
    suffixes = ("qweight", "qzeros", "scales")
    optional = ()

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """Rows and columns of the matrix, from its tensors' shapes; ValueError where they contradict."""
        weight, zeros, scales = (shapes[suffix] for suffix in self.suffixes)
        expect(len(weight) == 2, f"qweight {list(weight)}")
        columns, rows = weight[0], weight[1] * 8
        groups = 1 if self.group_size == -1 else -(-columns // self.group_size)
        expect(zeros == (groups, rows // 8), f"qzeros {list(zeros)} of {groups} groups")
        expect(scales == (groups, rows), f"scales {list(scales)} of {groups} groups")
        return rows, columns

    def read(self, shape: tuple[int, int], tensors: Mapping[str, NDArray[np.generic]]) -> Grouped:
        """The matrix; ValueError where its tensors have other types."""
        weight, zeros, scales = (tensors[suffix] for suffix in self.suffixes)
        expect(weight.dtype.itemsize == zeros.dtype.itemsize == 4, "qweight and qzeros are not 32 bits wide")
        size = shape[1] if self.group_size == -1 else self.group_size

        def codes() -> U8:
            return np.ascontiguousarray(_in_order(weight).T)

        return Grouped(shape, 4, size, as_float(scales).T, _in_order(zeros).T, None, codes)

    def write(self, weight: Weight) -> dict[str, NDArray[np.generic]]:
        """The tensors, by suffix, of a matrix in 4-bit groups whose rows are a multiple of 8."""
        codes, scales, zeros = split_groups(weight)
        return {
            "qweight": _out_of_order(codes.T),
            "qzeros": _out_of_order(zeros.T),
            "scales": np.ascontiguousarray(scales.T.astype(np.float16)),
        }


def scheme(path: Path, settings: Mapping[str, Any]) -> AutoAwq:
    """The layout that a `quantization_config` describes.

    Raises:
        UnsupportedModelError: It is not the 4-bit GEMM layout.
        InvalidModelError: A value is missing or out of range.
    """
    version, bits = settings.get("version", settings.get("format", "gemm")), whole_number(settings, "bits", path)
    if bits != 4 or not isinstance(version, str) or version.lower() != "gemm":
        raise UnsupportedModelError(
            f"{path} is AWQ of {bits} bits in the layout {shown(version)}.", "Halfbyte reads 4 bits in the layout gemm."
        )
    size = whole_number(settings, "group_size", path)
    if size != -1 and not 1 <= size <= 1 << 20:
        raise UnsupportedModelError(f"{path} is AWQ in groups of {size}.", "Halfbyte reads groups of 1 or more, or -1.")
    return AutoAwq(size)


def settings(group_size: int, skipped: list[str]) -> dict[str, Any]:
    """The `quantization_config` of what `write` makes; `skipped` names modules that are not quantized."""
    return {
        "quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": skipped or None,
    }  # fmt: skip


def _in_order(words: NDArray[np.generic]) -> U8:
    codes = unpack_words(words, 4).reshape(len(words), -1, 8)
    return codes[..., _BACK].reshape(len(words), -1)


def _out_of_order(codes: U8) -> NDArray[np.int32]:
    return pack_words(codes.reshape(len(codes), -1, 8)[..., ORDER].reshape(len(codes), -1), 4)
