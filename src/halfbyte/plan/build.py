"""A `ModelSpec` becomes a plan: plain ops in the order of the forward pass, nothing fused yet."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import Format
from halfbyte.models.spec import (
    LORA_A,
    LORA_B,
    LORA_SCALES,
    AttentionSpec,
    DeltaNet,
    Layer,
    LayerInput,
    LayerInputs,
    Mixer,
    ModelSpec,
    Projection,
    SelfAttention,
    ShortConv,
)
from halfbyte.plan import cache
from halfbyte.plan.ops import (
    Add,
    Attention,
    CausalConv,
    Embed,
    GateColumns,
    GatedActivation,
    GatedDeltaRule,
    GatedNorm,
    GateHeads,
    KvWrite,
    Linear,
    LowRank,
    Op,
    QkNorm,
    RmsNorm,
    Rope,
    RopeTable,
    Rows,
    Scale,
    Softcap,
    SplitGates,
)
from halfbyte.plan.plan import (
    LOGITS,
    STATE_ADAPTERS,
    STATE_IDS,
    STATE_POSITIONS,
    STATE_ROPE_SETS,
    STATE_ROWS,
    STATE_SEQUENCES,
    CacheGroup,
    Kind,
    Plan,
    StateGroup,
    Tensor,
)

_BYTES = 4
"""Of a number of an activation, a constant or the state."""
KEPT_NBYTES, LEAST_KEPT, MOST_KEPT = 256 << 20, 4, 64
"""States that are kept for sequences to come, beside one for each that runs: as many as take so much, in bounds."""
_STATES = "states"


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
        self.unadapted = set(spec.adapters.matrices) if spec.adapters else set()

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
        if self.unadapted.isdisjoint(weights):
            return self.add(Linear(x, weights, self.rows(out, width), bias=bias))
        return self.adapted(x, self.add(Linear(x, weights, self.rows(f"{out}_base", width), bias=bias)), weights, out)

    def adapted(self, x: str, y: str, weights: tuple[str, ...], out: str) -> str:
        """y, the product of x with weights, as the adapter of each token changes it."""
        heights = [self.spec.shapes[name][0] for name in weights]
        starts = zip(weights, accumulate([0, *heights]), strict=False)
        changed = [(name, start) for name, start in starts if name in self.unadapted]
        self.unadapted -= {name for name, _ in changed}
        parts = [self._adapters_of(name) for name, _ in changed]
        a, b, scales = (tuple(part[i] for part in parts) for i in range(3))
        columns = tuple(start for _, start in changed)
        return self.add(LowRank(x, y, a, b, scales, STATE_ADAPTERS, self.rows(out, sum(heights)), columns))

    def _adapters_of(self, weight: str) -> tuple[str, str, str]:
        """Names of the tensors that hold A, B and the scales of all adapters for a matrix."""
        adapters, (rows, columns) = self.spec.adapters, self.spec.shapes[weight]
        count, rank = (len(adapters.names), adapters.rank) if adapters else (0, 0)
        shapes = {LORA_A: (count * rank, columns), LORA_B: (count * rows, rank), LORA_SCALES: (count,)}
        for suffix, shape in shapes.items():
            name, stored = f"{weight}{suffix}", self.formats(f"{weight}{suffix}")
            self.tensors[name] = Tensor(name, shape, stored.name, "weight", stored.nbytes(shape))
        return f"{weight}{LORA_A}", f"{weight}{LORA_B}", f"{weight}{LORA_SCALES}"

    def carried(self, states: str) -> tuple[str, str, str, str]:
        """The fields of an op that keeps `states`."""
        return states, STATE_POSITIONS, STATE_SEQUENCES, _STATES

    def conv(self, x: str, kernel: str, states: str, out: str, *, gated: bool) -> str:
        """A causal convolution of each of the kernel's channels."""
        weight, out = self.weight(kernel), self.rows(out, self.spec.shapes[kernel][0])
        return self.add(CausalConv(*self.carried(states), x, weight, out, gated))


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
    kept_states: int | None = None,
) -> Plan:
    """The unfused plan of a model; see `halfbyte.plan.make_plan` for the arguments."""
    b = _Builder(spec, formats, tokens)
    for name in (STATE_IDS, STATE_POSITIONS, STATE_SEQUENCES, STATE_ROPE_SETS):
        b.tensor(name, (tokens,), "state", "i32")
    b.tensor(STATE_ROWS, (rows,), "state", "i32")
    if spec.adapters is not None:
        b.tensor(STATE_ADAPTERS, (tokens,), "state", "i32")
    groups = _cache_groups(b, tokens, sequences, context, block_size, kv_dtype, cache_tokens)
    states = _state_group(b, sequences, kept_states)
    tables = {name: _rope_table(b, name) for name in dict.fromkeys(attention.rope for attention in spec.attentions)}
    scale = spec.embed_scale / spec.residual_scale
    x = b.add(Embed(STATE_IDS, b.weight(spec.embed), b.rows("embedding", spec.hidden_size), scale))
    inputs = _layer_inputs(b, spec.layer_inputs, x) if spec.layer_inputs else ""
    for i, layer in enumerate(spec.layers):
        at = f"layers.{i}."
        x = _mixer_half(b, layer, i, x, tables, groups)
        x = _mlp_half(b, layer, at, x)
        if layer.input is not None:
            x = _layer_input(b, layer.input, at, x, inputs)
        if layer.scalar is not None:
            x = b.add(Scale(x, b.weight(layer.scalar), b.rows(f"{at}scaled", spec.hidden_size)))
    _head(b, x, rows)
    if b.unadapted:
        raise UnsupportedModelError(
            f"an adapter changes {min(b.unadapted)}, which Halfbyte does not do beside the weights.",
            "Merge the adapter into the weights instead (merge).",
        )
    return Plan(
        tokens, rows, sequences, context, block_size, b.tensors, tuple(b.steps), tuple(groups.values()), b.constants,
        states=states,
    )  # fmt: skip


