"""What each op means. `run_op` finds the function for an op by its type.

Arrays hold the rows of this batch only: n tokens, r logit rows. Caches are written in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import singledispatch
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UnsupportedModelError
from halfbyte.plan import cache, ops

Array = NDArray[Any]
Get = Callable[[str], Array]
F32 = np.float32


@singledispatch
def run_op(op: ops.Op, get: Get) -> Array | None:
    """The output of `op`, whose inputs `get` gives by name; None where it only writes caches.

    Raises:
        UnsupportedModelError: The op is unknown.
    """
    raise UnsupportedModelError(f"the reference has no op {type(op).__name__}.", "Update Halfbyte.")


@run_op.register
def _(op: ops.Embed, get: Get) -> Array:
    return get(op.table)[get(op.ids)] * F32(op.scale)


@run_op.register
def _(op: ops.RopeTable, get: Get) -> Array:
    angle = get(op.positions)[:, None].astype(F32) * get(op.inv_freq)[get(op.sets)]
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * F32(op.factor)


def rms_norm(x: Array, weight: Array | np.float32, eps: float, offset: float) -> Array:
    """x / √(mean(x²) + eps) · (offset + weight), over the last axis."""
    mean = np.mean(np.square(x), axis=-1, keepdims=True, dtype=F32)
    return x / np.sqrt(mean + F32(eps)) * (F32(offset) + weight)


@run_op.register
def _(op: ops.RmsNorm, get: Get) -> Array:
    out = rms_norm(get(op.x), get(op.weight), op.eps, op.offset) * F32(op.scale)
    return out if op.residual is None else get(op.residual) + out


def _stacked(x: Array, weights: tuple[str, ...], get: Get) -> Array:
    return np.concatenate([x @ get(name).T for name in weights], axis=1)


@run_op.register
def _(op: ops.Linear, get: Get) -> Array:
    out = _stacked(get(op.x), op.weights, get)
    if op.bias:
        out = out + np.concatenate([get(name) for name in op.bias])
    return out if op.residual is None else get(op.residual) + out


@run_op.register
def _(op: ops.LowRank, get: Get) -> Array:
    x, out, adapters = get(op.x), get(op.y).copy(), get(op.adapters)
    for begin, *names in zip(op.columns, op.a, op.b, op.scales, strict=True):
        a, b, scales = map(get, names)
        a, b = a.reshape(len(scales), -1, a.shape[1]), b.reshape(len(scales), -1, b.shape[1])
        for k in np.unique(adapters[adapters > 0]) - 1:
            tokens = adapters == k + 1
            out[tokens, begin : begin + b.shape[1]] += scales[k] * (x[tokens] @ a[k].T @ b[k].T)
    return out


def activate(x: Array, activation: str) -> Array:
    """SiLU, or GELU in its tanh form."""
    if activation == "silu":
        return x / (1 + np.exp(-x))
    return F32(0.5) * x * (1 + np.tanh(F32(np.sqrt(2 / np.pi)) * (x + F32(0.044715) * x**3)))


def _gated(x: Array, activation: str) -> Array:
    gate, up = np.split(x, 2, axis=1)
    with np.errstate(over="ignore"):
        return activate(gate, activation) * up


@run_op.register
def _(op: ops.GatedLinear, get: Get) -> Array:
    return _gated(_stacked(get(op.x), op.weights, get), op.activation)


@run_op.register
def _(op: ops.GatedActivation, get: Get) -> Array:
    return _gated(get(op.x), op.activation)


@run_op.register
def _(op: ops.Add, get: Get) -> Array:
    return get(op.x) + get(op.y)


def _split(op: Any, qkv: Array) -> tuple[Array, Array, Array]:
    """(q, k, v) as [n, heads, head_dim]."""
    heads = qkv.reshape(len(qkv), -1, op.head_dim)
    return heads[:, : op.heads], heads[:, op.heads : op.heads + op.kv_heads], heads[:, op.heads + op.kv_heads :]


def _join(q: Array, k: Array, v: Array) -> Array:
    return np.concatenate([q, k, v], axis=1).reshape(len(q), -1)


@run_op.register
def _(op: ops.QkNorm, get: Get) -> Array:
    q, k, v = _split(op, get(op.qkv))

    def normed(x: Array, weight: str) -> Array:
        shape = (len(x), 1, -1) if op.whole else x.shape
        return rms_norm(x.reshape(shape), get(weight), op.eps, op.offset).reshape(x.shape)

    if op.v_norm:
        v = rms_norm(v, F32(1), op.eps, 0.0)
    return _join(normed(q, op.q_weight), normed(k, op.k_weight), v)


def rotate(x: Array, table: Array) -> Array:
    """x [n, heads, head_dim] with its first values rotated by table [n, 2, D/2], halves against each other."""
    half = table.shape[-1]
    cos, sin = table[:, None, 0], table[:, None, 1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def mixed(x: Array, size: int) -> Array:
    """Every `size` values of the last axis multiplied by the Hadamard matrix of that size, over its root."""
    matrix = np.ones((1, 1), F32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return x if size == 1 else (x.reshape(-1, size) @ (matrix / F32(np.sqrt(size)))).reshape(x.shape)


def growth(op: ops.Rope | ops.RopeKvWrite, positions: Array) -> Array:
    """What queries at these positions are multiplied by, `[n, 1, 1]`."""
    return (1 + op.beta * np.log1p(positions // op.beta_length)).astype(F32)[:, None, None]


def _turned(op: ops.Rope | ops.RopeKvWrite, q: Array, k: Array, get: Get) -> tuple[Array, Array]:
    q, k = (mixed(rotate(x, get(op.table)), op.hadamard) for x in (q, k))
    return (q * growth(op, get(op.positions)) if op.beta else q), k


@run_op.register
def _(op: ops.Rope, get: Get) -> Array:
    q, k, v = _split(op, get(op.qkv))
    return _join(*_turned(op, q, k, get), v)


def slots(blocks: Array, sequences: Array, positions: Array, block_size: int) -> tuple[Array, Array]:
    """(block, offset) of each position in its sequence; tables with fewer columns than the context are rings."""
    return blocks[sequences, positions // block_size % blocks.shape[1]], positions % block_size


def _write(op: Any, k: Array, v: Array, get: Get) -> None:
    k_cache, v_cache = get(op.k_cache), get(op.v_cache)
    block, offset = slots(get(op.blocks), get(op.sequences), get(op.positions), k_cache.shape[2])
    k_cache[block, :, offset] = cache.encode(k, k_cache.dtype)
    v_cache[block, :, offset] = cache.encode(v, v_cache.dtype)


@run_op.register
def _(op: ops.KvWrite, get: Get) -> None:
    _, k, v = _split(op, get(op.qkv))
    _write(op, k, v, get)


@run_op.register
def _(op: ops.RopeKvWrite, get: Get) -> Array:
    q, k, v = _split(op, get(op.qkv))
    if op.q_weight and op.k_weight:
        q = rms_norm(q, get(op.q_weight), op.eps, op.offset)
        k = rms_norm(k, get(op.k_weight), op.eps, op.offset)
    if op.v_norm:
        v = rms_norm(v, F32(1), op.eps, 0.0)
    q, k = _turned(op, q, k, get)
    _write(op, k, v, get)
    return q.reshape(len(q), -1)


@run_op.register
def _(op: ops.Attention, get: Get) -> Array:
    q = get(op.q)[:, : op.heads * op.head_dim].reshape(-1, op.kv_heads, op.heads // op.kv_heads, op.head_dim)
    sequences, positions = get(op.sequences), get(op.positions)
    out = np.empty_like(q)
    for s in np.unique(sequences):
        rows = np.flatnonzero(sequences == s)
        out[rows] = _attend(op, q[rows], positions[rows], int(s), get)
    return out.reshape(len(q), -1)


def _attend(op: ops.Attention, q: Array, positions: Array, sequence: int, get: Get) -> Array:
    """One sequence's queries q[n, kv_heads, group, head_dim] over its cache."""
    k_cache, v_cache, blocks = get(op.k_cache), get(op.v_cache), get(op.blocks)
    window = op.window or int(positions.max()) + 1
    seen = np.arange(max(0, int(positions.min()) - window + 1), int(positions.max()) + 1)
    block, offset = slots(blocks, np.full(len(seen), sequence), seen, k_cache.shape[2])
    keys, values = (cache.decode(each[block, :, offset], op.head_dim) for each in (k_cache, v_cache))
    scores = q.transpose(1, 2, 0, 3) @ keys.transpose(1, 2, 0)[:, None] * F32(op.scale)
    if op.softcap is not None:
        scores = F32(op.softcap) * np.tanh(scores / F32(op.softcap))
    distance = positions[:, None] - seen[None, :]
    scores = np.where((distance >= 0) & (distance < window), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights @ values.transpose(1, 0, 2)[:, None]).transpose(2, 0, 1, 3).astype(F32)


