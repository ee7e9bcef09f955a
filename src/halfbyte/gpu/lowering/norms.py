"""Lowers norms, and the rounding of values to int8 blocks, which the same kernel does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbyte.gpu.lowering.builder import Bound, Builder
from halfbyte.gpu.lowering.program import Axis, Ref, grid
from halfbyte.gpu.lowering.tensor import DeviceTensor, PendingResidual
from halfbyte.gpu.shaders import rules
from halfbyte.plan import ops

_NOTHING = dict.fromkeys(("GATHER", "PROMPTS", "NORM", "RESIDUAL", "OUT", "SECOND", "OUT2", "EMIT"), False)


def lower_norm(step: ops.RmsNorm, b: Builder) -> None:
    """A norm, with the one that follows it where the two are paired, unless its readers do it."""
    second = _second(b)
    if b.index in b.schedule.left:
        _leave_to_readers(step, second, b)
        return
    source = b.values[step.x]
    gathered = not b.section.one_row and gathers(step.x, b)
    f32, int8 = b.schedule.forms(step.out)
    value = b.value(step.out, source.width, f32=f32, int8=int8 and not second)
    bound = {
        "x": source.f32,
        "weight": _weight(step, b),
        "out": value.f32,
        "residual": b.values[step.residual].f32 if step.residual else None,
        "x8_out": value.x8,
        "xm_out": value.xm,
    }
    constants = {
        "GATHER": gathered,
        "PROMPTS": False,
        "NORM": True,
        "RESIDUAL": bool(step.residual),
        "OUT": bool(value.f32),
        "EPS": step.eps,
        "SECOND": bool(second),
        "OUT2": False,
        "EMIT": bool(value.x8),
    }
    if second:
        f32, int8 = b.schedule.forms(second.out)
        after = b.value(second.out, source.width, f32=f32, int8=int8)
        bound |= {"weight2": _weight(second, b), "out2": after.f32, "x8_out": after.x8, "xm_out": after.xm}
        constants |= {"OUT2": f32, "EMIT": int8}
    _add(constants, bound, source, "norm", b)


def _weight(norm: ops.RmsNorm, b: Builder) -> Ref:
    """What a norm multiplies by."""
    return b.context.vector(norm.weight, offset=norm.offset, scale=norm.scale)


def _second(b: Builder) -> ops.RmsNorm | None:
    """The norm that is paired with the one being lowered."""
    second = b.section.steps[b.schedule.paired[b.index]] if b.index in b.schedule.paired else None
    return second if isinstance(second, ops.RmsNorm) else None


def _leave_to_readers(step: ops.RmsNorm, second: ops.RmsNorm | None, b: Builder) -> None:
    """Make the value of a norm, or of a pair, that the products which read it make their input from."""
    last, source = second or step, b.values[step.x]
    value = DeviceTensor(source.width, f32=source.f32, eps=last.eps, norm=_weight(last, b))
    if step.residual:
        residual, total = b.values[step.residual], b.value(step.out, source.width)
        value.added = PendingResidual(_weight(step, b), residual, total)
    b.values[last.out] = value


def prepare_norm(source: DeviceTensor, b: Builder) -> dict[str, Ref | None]:
    """Make the value of the norm that the step which writes `source` prepares; the buffers that step needs for it."""
    norm = b.section.steps[b.schedule.prepared[b.index]]
    if not isinstance(norm, ops.RmsNorm):
        raise TypeError(f"{type(norm).__name__} is no norm")
    value = b.value(norm.out, source.width, f32=False, int8=True, eps=norm.eps)
    return {"norm": _weight(norm, b), "x8_out": value.x8, "xm_out": value.xm}


def gathers(rows: str, b: Builder) -> bool:
    """Whether a tensor is the choice of some rows, and only norms read it: they find their rows themselves."""
    readers = [b.section.steps[i] for i in b.section.readers.get(rows, ())]
    chosen = any(isinstance(step, ops.Rows) and step.out == rows for step in b.section.steps)
    return chosen and bool(readers) and all(isinstance(step, ops.RmsNorm) and not step.residual for step in readers)


def gather(source: DeviceTensor, rows: str, b: Builder) -> None:
    """Make the tensor that holds the wanted rows of another."""
    value = b.value(rows, source.width)
    constants = _NOTHING | {"GATHER": True, "OUT": True}
    _add(constants, {"x": source.f32, "out": value.f32}, source, "rows", b)


def quantize_outputs(step: ops.Op, b: Builder) -> None:
    """Make the int8 blocks that readers want of what a step left in float32 only."""
    for name in step.outputs:
        value = b.values.get(name)
        if value and not value.x8 and b.schedule.forms(name)[1]:
            quantize(value, b)


def quantize(value: DeviceTensor, b: Builder) -> None:
    """Make the int8 blocks of a value from its float32."""
    value.x8, value.xm = (b.take(b.section.capacity * value.stride // share) for share in (1, 2))
    _add(_NOTHING | {"EMIT": True}, _rounded(value), value, "quantize", b)


def quantize_prompts(value: DeviceTensor, b: Builder) -> None:
    """Fill the int8 blocks of the tokens of prompts from their float32."""
    constants = _NOTHING | {"EMIT": True, "PROMPTS": True}
    _add(constants, _rounded(value), value, "quantize prompts", b, Axis(count="prompts"))


def _rounded(value: DeviceTensor) -> Bound:
    return {"x": value.f32, "x8_out": value.x8, "xm_out": value.xm}


def _add(
    constants: Mapping[str, Any], bound: Bound, source: DeviceTensor, label: str, b: Builder, rows: Axis | None = None
) -> None:
    """A norm of this section's rows, or of others."""
    sizes = rules.norm(b.context.config, width=source.width, columns=b.section.columns)
    shape = {"W": source.width, "STRIDE4": source.stride // 4}
    b.add("norm", {**sizes, **shape, **constants}, bound, grid(rows or b.row_steps()), label)
