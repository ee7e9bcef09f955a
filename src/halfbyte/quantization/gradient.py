"""The original computation backwards: from the gradient of a result to those of every input, an op at a time.

`pull_back` finds the function for an op by its type, as `halfbyte.reference.ops.run_op` does forwards. It reads the
values that the forward pass left. Only ops of unfused plans are known, for one text whose tokens are all there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UnsupportedModelError
from halfbyte.plan import ops
from halfbyte.reference.ops import growth, rotate, slots

Array = NDArray[Any]
Get = Callable[[str], Array]
Gradients = dict[str, Array]
F32 = np.float32

_QUERIES = 128


def backward(steps: Sequence[ops.Op], get: Get, output: Array) -> Gradients:
    """Gradients of every activation, cache and weight that steps read, given that of the last step's output.

    Args:
        steps: Steps that have run, in their order.
        get: Gives weights, and the values that the steps left.
        output: The gradient of the last step's output.
    """
    gradients: Gradients = {steps[-1].outputs[0]: output}
    for step in reversed(steps):
        known = [gradients.pop(name) for name in step.outputs if name in gradients]
        if not known:
            continue
        for name, term in pull_back(step, get, *known).items():
            gradients[name] = gradients[name] + term if name in gradients else term
    return gradients


@singledispatch
def pull_back(op: ops.Op, get: Get, *outputs: Array) -> Gradients:
    """Gradients of an op's inputs from those of its outputs; caches have theirs token by token, `[n, kv_heads, D]`."""
    raise UnsupportedModelError(
        f"a model cannot be refined through {type(op).__name__}, which has no gradient.", "Leave out `refine`."
    )


@pull_back.register
def _(op: ops.Embed, get: Get, out: Array) -> Gradients:
    table = np.zeros_like(get(op.table))
    np.add.at(table, get(op.ids), out * F32(op.scale))
    return {op.table: table}


def _norm(x: Array, weight: Array, eps: float, offset: float, out: Array) -> tuple[Array, Array]:
    """Gradients of x and of the weight of an RMS norm over the last axis."""
    inverse = 1 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True, dtype=F32) + F32(eps))
    normed = x * inverse
    scaled = out * (F32(offset) + weight)
    along = np.mean(scaled * normed, axis=-1, keepdims=True, dtype=F32)
    return (scaled - normed * along) * inverse, (out * normed).reshape(-1, x.shape[-1]).sum(axis=0)


@pull_back.register
def _(op: ops.RmsNorm, get: Get, out: Array) -> Gradients:
    x, weight = _norm(get(op.x), get(op.weight), op.eps, op.offset, out * F32(op.scale))
    return {op.x: x, op.weight: weight}


@pull_back.register
def _(op: ops.Linear, get: Get, out: Array) -> Gradients:
    x, start = get(op.x), 0
    gradients: Gradients = {op.x: np.zeros_like(x)}
    for name in op.weights:
        weight = get(name)
        rows = out[:, start : start + len(weight)]
        gradients[op.x] += rows @ weight
        gradients[name] = rows.T @ x
        start += len(weight)
    return gradients | _bias(op.bias, get, out)


def _bias(names: tuple[str, ...], get: Get, out: Array) -> Gradients:
    """Gradients of vectors that are stacked and added to every row."""
    ends = np.cumsum([len(get(name)) for name in names])
    return dict(zip(names, np.split(out.sum(axis=0), ends[:-1]), strict=True)) if names else {}


@pull_back.register
def _(op: ops.GatedActivation, get: Get, out: Array) -> Gradients:
    gate, up = np.split(get(op.x), 2, axis=1)
    value, slope = _activation(gate, op.activation)
    return {op.x: np.concatenate([out * up * slope, out * value], axis=1)}


def _activation(x: Array, activation: str) -> tuple[Array, Array]:
    """SiLU or GELU in its tanh form, and its derivative."""
    if activation == "silu":
        with np.errstate(over="ignore"):
            share = 1 / (1 + np.exp(-x))
        return x * share, share * (1 + x * (1 - share))
    root = F32(np.sqrt(2 / np.pi))
    bent = np.tanh(root * (x + F32(0.044715) * x**3))
    inner = root * (1 + F32(3 * 0.044715) * x**2)
    return F32(0.5) * x * (1 + bent), F32(0.5) * (1 + bent + x * (1 - bent**2) * inner)


@pull_back.register
def _(op: ops.Scale, get: Get, out: Array) -> Gradients:
    return {op.x: out * get(op.factor), op.factor: np.sum(out * get(op.x), keepdims=True)[0]}


@pull_back.register
def _(op: ops.Add, get: Get, out: Array) -> Gradients:
    return {op.x: out, op.y: out}


def _cut(op: Any, qkv: Array) -> tuple[Array, Array, Array]:
    heads = qkv.reshape(len(qkv), -1, op.head_dim)
    return heads[:, : op.heads], heads[:, op.heads : op.heads + op.kv_heads], heads[:, op.heads + op.kv_heads :]