def by_sequence(op: Any, get: Get) -> Iterator[tuple[Array, Array, int]]:
    """The batch's rows of each sequence, the state that they go on from, and the number of the one that they leave."""
    sequences, positions, states = get(op.sequences), get(op.positions), get(op.states)
    for s in np.unique(sequences):
        rows = np.flatnonzero(sequences == s)
        before, after = get(op.table)[s]
        yield rows, states[before].copy() if positions[rows[0]] else np.zeros_like(states[0]), int(after)


@run_op.register
def _(op: ops.CausalConv, get: Get) -> Array:
    x, states = get(op.x), get(op.states)
    weight = get(op.weight)[:, 0]
    channels, length = weight.shape
    inputs = x[:, :channels] * x[:, 2 * channels : 3 * channels] if op.gated else x[:, :channels]
    out = np.empty_like(inputs)
    for rows, before, after in by_sequence(op, get):
        seen = np.concatenate([before, inputs[rows]])
        out[rows] = sum(seen[j : j + len(rows)] * weight[:, j] for j in range(length))
        states[after] = seen[len(rows) :]
    with np.errstate(over="ignore"):
        return x[:, channels : 2 * channels] * out if op.gated else activate(out, "silu")


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^−x)"""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def _unit(x: Array) -> Array:
    return x / np.sqrt(np.sum(np.square(x), axis=-1, keepdims=True, dtype=F32) + F32(1e-6))


@run_op.register
def _(op: ops.GatedDeltaRule, get: Get) -> Array:
    qkv, states = get(op.qkv), get(op.states)
    beta, a = np.split(get(op.gates)[:, op.gates_at : op.gates_at + 2 * op.v_heads], 2, axis=1)
    fade = np.exp(-np.exp(get(op.a_log)) * np.logaddexp(F32(0), a + get(op.dt_bias)))
    beta = sigmoid(beta)
    keys = op.k_heads * op.k_dim
    q, k = (qkv[:, i * keys : (i + 1) * keys].reshape(-1, op.k_heads, op.k_dim) for i in (0, 1))
    heads = np.arange(op.v_heads)
    heads = heads % op.k_heads if op.tiled else heads // (op.v_heads // op.k_heads)
    q, k = (_unit(x)[:, heads] for x in (q, k))
    v = qkv[:, 2 * keys : 2 * keys + op.v_heads * op.v_dim].reshape(-1, op.v_heads, op.v_dim)
    out = np.empty((len(qkv), op.v_heads, op.v_dim), F32)
    for rows, state, after in by_sequence(op, get):
        for t in rows:
            state = state * fade[t, :, None, None]
            wrong = v[t] - np.einsum("hkv,hk->hv", state, k[t])
            state = state + k[t][:, :, None] * (wrong * beta[t, :, None])[:, None]
            out[t] = np.einsum("hkv,hk->hv", state, q[t]) * F32(op.k_dim**-0.5)
        states[after] = state
    return out.reshape(len(out), -1)


@run_op.register
def _(op: ops.GatedNorm, get: Get) -> Array:
    x, weight = get(op.x), get(op.weight)
    z = get(op.gate)[:, op.gate_at : op.gate_at + x.shape[1]]
    normed = rms_norm(x.reshape(len(x), -1, len(weight)), weight, op.eps, 0.0).reshape(x.shape)
    with np.errstate(over="ignore"):
        return normed * activate(z, "silu")


def _queries_and_gates(op: Any, x: Array) -> Array:
    """[n, heads, 2, head_dim]: each head's query, then its gate."""
    return x[:, : 2 * op.heads * op.head_dim].reshape(len(x), op.heads, 2, op.head_dim)


@run_op.register
def _(op: ops.SplitGates, get: Get) -> Array:
    x = get(op.x)
    q = _queries_and_gates(op, x)[:, :, 0].reshape(len(x), -1)
    return np.concatenate([q, x[:, 2 * op.heads * op.head_dim :]], axis=1)


@run_op.register
def _(op: ops.GateHeads, get: Get) -> Array:
    x = get(op.x)
    return x * sigmoid(_queries_and_gates(op, get(op.gates))[:, :, 1].reshape(x.shape))


@run_op.register
def _(op: ops.GateColumns, get: Get) -> Array:
    x = get(op.x)
    with np.errstate(over="ignore"):
        return activate(x, op.activation) * get(op.y)[:, op.at : op.at + x.shape[1]]


@run_op.register
def _(op: ops.Scale, get: Get) -> Array:
    return get(op.x) * get(op.factor)


@run_op.register
def _(op: ops.Rows, get: Get) -> Array:
    return get(op.x)[get(op.rows)]


@run_op.register
def _(op: ops.Softcap, get: Get) -> Array:
    return F32(op.cap) * np.tanh(get(op.x) / F32(op.cap))