def _cache_groups(
    b: _Builder, tokens: int, sequences: int, context: int, block_size: int, kv_dtype: str, cache_tokens: int | None
) -> dict[int | None, CacheGroup]:
    """One group per window size. A window's cache is a ring of the window and one batch, where that is less than all.

    The pool of a group holds every sequence at its longest, or `cache_tokens` positions if that is less, but always one
    sequence at its longest.
    """
    layers: dict[int | None, list[tuple[int, AttentionSpec]]] = {}
    for i, layer in enumerate(b.spec.layers):
        if isinstance(layer.mixer, SelfAttention) and layer.mixer.shares is None:
            layers.setdefault(layer.mixer.spec.window, []).append((i, layer.mixer.spec))
    groups = {}
    for window, members in layers.items():
        columns = -(-context // block_size)
        if window is not None:
            columns = min(columns, -(-(window - 1 + tokens) // block_size) + 1)
        blocks = b.tensor(f"blocks.{window or 'all'}", (sequences, columns), "state", "i32")
        pool = sequences * columns
        if cache_tokens is not None and cache_tokens < sequences * context:
            pool = min(pool, max(columns, -(-cache_tokens // block_size)))
        caches = tuple(_cache(b, i, attention, pool, block_size, kv_dtype) for i, attention in members)
        groups[window] = CacheGroup(blocks, columns, window, caches)
    return groups


def _cache(
    b: _Builder, layer: int, attention: AttentionSpec, blocks: int, block_size: int, dtype: str
) -> tuple[str, str]:
    shape = (blocks, attention.kv_heads, block_size, attention.head_dim)
    nbytes = math.prod(shape[:-1]) * cache.head_nbytes(dtype, attention.head_dim)
    k, v = f"layers.{layer}.k_cache", f"layers.{layer}.v_cache"
    b.tensors |= {name: Tensor(name, shape, dtype, "cache", nbytes) for name in (k, v)}
    return k, v


def _state_group(b: _Builder, sequences: int, kept: int | None) -> StateGroup | None:
    """The states of all layers that keep some: one for each sequence, and `kept` for sequences to come."""
    shapes = {
        f"layers.{i}.{name}": shape
        for i, layer in enumerate(b.spec.layers)
        for name, shape in _state_shapes(layer.mixer, b.spec.hidden_size).items()
    }
    if not shapes:
        return None
    if kept is None:
        nbytes = _BYTES * sum(map(math.prod, shapes.values()))
        kept = max(LEAST_KEPT, min(MOST_KEPT, KEPT_NBYTES // nbytes))
    names = tuple(b.tensor(name, (sequences + kept, *shape), "cache") for name, shape in shapes.items())
    return StateGroup(b.tensor(_STATES, (sequences, 2), "state", "i32"), names)


def _state_shapes(mixer: Mixer, hidden: int) -> dict[str, tuple[int, ...]]:
    """What a mixer keeps of a sequence."""
    match mixer:
        case ShortConv():
            return {"inputs": (mixer.taps - 1, hidden)}
        case DeltaNet(spec=d):
            return {"inputs": (d.taps - 1, d.channels), "matrices": (d.v_heads, d.k_dim, d.v_dim)}
    return {}


def _rope_table(b: _Builder, name: str) -> str:
    rope = b.spec.ropes[name]
    frequencies = rope.inv_freq()
    constant = b.tensor(f"inv_freq.{name}", frequencies.shape, "constant")
    b.constants[constant] = frequencies
    out = b.tensor(f"rope_table.{name}", (b.tokens, 2, rope.dim // 2))
    return b.add(RopeTable(STATE_POSITIONS, STATE_ROPE_SETS, constant, out, rope.attention_factor))


def _mixer_half(
    b: _Builder, layer: Layer, index: int, x: str, tables: dict[str, str], groups: dict[int | None, CacheGroup]
) -> str:
    at = f"layers.{index}."
    mixer, seen = layer.mixer, b.norm(x, layer.input_norm, f"{at}attention_in")
    match mixer:
        case SelfAttention(spec=a):
            mixed = _attention(b, mixer, index, seen, tables[a.rope], groups[a.window])
        case ShortConv():
            mixed = _short_conv(b, mixer, at, seen)
        case DeltaNet():
            mixed = _delta_net(b, mixer, at, seen)
    return _onto_residual(b, x, b.linear(mixed, mixer.o, f"{at}o"), layer.post_mixer_norm, f"{at}attention")


def _short_conv(b: _Builder, mixer: ShortConv, at: str, x: str) -> str:
    bcv = b.linear(x, mixer.into, f"{at}bcv")
    return b.conv(bcv, mixer.kernel, f"{at}inputs", f"{at}convolved", gated=True)


def _delta_net(b: _Builder, mixer: DeltaNet, at: str, x: str) -> str:
    """The projection's rows hold q, k and v, then z, then b and a."""
    d, rows = mixer.spec, b.linear(x, mixer.into, f"{at}qkvzba")
    values = d.v_heads * d.v_dim
    qkv = b.conv(rows, mixer.kernel, f"{at}inputs", f"{at}convolved", gated=False)
    a_log, dt_bias = b.weights((mixer.a_log, mixer.dt_bias))
    sizes = (d.k_heads, d.v_heads, d.k_dim, d.v_dim, d.channels + values)
    carried, out = b.carried(f"{at}matrices"), b.rows(f"{at}linear", values)
    out = b.add(GatedDeltaRule(*carried, qkv, rows, a_log, dt_bias, out, *sizes, d.tiled))
    weight, normed = b.weight(mixer.norm), b.rows(f"{at}linear_normed", values)
    return b.add(GatedNorm(out, rows, weight, normed, d.channels, b.spec.norm_eps))


def _attention(b: _Builder, mixer: SelfAttention, index: int, x: str, table: str, group: CacheGroup) -> str:
    a, at, own = mixer.spec, f"layers.{index}.", mixer.shares is None
    heads = (a.heads, a.kv_heads if own else 0, a.head_dim)
    width = (a.heads + 2 * heads[1]) * a.head_dim
    projected = qkv = b.linear(x, mixer.qkv, f"{at}qkv")
    if a.gated:
        qkv = b.add(SplitGates(*heads, projected, b.rows(f"{at}qkv_apart", width)))
    qkv = _qk_norm(b, mixer, qkv, b.rows(f"{at}qkv_normed", width)) if mixer.q_norm else qkv
    keys = f"layers.{index if mixer.shares is None else mixer.shares}.k_cache"
    k, v = group.caches[[pair[0] for pair in group.caches].index(keys)]
    hadamard = cache.rotation(b.tensors[k].dtype, a.head_dim)
    growth = (a.temperature.beta, a.temperature.length) if a.temperature else ()
    qkv = b.add(Rope(*heads, qkv, table, STATE_POSITIONS, b.rows(f"{at}qkv_rotated", width), hadamard, *growth))
    if own:
        b.add(KvWrite(*heads, qkv, STATE_POSITIONS, STATE_SEQUENCES, group.blocks, k, v))
    attended = b.rows(f"{at}attended", a.heads * a.head_dim)
    state = (STATE_POSITIONS, STATE_SEQUENCES, group.blocks)
    b.add(Attention(a.heads, a.kv_heads, a.head_dim, qkv, k, v, *state, attended, a.scale, a.window, a.softcap))
    if not a.gated:
        return attended
    return b.add(GateHeads(*heads, attended, projected, b.rows(f"{at}attended_gated", a.heads * a.head_dim)))


def _qk_norm(b: _Builder, mixer: SelfAttention, qkv: str, out: str) -> str:
    a, spec, own = mixer.spec, b.spec, mixer.shares is None
    k_norm = mixer.k_norm if own else mixer.q_norm  # of no heads
    if mixer.q_norm is None or k_norm is None or (a.whole_norm and a.v_norm):
        raise ValueError("q and k are both normed, or neither; v only where they are normed by heads")
    kv_heads, (q_weight, k_weight) = a.kv_heads if own else 0, b.weights((mixer.q_norm, k_norm))
    ways = (spec.norm_eps, spec.norm_offset, a.whole_norm, a.v_norm and own)
    return b.add(QkNorm(a.heads, kv_heads, a.head_dim, qkv, q_weight, k_weight, out, *ways))


def _mlp_half(b: _Builder, layer: Layer, at: str, x: str) -> str:
    mlp = layer.mlp
    gate_up = b.linear(b.norm(x, layer.mlp_norm, f"{at}mlp_in"), mlp.gate_up, f"{at}gate_up")
    gated = b.add(GatedActivation(gate_up, b.rows(f"{at}gated", mlp.width), mlp.activation))
    return _onto_residual(b, x, b.linear(gated, mlp.down, f"{at}down"), layer.post_mlp_norm, f"{at}mlp")


def _layer_inputs(b: _Builder, inputs: LayerInputs, x: str) -> str:
    """Inputs of all layers, times √2: what reads them is normed, and takes that back.

    For the same reason the projection is not divided by √hidden_size, as the models do: its norm's epsilon is larger.
    """
    width = inputs.count * inputs.width
    rows = b.add(Embed(STATE_IDS, b.weight(inputs.table), b.rows("layer_inputs.embedding", width), inputs.scale))
    projected, norm = b.linear(x, inputs.projection, "layer_inputs.projected"), b.weight(inputs.norm)
    normed, eps = b.rows("layer_inputs.normed", width), b.spec.norm_eps * b.spec.hidden_size
    b.add(QkNorm(inputs.count, 0, inputs.width, projected, norm, norm, normed, eps, b.spec.norm_offset))
    return b.add(Add(rows, normed, b.rows("layer_inputs", width)))


def _layer_input(b: _Builder, own: LayerInput, at: str, x: str, inputs: str) -> str:
    """x + the layer's own input; see `_layer_inputs` about the epsilon."""
    gate, gated = b.linear(x, own.gate, f"{at}input_gate"), b.rows(f"{at}input_gated", own.width)
    added = b.linear(b.add(GateColumns(gate, inputs, gated, own.at, own.activation)), own.into, f"{at}input")
    normed, eps = b.rows(f"{at}input_normed", b.spec.hidden_size), 2 * b.spec.norm_eps
    b.add(RmsNorm(added, b.weight(own.norm), normed, eps, b.spec.norm_offset))
    return b.add(Add(x, normed, b.rows(f"{at}input_out", b.spec.hidden_size)))


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
