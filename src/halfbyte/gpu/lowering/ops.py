"""How each op of a plan is lowered: one function for each, registered by the op's type."""

from __future__ import annotations

from functools import singledispatch

from halfbyte.errors import UnsupportedModelError
from halfbyte.gpu.lowering import attention, low_rank, norms, products, stateful
from halfbyte.gpu.lowering.builder import Builder
from halfbyte.gpu.lowering.context import format_constants
from halfbyte.gpu.lowering.norms import prepare_norm
from halfbyte.gpu.lowering.program import Ref, ceil_div, grid, padded
from halfbyte.gpu.lowering.tensor import DeviceTensor
from halfbyte.gpu.shaders import rules
from halfbyte.plan import ops


@singledispatch
def lower_op(step: ops.Op, b: Builder) -> None:
    """Append the dispatches of a step, and note the value that it makes.

    Raises:
        UnsupportedModelError: There are no kernels for the op, or for the format of its weights.
    """
    raise UnsupportedModelError(f"the GPU has no kernels for the operation {type(step).__name__}.", "Use device='cpu'.")


lower_op.register(ops.RmsNorm)(norms.lower_norm)
lower_op.register(ops.Linear)(products.lower_linear)
lower_op.register(ops.GatedLinear)(products.lower_gated)
lower_op.register(ops.LowRank)(low_rank.lower_low_rank)
for _heads_op in (ops.QkNorm, ops.Rope, ops.KvWrite, ops.RopeKvWrite):
    lower_op.register(_heads_op)(attention.lower_heads)
lower_op.register(ops.Attention)(attention.lower_attention)
lower_op.register(ops.CausalConv)(stateful.lower_conv)
lower_op.register(ops.GatedDeltaRule)(stateful.lower_delta)
lower_op.register(ops.GatedNorm)(stateful.lower_gated_norm)
lower_op.register(ops.SplitGates)(stateful.lower_split_gates)
lower_op.register(ops.GateHeads)(stateful.lower_gate_heads)


@lower_op.register
def _(step: ops.Embed, b: Builder) -> None:
    matrix = b.context.matrix((step.table,))
    prepares = b.index in b.schedule.prepared
    value = b.value(step.out, matrix.columns)
    prepared = prepare_norm(value, b) if prepares else {}
    for at, piece in enumerate(matrix.pieces):
        stored = format_constants(matrix, piece)
        sizes = rules.embed(
            b.context.config, width=matrix.columns, int8=prepares, columns=b.section.columns, format=stored["STORED"]
        )
        constants = {
            **sizes,
            "K": matrix.columns,
            "STRIDE4": value.stride // 4,
            "SCALE": step.scale,
            "ROW0": piece.first,
            "ROWS": piece.rows,
            "EMIT": prepares,
            **stored,
        }
        bound = {**b.context.arrays(matrix, at), "out": value.f32, **prepared}
        b.add("embed", constants, bound, grid(ceil_div(value.stride // 4, sizes["WG"]), b.tokens), "embed")


@lower_op.register
def _(step: ops.RopeTable, b: Builder) -> None:
    half = b.context.plan.tensors[step.out].shape[2]
    value = DeviceTensor(2 * half, f32=b.take(padded(b.section.capacity * 2 * half) * 4))
    b.values[step.out] = value
    bound = {"inv_freq": Ref("constant", step.inv_freq), "out": value.f32}
    where = grid(ceil_div(half, 64), b.tokens)
    b.add("rope_table", {"HALF": half, "FACTOR": step.factor}, bound, where, "rope table")


@lower_op.register
def _(step: ops.Rows, b: Builder) -> None:
    source = b.values[step.x]
    b.head = len(b.dispatches)
    if b.section.one_row or norms.gathers(step.out, b):
        b.values[step.out] = DeviceTensor(source.width, f32=source.f32)
    else:
        norms.gather(source, step.out, b)


@lower_op.register
def _(step: ops.Add, b: Builder) -> None:
    x, y = b.values[step.x], b.values[step.y]
    value = b.value(step.out, x.width)
    constants = {"WG": 64, "STRIDE4": value.stride // 4}
    where = grid(ceil_div(value.stride // 4, 64), b.row_steps())
    b.add("add", constants, {"x": x.f32, "y": y.f32, "out": value.f32}, where, "add")


@lower_op.register
def _(step: ops.Scale, b: Builder) -> None:
    x = b.values[step.x]
    value = b.value(step.out, x.width)
    constants = {"WG": 64, "STRIDE4": value.stride // 4}
    where = grid(ceil_div(value.stride // 4, 64), b.row_steps())
    b.add("scale", constants, {"x": x.f32, "factor": b.context.vector(step.factor), "out": value.f32}, where, "scale")


@lower_op.register
def _(step: ops.GateColumns, b: Builder) -> None:
    x, y = b.values[step.x], b.values[step.y]
    value = b.value(step.out, x.width)
    constants = {
        "WG": 64,
        "WIDTH": x.width,
        "AT": step.at,
        "X_STRIDE": x.stride,
        "Y_STRIDE": y.stride,
        "STRIDE": value.stride,
        "ACTIVATION": step.activation,
    }
    where = grid(ceil_div(x.width, 64), b.row_steps())
    b.add("gate_columns", constants, {"x": x.f32, "y": y.f32, "out": value.f32}, where, "inputs of layers")


@lower_op.register
def _(step: ops.GatedActivation, b: Builder) -> None:
    products.lower_gate(step, b.values[step.x], b)


@lower_op.register
def _(step: ops.Softcap, b: Builder) -> None:
    source = b.values[step.x]
    value = b.value(step.out, source.width)
    count = b.section.capacity * value.stride
    constants = {"WG": 256, "COUNT": count, "CAP": step.cap}
    where = grid(min(ceil_div(count, 256), products.MOST_WORKGROUPS))
    b.add("softcap", constants, {"x": source.f32, "out": value.f32}, where, "softcap")
