"""Which part of a model a step belongs to, the way people speak of layers, told from what feeds it."""

from __future__ import annotations

from halfbyte.plan import Plan
from halfbyte.plan.ops import (
    Add,
    Attention,
    CausalConv,
    Embed,
    GateColumns,
    GatedActivation,
    GatedDeltaRule,
    GatedLinear,
    GatedNorm,
    GateHeads,
    KvWrite,
    Linear,
    LowRank,
    Op,
    QkNorm,
    RmsNorm,
    Rope,
    RopeKvWrite,
    RopeTable,
    Rows,
    Scale,
    SplitGates,
)

_SIMPLE: dict[type[Op], str] = {
    Embed: "embedding",
    RopeTable: "rope + cache",
    Rope: "rope + cache",
    KvWrite: "rope + cache",
    RopeKvWrite: "rope + cache",
    Attention: "attention",
    RmsNorm: "norms",
    QkNorm: "norms",
    Add: "norms",
    Scale: "norms",
    GatedLinear: "gate_up",
    GatedActivation: "gate_up",
    LowRank: "adapters",
    CausalConv: "convolution",
    GatedDeltaRule: "delta rule",
    GatedNorm: "norms",
    SplitGates: "gates",
    GateHeads: "gates",
    GateColumns: "layer inputs",
}


def parts(plan: Plan) -> list[str]:
    """The part of each step: embedding, qkv, rope + cache, attention, o, gate_up, down, norms or LM head.

    Some models have a convolution, delta rule, gates or layer inputs, too; and adapters. What reads a layer's input is
    called qkv.
    """
    head = next((i for i, step in enumerate(plan.steps) if isinstance(step, Rows)), len(plan.steps))
    made: dict[str, Op] = {}
    found = []
    for i, step in enumerate(plan.steps):
        found.append("LM head" if i >= head and not isinstance(step, RmsNorm) else _part(plan, step, made))
        made.update(dict.fromkeys(step.outputs, step))
    return found


def _part(plan: Plan, step: Op, made: dict[str, Op]) -> str:
    if not isinstance(step, Linear):
        return _SIMPLE.get(type(step), type(step).__name__)
    match made.get(step.x):
        case Attention() | CausalConv() | GatedNorm() | GateHeads():
            return "o"
        case GatedLinear() | GatedActivation():
            return "down"
        case GateColumns():
            return "layer inputs"
    outputs = {step.out, *(other.out for other in plan.steps if isinstance(other, LowRank) and other.y == step.out)}
    feeds_gate = any(isinstance(other, GatedActivation) and other.x in outputs for other in plan.steps)
    for reader in plan.steps:
        if not outputs.isdisjoint(reader.inputs):
            of_ids = isinstance(made.get(step.x), Embed) and isinstance(reader, QkNorm) and not reader.kv_heads
            if isinstance(reader, GateColumns) or of_ids:
                return "layer inputs"
    return "gate_up" if feeds_gate else "qkv"
