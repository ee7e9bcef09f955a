"""Lowers what keeps a state of each sequence, and the gates that belong to such layers."""

from __future__ import annotations

from typing import Any

from halfbyte.gpu.lowering.builder import Bound, Builder
from halfbyte.gpu.lowering.program import Axis, Ref, ceil_div, grid
from halfbyte.plan import ops

_COLUMN_FOURS = 4
"""Fours of a column that an invocation keeps in registers, if there are enough invocations."""


def lower_conv(step: ops.CausalConv, b: Builder) -> None:
    """A convolution, and the states that sequences of several tokens leave once all of these have been read."""
    source, (channels, _, taps) = b.values[step.x], b.context.plan.tensors[step.weight].shape
    value = b.value(step.out, channels)
    constants: dict[str, Any] = {
        "WG": 64,
        "C": channels,
        "TAPS": taps,
        "X_STRIDE": source.stride,
        "STRIDE": value.stride,
        "GATED": step.gated,
        "TABLE": b.context.state.tables[step.table],
    }
    bound = {
        "x": source.f32,
        "weight": b.context.vector(step.weight),
        "out": value.f32,
        "states": Ref("cache", step.states),
    }
    x = ceil_div(channels, constants["WG"])
    b.add("conv", constants | {"LEAVES": False}, bound, grid(x, b.tokens), "convolution")
    b.add("conv", constants | {"LEAVES": True}, bound, grid(x, Axis(count="prompts")), "state of a convolution")


def lower_delta(step: ops.GatedDeltaRule, b: Builder) -> None:
    """The delta rule, for tokens that are alone of their sequence and for the sequences of all others."""
    qkv, gates = b.values[step.qkv], b.values[step.gates]
    value = b.value(step.out, step.v_heads * step.v_dim)
    fours = ceil_div(step.k_dim, 4)
    team = min(32, 1 << (ceil_div(fours, _COLUMN_FOURS) - 1).bit_length())
    constants: dict[str, Any] = {
        "WG": 128,
        "TEAM": team,
        "ROWS": ceil_div(fours, team),
        "SLICES": ceil_div(step.v_dim, 128 // team),
        "K_HEADS": step.k_heads,
        "V_HEADS": step.v_heads,
        "K": step.k_dim,
        "V": step.v_dim,
        "K4": fours,
        "TILED": step.tiled,
        "ROW": qkv.stride,
        "GATES_ROW": gates.stride,
        "GATES_AT": step.gates_at,
        "STRIDE": value.stride,
        "SCALE": step.k_dim**-0.5,
        "TABLE": b.context.state.tables[step.table],
    }
    bound: Bound = {
        "qkv": qkv.f32,
        "gates": gates.f32,
        "a_log": b.context.vector(step.a_log),
        "dt_bias": b.context.vector(step.dt_bias),
        "states": Ref("cache", step.states),
        "out": value.f32,
    }
    x = step.v_heads * constants["SLICES"]
    b.add("delta", constants | {"PROMPTS": False}, bound, grid(x, 1, b.decodes), "delta rule")
    slots = Axis(b.context.plan.sequences, "prompts", max(1, b.section.capacity))
    b.add("delta", constants | {"PROMPTS": True}, bound, grid(x, 1, slots), "delta rule of prompts")


def lower_gated_norm(step: ops.GatedNorm, b: Builder) -> None:
    """A norm of each head, times what gates it."""
    x, gate, size = b.values[step.x], b.values[step.gate], b.context.plan.size(step.weight)
    value = b.value(step.out, x.width)
    constants = {
        "WG": 64,
        "SIZE": size,
        "EPS": step.eps,
        "X_STRIDE": x.stride,
        "GATE_STRIDE": gate.stride,
        "GATE_AT": step.gate_at,
        "STRIDE": value.stride,
    }
    bound = {"x": x.f32, "gate": gate.f32, "weight": b.context.vector(step.weight), "out": value.f32}
    b.add("gated_norm", constants, bound, grid(x.width // size, b.tokens), "gated norm")


def lower_split_gates(step: ops.SplitGates, b: Builder) -> None:
    """Queries, keys and values without the gates between them."""
    x, width = b.values[step.x], (step.heads + 2 * step.kv_heads) * step.head_dim
    value = b.value(step.out, width)
    constants = {
        "WG": 64,
        "HD": step.head_dim,
        "QUERIES": step.heads * step.head_dim,
        "WIDTH": width,
        "X_STRIDE": x.stride,
        "STRIDE": value.stride,
    }
    b.add("split_gates", constants, {"x": x.f32, "out": value.f32}, grid(ceil_div(width, 64), b.tokens), "queries")


def lower_gate_heads(step: ops.GateHeads, b: Builder) -> None:
    """What attention gives, times its gates."""
    x, gates = b.values[step.x], b.values[step.gates]
    value = b.value(step.out, step.heads * step.head_dim)
    constants = {
        "WG": 64,
        "HD": step.head_dim,
        "QUERIES": value.width,
        "X_STRIDE": x.stride,
        "GATES_STRIDE": gates.stride,
        "STRIDE": value.stride,
    }
    bound = {"x": x.f32, "gates": gates.f32, "out": value.f32}
    b.add("gate_heads", constants, bound, grid(ceil_div(value.width, 64), b.tokens), "gates of heads")
