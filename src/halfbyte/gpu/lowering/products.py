"""Lowers products with weights: matrix × vector for few columns, matrix × matrix for many, piece by piece."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from halfbyte.gpu.lowering.builder import Builder
from halfbyte.gpu.lowering.context import format_constants
from halfbyte.gpu.lowering.norms import prepare_norm
from halfbyte.gpu.lowering.program import Matrix, Ref, ceil_div, grid
from halfbyte.gpu.lowering.tensor import DeviceTensor, PartialAttention
from halfbyte.gpu.shaders import rules
from halfbyte.plan import ops

MOST_WORKGROUPS = 65535
MOST_INVOCATIONS = 1024
"""Of the largest workgroups that kernels take."""

_Buffers = dict[str, Ref | None]
_PLAIN: dict[str, Any] = {
    "GATED": False,
    "BIAS": False,
    "RESIDUAL": False,
    "OUT": True,
    "EMIT": False,
    "NORM": False,
}


def lower_linear(step: ops.Linear, b: Builder) -> None:
    """A product, with biases, with a residual, and with a norm that it prepares."""
    matrix = b.context.matrix(step.weights)
    prepares = b.index in b.schedule.prepared
    value = b.value(step.out, matrix.rows)
    bound: _Buffers = {
        "bias": b.context.vector(*step.bias) if step.bias else None,
        "residual": b.values[step.residual].f32 if step.residual else None,
        "out": value.f32,
    }
    flags = _PLAIN | {"BIAS": bool(step.bias), "RESIDUAL": bool(step.residual), "EMIT": prepares, "NORM": prepares}
    if prepares:
        bound |= prepare_norm(value, b)
    for piece in range(len(matrix.pieces)):
        _add_product(step, piece, flags, bound, value.stride, b)


def lower_gated(step: ops.GatedLinear, b: Builder) -> None:
    """A product of which one half gates the other."""
    matrix = b.context.matrix(step.weights)
    f32, int8 = b.schedule.forms(step.out)
    if len(matrix.pieces) > 1:
        _gate_apart(step, matrix, b)
    else:
        packed = b.context.packed(matrix, matrix.pieces[0])
        emit = bool(b.section.vectors and packed and int8 and not f32 and matrix.rows % 64 == 0)
        value = b.value(step.out, matrix.rows // 2, f32=not emit, int8=emit)
        flags = _PLAIN | {"GATED": True, "OUT": not emit, "EMIT": emit, "ACTIVATION": step.activation}
        bound: _Buffers = {"out": value.f32, "x8_out": value.x8, "xm_out": value.xm}
        _add_product(step, 0, flags, bound, value.stride, b)


def _gate_apart(step: ops.GatedLinear, matrix: Matrix, b: Builder) -> None:
    """A gated product whose matrix is in several pieces: the product, then the gate."""
    both = b.value(f"{step.out}.both", matrix.rows)
    for piece in range(len(matrix.pieces)):
        _add_product(step, piece, _PLAIN, {"out": both.f32}, both.stride, b)
    lower_gate(step, both, b)


def lower_gate(step: ops.GatedLinear | ops.GatedActivation, both: DeviceTensor, b: Builder) -> None:
    """The gate of values that a product made before."""
    value = b.value(step.out, both.width // 2)
    constants = {
        "WG": 64,
        "N": value.width,
        "X_STRIDE": both.stride,
        "STRIDE": value.stride,
        "ACTIVATION": step.activation,
    }
    where = grid(ceil_div(value.width, 64), b.row_steps())
    b.add("gate", constants, {"x": both.f32, "out": value.f32}, where, "gate")


def _add_product(
    step: ops.Linear | ops.GatedLinear, at: int, flags: dict[str, Any], bound: _Buffers, stride: int, b: Builder
) -> None:
    """The product with one piece of the matrix."""
    x, matrix = b.values[step.x], b.context.matrix(step.weights)
    piece = matrix.pieces[at]
    int8, rounds = b.index in b.schedule.int8, b.index in b.schedule.rounding
    outputs = piece.rows // 2 if flags["GATED"] else piece.rows
    constants = {
        **format_constants(matrix, piece),
        **flags,
        "INT8": int8,
        "N": outputs,
        "FIRST": piece.first,
        "STRIDE": stride,
        "K": matrix.columns,
        "X_STRIDE": x.stride,
        "X_BLOCKS": x.stride // 32,
        "DEFERRED": x.eps is not None,
        "EPS": x.eps,
        "ROUNDS": rounds,
        "ADDED": bool(x.added),
    }
    bound = {**b.context.arrays(matrix, at), **bound, **_input(x, blocks=int8 and not rounds)}
    label = f"{outputs * (2 if flags['GATED'] else 1)}×{matrix.columns}"
    if not b.section.vectors:
        _add_gemm(constants, bound, label, b)
        return
    ahead = _ahead(b) if at == 0 else {}
    if ahead:
        unread = b.take(4 * MOST_INVOCATIONS)
        bound |= {f"ahead{i}": ref for i, ref in enumerate(ahead)} | {"unread": unread}
        b.give_back(unread)
    constants["AHEAD"] = tuple((i, nbytes // 4) for i, nbytes in enumerate(ahead.values()))
    _add_gemv(constants, bound, label, x.splits, b)


def _input(x: DeviceTensor, *, blocks: bool) -> _Buffers:
    """What a product reads its input from."""
    taken: _Buffers = {"x8": x.x8, "xm": x.xm} if blocks else {"x": x.f32, "x_norm": x.norm}
    if x.added:
        taken |= {"x_weight": x.added.weight, "x_residual": x.added.residual.f32, "x_sum": x.added.sum.f32}
    return taken


def _ahead(b: Builder) -> dict[Ref, int]:
    """The buffers whose pages this product asks for, and their sizes.

    Only those of a matrix' first piece: a kernel may have 16 buffers on some devices.
    """
    if b.index not in b.schedule.ahead:
        return {}
    later = b.context.matrix(b.schedule.ahead[b.index])
    return {ref: later.pieces[0].nbytes(binding) for binding, ref in b.context.arrays(later, 0).items()}


def _add_gemv(
    constants: dict[str, Any], bound: _Buffers, label: str, splits: PartialAttention | None, b: Builder
) -> None:
    sizes = rules.gemv(
        b.context.config,
        outputs=constants["N"],
        blocks=constants["X_BLOCKS"],
        int8=constants["INT8"],
        gated=constants["GATED"],
        emit=constants["EMIT"],
        columns=b.section.columns,
        rounds=constants["ROUNDS"],
        format=constants["STORED"],
    )
    groups = ceil_div(constants["N"], sizes["WG"] // sizes["TEAM"] * sizes["ROWS"]) + bool(constants["AHEAD"])
    y = ceil_div(groups, MOST_WORKGROUPS)
    where, label = grid(ceil_div(groups, y), y), f"gemv {label}"
    constants = {**constants, **sizes, "SPLITS": 0, "PAGE": rules.PAGE_NBYTES // 4}
    if splits is None:
        b.add("gemv", constants, bound, where, label)
        return
    left: _Buffers = {"partial": splits.partial, "weight": splits.weight}
    few = b.dispatch("gemv", constants | splits.constants, bound | left, where, label)
    if splits.most_keys is not None:
        many = b.dispatch("gemv", constants, bound, where, label)
        few = replace(few, long=many, long_keys=splits.most_keys)
    b.dispatches.append(few)


def _add_gemm(constants: dict[str, Any], bound: _Buffers, label: str, b: Builder) -> None:
    sizes = rules.gemm(
        b.context.config,
        rows=b.section.capacity,
        outputs=constants["N"],
        width=constants["K"],
        int8=constants["INT8"],
        gated=constants["GATED"],
        scales=4 if constants.get("HALVES") and constants.get("OFFSETS") else 2,
        format=constants["STORED"],
    )
    x = ceil_div(constants["N"] * (2 if constants["GATED"] else 1), sizes["OUTS"])
    b.add("gemm", {**constants, **sizes}, bound, grid(x, b.row_steps(step=sizes["ROWS"])), f"gemm {label}")
