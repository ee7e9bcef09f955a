"""A model as plain data: what `config.json` means, independent of how or where it runs.

One file of this package a `model_type` turns a configuration into a `ModelSpec`; `plan.build` turns
the spec into steps. Tensor names are those of the Hugging Face checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Activation = Literal["silu", "gelu_tanh"]

ScalePair = Literal["norm_qkv", "v_o", "norm_gate_up", "up_down"]
"""Where a channel may be divided by a factor and multiplied again by the matrix that reads it, changing nothing."""

SCALE_PAIRS: tuple[ScalePair, ...] = ("norm_qkv", "v_o", "norm_gate_up", "up_down")


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor` (Gemma 3's global layers from 4B on)."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's frequency-dependent scaling: long waves divided by `factor`, short ones kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class LongRopeScaling:
    """Two sets of per-frequency divisors; the long one holds beyond `original_context` tokens in total."""

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_context: int
    attention_factor: float


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): long waves divided by `factor`, short ones kept, those between in part.

    Attributes:
        beta_fast, beta_slow: Turns over the original context above which waves are short, below which they are long.
        attention_factor: What cos and sin are multiplied by.
        truncate: Whether the pairs of values where that is so are rounded to whole ones.
    """

    factor: float
    original_context: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class ProportionalScaling:
    """Only the first `pairs` pairs of values turn, as fast as if all did; the others keep their angle of zero."""

    pairs: int


RopeScaling = LinearScaling | Llama3Scaling | LongRopeScaling | YarnScaling | ProportionalScaling


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding of the first `dim` values of each head.

    Attributes:
        dim: Rotated values of a head (smaller than `head_dim` for partial rotary).
        theta: The base of the frequencies.
        scaling: How frequencies are changed for long contexts, if at all.
    """

    dim: int
    theta: float
    scaling: RopeScaling | None = None

    @property
    def attention_factor(self) -> float:
        """What cos and sin are multiplied by."""
        return self.scaling.attention_factor if isinstance(self.scaling, LongRopeScaling | YarnScaling) else 1.0

    @property
    def switch_at(self) -> int | None:
        """Tokens in total beyond which the second row of `inv_freq` holds, if there is one."""
        return self.scaling.original_context if isinstance(self.scaling, LongRopeScaling) else None

    def inv_freq(self) -> NDArray[np.float32]:
        """Radians a position, float32 `[sets, dim // 2]`; two sets (short, long) for LongRoPE, else one."""
        exponent = np.arange(0, self.dim, 2, dtype=np.float32) / np.float32(self.dim)
        base = np.float32(1.0) / np.power(np.float32(self.theta), exponent, dtype=np.float32)
        match self.scaling:
            case None:
                sets = base[None]
            case LinearScaling(factor):
                sets = base[None] / np.float32(factor)
            case Llama3Scaling():
                sets = _llama3(base, self.scaling)[None]
            case YarnScaling(factor):
                kept = _yarn_kept(self, self.scaling)
                sets = (base / np.float32(factor) * (1 - kept) + base * kept)[None]
            case ProportionalScaling(pairs):
                sets = np.where(np.arange(len(base)) < pairs, base, np.float32(0))[None]
            case LongRopeScaling(short, long):
                divisors = np.array([short, long], np.float32)
                sets = np.float32(1.0) / (divisors * np.power(np.float32(self.theta), exponent))
        return np.ascontiguousarray(sets, dtype=np.float32)


def _llama3(base: NDArray[np.float32], scaling: Llama3Scaling) -> NDArray[np.float32]:
    """Llama 3.1's rule: keep wavelengths below one bound, divide those above another, blend between."""
    wavelength = 2 * math.pi / base
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    longest, shortest = scaling.original_context / low, scaling.original_context / high
    smooth = (scaling.original_context / wavelength - low) / (high - low)
    blended = (1 - smooth) * base / scaling.factor + smooth * base
    scaled = np.where(wavelength > longest, base / scaling.factor, base)
    between = (wavelength <= longest) & (wavelength >= shortest)
    return np.where(between, blended, scaled).astype(np.float32)