def _joined(parts: Sequence[Array]) -> Array:
    return np.concatenate(parts, axis=1).reshape(len(parts[0]), -1)


@pull_back.register
def _(op: ops.QkNorm, get: Get, out: Array) -> Gradients:
    (q, k, v), (dq, dk, dv) = _cut(op, get(op.qkv)), _cut(op, out)
    if op.v_norm:
        dv = _norm(v, np.ones(op.head_dim, F32), op.eps, 0.0, dv)[0]
    if op.whole:
        q, k, dq, dk = (part.reshape(len(part), 1, -1) for part in (q, k, dq, dk))
    q_in, q_weight = _norm(q, get(op.q_weight), op.eps, op.offset, dq)
    k_in, k_weight = _norm(k, get(op.k_weight), op.eps, op.offset, dk)
    q_in, k_in = (part.reshape(len(part), -1, op.head_dim) for part in (q_in, k_in))
    return {op.qkv: _joined([q_in, k_in, dv]), op.q_weight: q_weight, op.k_weight: k_weight}


@pull_back.register
def _(op: ops.Rope, get: Get, out: Array) -> Gradients:
    back = get(op.table) * np.array([[1], [-1]], F32)
    q, k, v = _cut(op, out)
    if op.beta:
        q = q * growth(op, get(op.positions))
    return {op.qkv: _joined([rotate(q, back), rotate(k, back), v])}


@pull_back.register
def _(op: ops.KvWrite, get: Get, keys: Array, values: Array) -> Gradients:
    queries = np.zeros((len(keys), op.heads, op.head_dim), F32)
    return {op.qkv: _joined([queries, keys, values])}


@pull_back.register
def _(op: ops.Attention, get: Get, out: Array) -> Gradients:
    tokens, width = len(out), op.heads * op.head_dim
    shape = (tokens, op.kv_heads, op.heads // op.kv_heads, op.head_dim)
    source, positions = get(op.q), get(op.positions)
    where = slots(get(op.blocks), get(op.sequences), positions, get(op.k_cache).shape[2])
    keys, values = (get(cache)[where[0], :, where[1]].astype(F32) for cache in (op.k_cache, op.v_cache))
    q, d_out = source[:, :width].reshape(shape), out.reshape(shape)
    d_q, d_keys, d_values = np.zeros_like(source), np.zeros_like(keys), np.zeros_like(values)
    for start in range(0, tokens, _QUERIES):
        rows = slice(start, min(start + _QUERIES, tokens))
        seen = slice(0, rows.stop)
        mask = _unseen(positions[rows], positions[seen], op.window)
        part = _attend(op, q[rows], keys[seen], values[seen], mask, d_out[rows])
        d_q[rows, :width] = part[0].reshape(-1, width)
        d_keys[seen] += part[1]
        d_values[seen] += part[2]
    return {op.q: d_q, op.k_cache: d_keys, op.v_cache: d_values}


def _unseen(queries: Array, keys: Array, window: int | None) -> Array:
    distance = queries[:, None] - keys[None, :]
    return (distance < 0) | (distance >= (window or len(keys) + 1))


def _attend(
    op: ops.Attention, q: Array, keys: Array, values: Array, unseen: Array, out: Array
) -> tuple[Array, Array, Array]:
    """Gradients of queries `[n, kv_heads, group, D]`, keys and values `[m, kv_heads, D]`."""
    q, out = (heads.transpose(1, 2, 0, 3) for heads in (q, out))
    keys, values = (heads.transpose(1, 0, 2)[:, None] for heads in (keys, values))
    scores = q @ keys.swapaxes(-1, -2) * F32(op.scale)
    bend: Array | float = 1.0
    if op.softcap is not None:
        bent = np.tanh(scores / F32(op.softcap))
        scores, bend = F32(op.softcap) * bent, 1 - bent**2
    scores[..., unseen] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    d_weights = out @ values.swapaxes(-1, -2)
    d_scores = weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True)) * bend * F32(op.scale)
    d_q = d_scores @ keys
    d_keys, d_values = ((a.swapaxes(-1, -2) @ b).sum(axis=1) for a, b in ((d_scores, q), (weights, out)))
    return d_q.transpose(2, 0, 1, 3), d_keys.transpose(1, 0, 2), d_values.transpose(1, 0, 2)


@pull_back.register
def _(op: ops.Rows, get: Get, out: Array) -> Gradients:
    x = np.zeros_like(get(op.x))
    np.add.at(x, get(op.rows), out)
    return {op.x: x}


@pull_back.register
def _(op: ops.Softcap, get: Get, out: Array) -> Gradients:
    return {op.x: out * (1 - np.tanh(get(op.x) / F32(op.cap)) ** 2)}
