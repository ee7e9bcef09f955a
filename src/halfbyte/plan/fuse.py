"""Fusions: rewrites of a plan that save a pass over memory. Each is a function from steps to steps.

A pair is fused only where the tensor between the two has no other reader.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from halfbyte.plan.ops import Add, GatedActivation, GatedLinear, KvWrite, Linear, Op, QkNorm, RmsNorm, Rope, RopeKvWrite
from halfbyte.plan.plan import Plan, Tensor

Steps = tuple[Op, ...]


def fuse(plan: Plan) -> Plan:
    """The plan with every fusion applied, and without the tensors that are no longer used."""
    steps = plan.steps
    for rewrite in (fuse_gate, fuse_rope_and_cache, fuse_residual):
        steps = rewrite(steps)
    used = {name for step in steps for name in (*step.inputs, *step.outputs)}
    tensors = {name: tensor for name, tensor in plan.tensors.items() if name in used or tensor.kind == "state"}
    queries = {step.out: step.heads * step.head_dim for step in steps if isinstance(step, RopeKvWrite)}
    tensors |= {name: _narrowed(tensors[name], width) for name, width in queries.items()}
    return replace(plan, steps=steps, tensors=tensors)


def _narrowed(tensor: Tensor, width: int) -> Tensor:
    """The tensor with rows of `width` values."""
    rows, before = tensor.shape
    return replace(tensor, shape=(rows, width), nbytes=tensor.nbytes // before * width)


def fuse_gate(steps: Steps) -> Steps:
    """Linear, GatedActivation → GatedLinear: the gate and up values are never stored."""

    def gated(first: Op, second: Op) -> Op | None:
        plain = isinstance(first, Linear) and first.residual is None and not first.bias
        if isinstance(first, Linear) and plain and isinstance(second, GatedActivation):
            return GatedLinear(first.x, first.weights, second.out, second.activation)
        return None

    return _fuse_neighbours(steps, gated)


def fuse_residual(steps: Steps) -> Steps:
    """Linear or RmsNorm, Add → the same with a residual: the sum is made while the row is at hand."""

    def summed(first: Op, second: Op) -> Op | None:
        if isinstance(first, Linear | RmsNorm) and first.residual is None and isinstance(second, Add):
            other = second.y if second.x == first.out else second.x
            return replace(first, out=second.out, residual=other)
        return None

    return _fuse_neighbours(steps, summed)


def fuse_rope_and_cache(steps: Steps) -> Steps:
    """(QkNorm,) Rope, KvWrite → RopeKvWrite: q is rotated, k and v go straight to the cache.

    A norm of all heads together stays a step of its own. Attention, which read q from the rotated qkv, reads the
    rotated q under the same name.
    """
    fused: list[Op] = []
    for step in steps:
        if isinstance(step, KvWrite) and isinstance(fused[-1], Rope):
            rope = fused.pop()
            last = fused[-1]
            norm = last if isinstance(last, QkNorm) and not last.whole else None
            if norm is not None:
                fused.pop()
            fused.append(_rope_kv_write(norm, rope, step))
        else:
            fused.append(step)
    return tuple(fused)


def _rope_kv_write(norm: QkNorm | None, rope: Op, write: KvWrite) -> RopeKvWrite:
    if not isinstance(rope, Rope):
        raise TypeError(f"expected Rope, got {type(rope).__name__}")
    fused = RopeKvWrite(
        rope.heads,
        rope.kv_heads,
        rope.head_dim,
        norm.qkv if norm else rope.qkv,
        rope.table,
        write.positions,
        write.sequences,
        write.blocks,
        write.k_cache,
        write.v_cache,
        rope.out,
        hadamard=rope.hadamard,
        beta=rope.beta,
        beta_length=rope.beta_length,
    )
    if norm is None:
        return fused
    return replace(
        fused, q_weight=norm.q_weight, k_weight=norm.k_weight, v_norm=norm.v_norm, eps=norm.eps, offset=norm.offset
    )


def _fuse_neighbours(steps: Sequence[Op], rewrite: Callable[[Op, Op], Op | None]) -> Steps:
    """Replace each neighbouring pair that `rewrite` accepts, if the second alone reads what the first writes."""
    readers = Counter(name for step in steps for name in step.inputs)
    fused: list[Op] = []
    for step in steps:
        previous = fused[-1] if fused else None
        linked = previous is not None and previous.outputs[0] in step.inputs and readers[previous.outputs[0]] == 1
        replacement = rewrite(previous, step) if linked and previous is not None else None
        if replacement is None:
            fused.append(step)
        else:
            fused[-1] = replacement
    return tuple(fused)