def _yarn_kept(rope: RopeSpec, scaling: YarnScaling) -> NDArray[np.float32]:
    """The share of each pair's frequency that YaRN keeps as it is."""

    def pair(turns: float) -> float:
        return rope.dim * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    reach = high - low or 0.001
    kept: NDArray[np.float32] = 1 - np.clip((np.arange(rope.dim // 2, dtype=np.float32) - low) / reach, 0, 1)
    return kept.astype(np.float32)


@dataclass(frozen=True)
class Temperature:
    """Scores of the query at position p are multiplied by 1 + beta · ln(1 + ⌊p / length⌋) (Llama 4, Ministral 3)."""

    beta: float
    length: int


@dataclass(frozen=True)
class AttentionSpec:
    """The arithmetic of one layer's attention.

    Attributes:
        scale: What scores are multiplied by before the softmax.
        window: Keys a query sees, itself included; None for all.
        rope: The name of its entry in `ModelSpec.ropes`.
        softcap: Scores become `softcap · tanh(score / softcap)`, where set.
        whole_norm: Whether a norm of q, or of k, is over all heads of a token together, not over each.
        temperature: How scores grow with the position, if they do.
        gated: Whether each head of q is followed by as many values, whose sigmoid multiplies what the head gives.
        v_norm: Whether each head of v is normed, without a weight.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: str
    window: int | None = None
    softcap: float | None = None
    whole_norm: bool = False
    temperature: Temperature | None = None
    gated: bool = False
    v_norm: bool = False


@dataclass(frozen=True)
class Projection:
    """A product with weights, by the checkpoint names of its tensors.

    Attributes:
        weights: Matrices whose rows, stacked in that order, make the whole: one name where it is stored as one.
        bias: A vector per matrix, added to its outputs; empty where the projection has none.
    """

    weights: tuple[str, ...]
    bias: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all its tensors."""
        return (*self.weights, *self.bias)

    @property
    def kind(self) -> tuple[object, ...]:
        """What distinguishes its arithmetic from that of others; tensor names do not."""
        return (len(self.weights), bool(self.bias))


@dataclass(frozen=True)
class SelfAttention:
    """Softmax attention with its projections, by the checkpoint names of their tensors.

    Attributes:
        qkv: Stacks query, key and value; the key's weights twice where values are keys before their norm.
        q_norm, k_norm: Norms of q and of k before the rotary embedding; both or none.
        shares: The index of the layer whose keys and values it reads, if it makes none: `qkv` is the query's then, and
            there is no `k_norm`.
    """

    spec: AttentionSpec
    qkv: Projection
    o: Projection
    q_norm: str | None = None
    k_norm: str | None = None
    shares: int | None = None

    @property
    def into(self) -> Projection:
        """What reads the layer's input."""
        return self.qkv

    @property
    def kind(self) -> tuple[object, ...]:
        """What distinguishes its arithmetic from that of others; tensor names do not."""
        normed = (self.q_norm is not None, self.k_norm is not None)
        return (self.spec, self.qkv.kind, self.o.kind, *normed, self.shares is not None)


@dataclass(frozen=True)
class Mlp:
    """A dense gated MLP: down(activation(gate(x)) · up(x)).

    Attributes:
        width: Values of its gate.
        gate_up: Stacks gate and up.
    """

    width: int
    activation: Activation
    gate_up: Projection
    down: Projection

    @property
    def kind(self) -> tuple[object, ...]:
        """What distinguishes its arithmetic from that of others; tensor names do not."""
        return (self.width, self.activation, self.gate_up.kind, self.down.kind)


@dataclass(frozen=True)
class ShortConv:
    """A gated convolution of each channel over its last inputs (LFM2): o(c · conv(b · v)).

    Attributes:
        taps: Inputs that an output sees, the newest included.
        into: Stacks b, c and v.
        kernel: The name of the kernels `[hidden_size, 1, taps]`.
    """

    taps: int
    into: Projection
    kernel: str
    o: Projection

    @property
    def kind(self) -> tuple[object, ...]:
        """What distinguishes its arithmetic from that of others; tensor names do not."""
        return ("conv", self.taps, self.into.kind, self.o.kind)


@dataclass(frozen=True)
class DeltaSpec:
    """The sizes of a gated delta rule.

    Attributes:
        k_heads, v_heads: Heads of queries and of keys, and of values: a multiple of them.
        taps: Inputs that an output of the convolution before it sees.
        tiled: Whether value head h reads key head h % k_heads, not h // (v_heads // k_heads).
    """

    k_heads: int
    v_heads: int
    k_dim: int
    v_dim: int
    taps: int
    tiled: bool = False

    @property
    def channels(self) -> int:
        """Values of q, k and v together, which are convolved."""
        return 2 * self.k_heads * self.k_dim + self.v_heads * self.v_dim


@dataclass(frozen=True)
class DeltaNet:
    """Linear attention by the gated delta rule (arXiv 2412.06464), by the checkpoint names of its tensors.

    Attributes:
        into: Stacks q, k and v in one matrix, then the output's gate z, then b and a, which make β and the decay.
        kernel: Of the convolution, `[channels, 1, taps]`.
        a_log, dt_bias: Of the decay, `[v_heads]`.
        norm: Of each head of the output, `[v_dim]`.
    """

    spec: DeltaSpec
    into: Projection
    kernel: str
    a_log: str
    dt_bias: str
    norm: str
    o: Projection

    @property
    def kind(self) -> tuple[object, ...]:
        """What distinguishes its arithmetic from that of others; tensor names do not."""
        return (self.spec, self.into.kind, self.o.kind)


Mixer = SelfAttention | ShortConv | DeltaNet
"""What lets a token see those before it. Each reads the layer's input by `into`."""


@dataclass(frozen=True)
class LayerInput:
    """What a layer adds of its own input for a token: norm(into(activation(gate(x)) · input)); see `LayerInputs`.

    Attributes:
        at: Where the layer's input begins among those of all layers.
    """

    at: int
    width: int
    activation: Activation
    gate: Projection
    into: Projection
    norm: str


@dataclass(frozen=True)
class LayerInputs:
    """Inputs of all layers for a token: its row of a table of its own, and a projection of its embedding.

    Attributes:
        count: Layers that the table has inputs for.
        width: Values of each.
        table: The name of the table `[vocab_size, count · width]`.
        scale: What its rows are multiplied by.
        norm: Of each layer's part of the projection, `[width]`.
    """

    count: int
    width: int
    table: str
    scale: float
    projection: Projection
    norm: str


@dataclass(frozen=True)
class Layer:
    """One decoder layer: a half that mixes tokens and an MLP half, each added to the residual stream.

    Attributes:
        input_norm, mlp_norm: Norms of a half's input, by their names in the checkpoint.
        post_mixer_norm, post_mlp_norm: Norms of a half's *output*, before it is added.
        scale_pairs: Those whose channels may be scaled against each other before quantizing (AWQ); in `v_o` the
            query heads that read one value head share its factors.
        input: What it adds after the MLP half, if anything.
        scalar: The name of a weight [1] that the residual stream is multiplied by at its end.
    """

    mixer: Mixer
    mlp: Mlp
    input_norm: str | None = None
    mlp_norm: str | None = None
    post_mixer_norm: str | None = None
    post_mlp_norm: str | None = None
    scale_pairs: tuple[ScalePair, ...] = SCALE_PAIRS
    input: LayerInput | None = None
    scalar: str | None = None

    @property
    def norms(self) -> tuple[str, ...]:
        """Names of its norms over the hidden size."""
        own = self.input.norm if self.input else None
        named = (self.input_norm, self.mlp_norm, self.post_mixer_norm, self.post_mlp_norm, own)
        return tuple(name for name in named if name is not None)

    @property
    def shares(self) -> int | None:
        """The index of the layer whose keys and values it reads, if it makes none."""
        return self.mixer.shares if isinstance(self.mixer, SelfAttention) else None

    @property
    def kind(self) -> tuple[object, ...]:
        """What distinguishes its arithmetic from that of other layers; tensor names do not."""
        norms = (self.input_norm, self.mlp_norm, self.post_mixer_norm, self.post_mlp_norm)
        added = (self.input is not None, self.scalar is not None)
        return (self.mixer.kind, self.mlp.kind, *(norm is not None for norm in norms), *added)


LORA_A, LORA_B, LORA_SCALES = ".lora_a", ".lora_b", ".lora_scales"
"""What follows a matrix's name in those of the tensors that hold the A, the B and the scales of all adapters for it."""


@dataclass(frozen=True)
class Adapters:
    """Low-rank changes that lie beside a model's weights; each token is computed with one of them, or none.

    Attributes:
        names: What they are called, in the order in which they are numbered from 1 on; 0 is none.
        matrices: The tensors that at least one of them changes.
        rank: The largest rank; smaller ones are filled up with zeros.
    """

    names: tuple[str, ...]
    matrices: frozenset[str]
    rank: int

    def number(self, name: str | None) -> int:
        """The number of the adapter called `name`, 0 for None. Raises ValueError if there is none."""
        return 0 if name is None else 1 + self.names.index(name)


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to build a plan.

    Attributes:
        embed: Name of the embedding table `[vocab_size, hidden_size]`.
        lm_head: Name of the output matrix; equal to `embed` when they are tied.
        norm_offset: Norms multiply by `norm_offset + weight` (1 for Gemma).
        embed_scale: What embeddings are multiplied by.
        residual_scale: What the output of each half of a layer is multiplied by before it is added.
        logit_scale: What logits are multiplied by.
        logit_softcap: Logits become `cap · tanh(logit / cap)`, where set.
        context: Positions the model was made for.
        bos_token_id, stop_token_ids: From `config.json` and `generation_config.json` together.
        shapes: Shape of every tensor the checkpoint must have, by name.
        ignored: Regular expressions of tensors that a checkpoint may hold and text generation does not need.
        adapters: Those that lie beside the weights; None if there are none.
        layer_inputs: Where layers have inputs of their own for each token.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    layers: tuple[Layer, ...]
    ropes: dict[str, RopeSpec]
    norm_eps: float
    embed: str
    final_norm: str
    lm_head: str
    context: int
    norm_offset: float = 0.0
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    bos_token_id: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    adapters: Adapters | None = None
    layer_inputs: LayerInputs | None = None

    @property
    def attentions(self) -> tuple[AttentionSpec, ...]:
        """Those of the layers that have attention, in their order."""
        return tuple(layer.mixer.spec for layer in self.layers if isinstance(layer.mixer, SelfAttention))

    @property
    def intermediate_size(self) -> int:
        """Values of the widest gate."""
        return max(layer.mlp.width for layer in self.layers)

    @property
    def rope_switch(self) -> int | None:
        """Tokens in total beyond which a sequence must be computed anew with the long RoPE set."""
        return next((r.switch_at for r in self.ropes.values() if r.switch_at is not None), None)

    def one_of_each(self) -> ModelSpec:
        """The model without adapters, cut to the first layer of each kind, and to two at least where it has as many.

        Layers whose keys and values one of them reads stay too.
        """
        firsts = {layer.kind: index for index, layer in reversed(list(enumerate(self.layers)))}
        chosen = set(firsts.values())
        chosen |= {shared for index in chosen if (shared := self.layers[index].shares) is not None}
        others = (index for index in range(len(self.layers)) if index not in chosen)
        kept = sorted(chosen | set(islice(others, max(0, 2 - len(chosen)))))
        layers = []
        for index in kept:
            layer = self.layers[index]
            if isinstance(layer.mixer, SelfAttention) and layer.mixer.shares is not None:
                layer = replace(layer, mixer=replace(layer.mixer, shares=kept.index(layer.mixer.shares)))
            layers.append(layer)
        return replace(self, layers=tuple(layers), adapters=None)

    @property
    def parameters(self) -> int:
        """Weights in the checkpoint, tied ones counted once."""
        return sum(math.prod(shape) for shape in self.shapes.values())
