"""A `ModelSpec` becomes a plan: plain ops in the order of the forward pass, nothing fused yet."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from halfbyte.formats import Format
from halfbyte.models.spec import Layer, ModelSpec, Projection, SelfAttention
from halfbyte.plan import cache
from halfbyte.plan.ops import (
    Add,
    Attention,
    Embed,
    GatedActivation,
    KvWrite,
    Linear,
    Op,
    QkNorm,
    RmsNorm,
    Rope,
    RopeTable,
    Rows,
    Softcap,
)
from halfbyte.plan.plan import (
    LOGITS,
    STATE_IDS,
    STATE_POSITIONS,
    STATE_ROPE_SETS,
    STATE_ROWS,
    STATE_SEQUENCES,
    CacheGroup,
    Kind,
    Plan,
    Tensor,
)

_BYTES = 4
"""Of a number of an activation, a constant or the state."""


class _Builder:
    """Collects the tensors and steps of one plan."""

    def __init__(self, spec: ModelSpec, formats: Callable[[str], Format], tokens: int) -> None:
        self.spec = spec
        self.formats = formats
        self.tokens = tokens
        self.tensors: dict[str, Tensor] = {}
        self.steps: list[Op] = []
        self.constants: dict[str, NDArray[np.float32]] = {}
        self.eps = spec.norm_eps / spec.residual_scale**2

    def tensor(self, name: str, shape: tuple[int, ...], kind: Kind = "activation", dtype: str = "f32") -> str:
        self.tensors[name] = Tensor(name, shape, dtype, kind, math.prod(shape) * _BYTES)
        return name

    def rows(self, name: str, width: int) -> str:
        """An activation of `width` values a token."""
        return self.tensor(name, (self.tokens, width))

    def weight(self, name: str) -> str:
        shape, stored = self.spec.shapes[name], self.formats(name)
        self.tensors[name] = Tensor(name, shape, stored.name, "weight", stored.nbytes(shape))
        return name

    def weights(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self.weight(name) for name in names)

    def add(self, step: Op) -> str:
        """Append a step; the name of its output."""
        self.steps.append(step)
        return step.outputs[0]

    def norm(self, x: str, weight: str | None, out: str, *, of_stream: bool = True) -> str:
        """A norm over the hidden size; x itself where there is no weight.

        Args:
            of_stream: Whether x is the residual stream. It is kept divided by `ModelSpec.residual_scale`: then what
                layers add to it needs no factor, and its norm is the same but for the epsilon.
        """
        if weight is None:
            return x
        spec = self.spec
        eps = self.eps if of_stream else spec.norm_eps
        return self.add(RmsNorm(x, self.weight(weight), self.rows(out, spec.hidden_size), eps, spec.norm_offset))

    def linear(self, x: str, projection: Projection, out: str) -> str:
        width = sum(self.spec.shapes[name][0] for name in projection.weights)
        weights, bias = self.weights(projection.weights), self.weights(projection.bias)
        return self.add(Linear(x, weights, self.rows(out, width), bias=bias))


def build(
    spec: ModelSpec,
    formats: Callable[[str], Format],
    *,
    tokens: int,
    rows: int,
    sequences: int,
    context: int,
    block_size: int,
    kv_dtype: str,
    cache_tokens: int | None = None,
) -> Plan:
    """The unfused plan of a model; see `halfbyte.plan.make_plan` for the arguments."""
    b = _Builder(spec, formats, tokens)
    for name in (STATE_IDS, STATE_POSITIONS, STATE_SEQUENCES, STATE_ROPE_SETS):
        b.tensor(name, (tokens,), "state", "i32")
    b.tensor(STATE_ROWS, (rows,), "state", "i32")
    groups = _cache_groups(b, tokens, sequences, context, block_size, kv_dtype, cache_tokens)
    tables = {name: _rope_table(b, name) for name in dict.fromkeys(attention.rope for attention in spec.attentions)}
    scale = spec.embed_scale / spec.residual_scale
    x = b.add(Embed(STATE_IDS, b.weight(spec.embed), b.rows("embedding", spec.hidden_size), scale))
    for i, layer in enumerate(spec.layers):
        attention = layer.mixer.spec
        x = _attention_half(b, layer, f"layers.{i}.", x, tables[attention.rope], groups[attention.window])
        x = _mlp_half(b, layer, f"layers.{i}.", x)
    _head(b, x, rows)
    return Plan(
        tokens, rows, sequences, context, block_size, b.tensors, tuple(b.steps), tuple(groups.values()), b.constants
    )


def _cache_groups(
    b: _Builder, tokens: int, sequences: int, context: int, block_size: int, kv_dtype: str, cache_tokens: int | None
) -> dict[int | None, CacheGroup]:
    """One group per window size. A window's cache is a ring of the window and one batch, where that is less than all.

    The pool of a group holds every sequence at its longest, or `cache_tokens` positions if that is less, but always one
    sequence at its longest.
    """
    layers: dict[int | None, list[int]] = {}
    for i, attention in enumerate(b.spec.attentions):
        layers.setdefault(attention.window, []).append(i)
    groups = {}
    for window, members in layers.items():
        columns = -(-context // block_size)
        if window is not None:
            columns = min(columns, -(-(window - 1 + tokens) // block_size) + 1)
        blocks = b.tensor(f"blocks.{window or 'all'}", (sequences, columns), "state", "i32")
        pool = sequences * columns
        if cache_tokens is not None and cache_tokens < sequences * context:
            pool = min(pool, max(columns, -(-cache_tokens // block_size)))
        caches = tuple(_cache(b, i, pool, block_size, kv_dtype) for i in members)
        groups[window] = CacheGroup(blocks, columns, window, caches)
    return groups


def _cache(b: _Builder, layer: int, blocks: int, block_size: int, dtype: str) -> tuple[str, str]:
    attention = b.spec.attentions[layer]
    shape = (blocks, attention.kv_heads, block_size, attention.head_dim)
    nbytes = math.prod(shape[:-1]) * cache.head_nbytes(dtype, attention.head_dim)
    k, v = f"layers.{layer}.k_cache", f"layers.{layer}.v_cache"
    b.tensors |= {name: Tensor(name, shape, dtype, "cache", nbytes) for name in (k, v)}
    return k, v


def _rope_table(b: _Builder, name: str) -> str:
    rope = b.spec.ropes[name]
    frequencies = rope.inv_freq()
    constant = b.tensor(f"inv_freq.{name}", frequencies.shape, "constant")
    b.constants[constant] = frequencies
    out = b.tensor(f"rope_table.{name}", (b.tokens, 2, rope.dim // 2))
    return b.add(RopeTable(STATE_POSITIONS, STATE_ROPE_SETS, constant, out, rope.attention_factor))


def _attention_half(b: _Builder, layer: Layer, at: str, x: str, table: str, group: CacheGroup) -> str:
    mixer = layer.mixer
    a = mixer.spec
    heads = (a.heads, a.kv_heads, a.head_dim)
    width = (a.heads + 2 * a.kv_heads) * a.head_dim
    qkv = b.linear(b.norm(x, layer.input_norm, f"{at}attention_in"), mixer.qkv, f"{at}qkv")
    qkv = _qk_norm(b, mixer, qkv, b.rows(f"{at}qkv_normed", width)) if mixer.q_norm else qkv
    k, v = group.caches[[pair[0] for pair in group.caches].index(f"{at}k_cache")]
    hadamard = cache.rotation(b.tensors[k].dtype, a.head_dim)
    growth = (a.temperature.beta, a.temperature.length) if a.temperature else ()
    qkv = b.add(Rope(*heads, qkv, table, STATE_POSITIONS, b.rows(f"{at}qkv_rotated", width), hadamard, *growth))
    b.add(KvWrite(*heads, qkv, STATE_POSITIONS, STATE_SEQUENCES, group.blocks, k, v))
    attended = b.rows(f"{at}attended", a.heads * a.head_dim)
    state = (STATE_POSITIONS, STATE_SEQUENCES, group.blocks)
    b.add(Attention(*heads, qkv, k, v, *state, attended, a.scale, a.window, a.softcap))
    return _onto_residual(b, x, b.linear(attended, mixer.o, f"{at}o"), layer.post_mixer_norm, f"{at}attention")


def _qk_norm(b: _Builder, mixer: SelfAttention, qkv: str, out: str) -> str:
    a, spec = mixer.spec, b.spec
    if mixer.q_norm is None or mixer.k_norm is None:
        raise ValueError("q and k are both normed, or neither")
    q_weight, k_weight = b.weights((mixer.q_norm, mixer.k_norm))
    eps, offset = spec.norm_eps, spec.norm_offset
    return b.add(QkNorm(a.heads, a.kv_heads, a.head_dim, qkv, q_weight, k_weight, out, eps, offset, a.whole_norm))


def _mlp_half(b: _Builder, layer: Layer, at: str, x: str) -> str:
    mlp = layer.mlp
    gate_up = b.linear(b.norm(x, layer.mlp_norm, f"{at}mlp_in"), mlp.gate_up, f"{at}gate_up")
    gated = b.add(GatedActivation(gate_up, b.rows(f"{at}gated", mlp.width), mlp.activation))
    return _onto_residual(b, x, b.linear(gated, mlp.down, f"{at}down"), layer.post_mlp_norm, f"{at}mlp")


def _onto_residual(b: _Builder, residual: str, x: str, norm: str | None, half: str) -> str:
    """residual + x, where a norm of x may come first."""
    x = b.norm(x, norm, f"{half}_normed", of_stream=False)
    return b.add(Add(residual, x, b.rows(f"{half}_out", b.spec.hidden_size)))


def _head(b: _Builder, x: str, rows: int) -> None:
    """Final norm and logits, for the wanted rows only."""
    spec = b.spec
    chosen = b.add(Rows(x, STATE_ROWS, b.tensor("chosen", (rows, spec.hidden_size))))
    normed = b.tensor("final", (rows, spec.hidden_size))
    b.add(RmsNorm(chosen, b.weight(spec.final_norm), normed, b.eps, spec.norm_offset, scale=spec.logit_scale))
    logits = (rows, spec.vocab_size)
    if spec.logit_softcap is None:
        b.add(Linear(normed, (b.weight(spec.lm_head),), b.tensor(LOGITS, logits, "output")))
        return
    raw = b.add(Linear(normed, (b.weight(spec.lm_head),), b.tensor("raw_logits", logits)))
    b.add(Softcap(raw, b.tensor(LOGITS, logits, "output"), spec.logit_softcap))
