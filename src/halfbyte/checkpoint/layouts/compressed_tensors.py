"""The layout `pack-quantized` of compressed-tensors (llm-compressor, vLLM): codes of 4 or 8 bits along the inputs.

weight_packed      i32 [out, ceil(in·bits/32)]   codes plus 2^(bits - 1), lowest bits first
weight_scale       [out, groups]                 f16, bf16 or f32; one group where a row has one scale
weight_zero_point  i32 [ceil(out·bits/32), groups]   packed along the outputs; missing where symmetric
weight_shape       integers [2]                  out and in
weight_g_idx       [in]                          the group of each input; missing or -1 unless act-order was used
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.checks import shown
from halfbyte.checkpoint.layouts.gptq import group_order
from halfbyte.checkpoint.layouts.grouped import Grouped, as_float, expect, unpack_words
from halfbyte.errors import InvalidModelError, UnsupportedModelError
from halfbyte.formats.ggml import U8

FORMAT = "pack-quantized"
_BITS = (4, 8)


class PackQuantized:
    """Reads matrices of this layout; each says by its shapes how many bits and groups it has."""

    marker = "weight_packed"
    suffixes = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
    optional = ("weight_zero_point", "weight_g_idx")

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """Rows and columns of the matrix, from its tensors' shapes; ValueError where they contradict.

        Columns are those that the words can hold: `weight_shape` may say that the last word is not full, but every
        matrix of a supported model fills it.
        """
        packed, scales = shapes["weight_packed"], shapes["weight_scale"]
        expect(len(packed) == 2, f"weight_packed {list(packed)}")
        rows, columns = packed[0], packed[1] * 32 // self.bits
        expect(len(scales) == 2 and scales[0] == rows and 0 < scales[1] <= columns, f"weight_scale {list(scales)}")
        expect(columns % scales[1] == 0, f"{columns} columns in {scales[1]} groups")
        zeros = (-(-rows * self.bits // 32), scales[1])
        expect(shapes.get("weight_zero_point", zeros) == zeros, "weight_zero_point")
        expect(shapes.get("weight_g_idx", (columns,)) == (columns,), "weight_g_idx")
        expect(shapes["weight_shape"] == (2,), "weight_shape")
        return rows, columns

    def read(self, shape: tuple[int, int], tensors: Mapping[str, NDArray[np.generic]]) -> Grouped:
        """The matrix; ValueError where its tensors have other types or another shape is meant."""
        packed, scales = tensors["weight_packed"], as_float(tensors["weight_scale"])
        expect(packed.dtype.itemsize == 4, "weight_packed is not 32 bits wide")
        expect(tensors["weight_shape"].tolist() == list(shape), f"weight_shape is not {list(shape)}")
        size = shape[1] // scales.shape[1]
        order = group_order(tensors.get("weight_g_idx"), size, scales.shape[1])
        zeros = self._zeros(tensors.get("weight_zero_point"), scales)
        bits = self.bits
        return Grouped(shape, bits, size, scales, zeros, order, lambda: unpack_words(packed, bits))

    def _zeros(self, stored: NDArray[np.generic] | None, scales: NDArray[np.float32]) -> U8:
        if stored is None:
            return np.full(scales.shape, 1 << self.bits - 1, np.uint8)
        expect(stored.dtype.itemsize == 4, "weight_zero_point is not 32 bits wide")
        return np.ascontiguousarray(unpack_words(stored.T, self.bits)[:, : len(scales)].T)


def scheme(path: Path, settings: Mapping[str, Any]) -> PackQuantized:
    """The layout that a `quantization_config` describes.

    Raises:
        UnsupportedModelError: Another layout, quantized activations, or a number of bits that Halfbyte cannot read.
        InvalidModelError: The settings are not what compressed-tensors writes.
    """
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not groups or not all(isinstance(group, dict) for group in groups.values()):
        raise InvalidModelError(f"{path}: quantization_config has no config_groups.", "Download the model again.")
    layout = settings.get("format")
    found = sorted({_described(group, layout) for group in groups.values()})
    match = re.fullmatch(r"integers of (\d+) bits", found[0])
    bits = int(match[1]) if match else 0
    if layout != FORMAT or len(found) > 1 or bits not in _BITS:
        raise UnsupportedModelError(
            f"{path} is quantized to {' and '.join(found)} (compressed-tensors' format {shown(layout)}).",
            f"Halfbyte reads the format {FORMAT} where all quantized weights are integers of 4 bits, or all of 8, and "
            "activations are plain.",
        )
    return PackQuantized(bits)


def _described(group: Mapping[str, Any], layout: Any) -> str:
    """What the weights of a group are, and its activations if they are quantized too, as people call it."""
    weights, activations = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, dict) or type(weights.get("num_bits")) is not int:
        return "weights that are not described"
    bits, kind = weights["num_bits"], weights.get("type", "int")
    if kind == "float":
        small = next((name for name in ("NVFP4", "MXFP4") if name.lower() in str(layout)), "FP4")
        return {8: "FP8", 4: small}.get(bits, f"floats of {bits} bits")
    if activations:
        also = activations.get("num_bits") if isinstance(activations, dict) else None
        return f"W{bits}A{also if type(also) is int else '?'}"
    return f"integers of {bits} bits"
