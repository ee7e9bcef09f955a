"""Lowers what adapters add to the output of a product: one dispatch for A · x of every part, one for B times that."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from halfbyte.errors import UnsupportedModelError
from halfbyte.gpu.lowering.builder import Builder
from halfbyte.gpu.lowering.context import format_constants
from halfbyte.gpu.lowering.program import Matrix, ceil_div, grid
from halfbyte.gpu.lowering.tensor import DeviceTensor
from halfbyte.plan import ops

ROWS = 4
"""Rows of A that a workgroup multiplies with a token."""
WG = 64


def lower_low_rank(step: ops.LowRank, b: Builder) -> None:
    """The sum is made where the product lies, unless something else reads that too.

    Raises:
        UnsupportedModelError: The matrices of all adapters do not fit a binding.
    """
    shrunk = _shrink(step, b)
    y, width = b.values[step.y], b.context.plan.tensors[step.out].shape[1]
    matrix, count = b.context.matrix(step.b), b.context.plan.size(step.scales[0])
    heights = [height // count for height in matrix.heights]
    starts = list(accumulate([0, *heights]))
    apart = b.section.readers[step.y] != (b.index,) or step.y in (b.section.keep, step.x)
    if apart:
        value = b.value(step.out, width)
    else:
        value = b.values[step.out] = DeviceTensor(width, f32=y.f32)
    constants = {
        "WG": WG, "COUNT": width if apart else starts[-1], "APART": apart, "Y_STRIDE": value.stride,
        "PARTS": tuple(zip(range(len(heights)), step.columns, heights, starts, strict=False)),
        "MANY": count, "RANK4": ceil_div(matrix.columns, 4), "STRIDE4": shrunk.stride // 4,
        **format_constants(matrix, matrix.pieces[0]),
    }  # fmt: skip
    bound = {**b.context.arrays(matrix, _only(matrix)), "y": y.f32, "shrunk": shrunk.f32, "out": value.f32}
    where = grid(ceil_div(constants["COUNT"], WG), b.row_steps())
    b.add("expand", constants, bound, where, f"adapters {starts[-1]}×{matrix.columns}")


def _shrink(step: ops.LowRank, b: Builder) -> DeviceTensor:
    """scale · A · x of every part, each in whole fours of values."""
    x, matrix, count = b.values[step.x], b.context.matrix(step.a), b.context.plan.size(step.scales[0])
    rank = matrix.heights[0] // count
    slots = len(step.a) * ceil_div(rank, 4) * 4
    shrunk = b.value(f"{step.out}.shrunk", slots)
    constants: dict[str, Any] = {
        "WG": WG, "ROWS": ROWS, "SLOTS": slots, "RANK": rank, "PADDED": slots // len(step.a), "MANY": count,
        "K4": ceil_div(matrix.columns, 4), "X_STRIDE4": x.stride // 4, "STRIDE": shrunk.stride,
        **format_constants(matrix, matrix.pieces[0]),
    }  # fmt: skip
    scales = b.context.vector(*step.scales)
    bound = {**b.context.arrays(matrix, _only(matrix)), "x": x.f32, "scales": scales, "out": shrunk.f32}
    where = grid(ceil_div(slots, ROWS), b.row_steps())
    b.add("shrink", constants, bound, where, f"adapters {len(step.a) * rank}×{matrix.columns}")
    return shrunk


def _only(matrix: Matrix) -> int:
    """The number of the only piece of a matrix."""
    if len(matrix.pieces) > 1:
        raise UnsupportedModelError(
            "the matrices of all adapters together do not fit this GPU's buffers.", "Load fewer adapters at once."
        )
    return 0
