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


RopeScaling = LinearScaling | Llama3Scaling | LongRopeScaling


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
        return self.scaling.attention_factor if isinstance(self.scaling, LongRopeScaling) else 1.0

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


@dataclass(frozen=True)
class AttentionSpec:
    """One layer's attention.

    Attributes:
        scale: What scores are multiplied by before the softmax.
        window: Keys a query sees, itself included; None for all.
        rope: The name of its entry in `ModelSpec.ropes`.
        softcap: Scores become `softcap · tanh(score / softcap)`, where set.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: str
    window: int | None = None
    softcap: float | None = None


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


@dataclass(frozen=True)
class Layer:
    """One decoder layer: attention half, gated MLP half, and the checkpoint names of its tensors.

    Attributes:
        qkv, o: Projections of the attention half; `qkv` stacks query, key and value.
        gate_up, down: Projections of the MLP half; `gate_up` stacks gate and up.
        q_norm, k_norm: Norms of each head of q and of k, before the rotary embedding; both or none.
        post_attention_norm, post_mlp_norm: Norms of a half's *output*, before it is added to the residual stream.
        scale_pairs: Those whose channels may be scaled against each other before quantizing (AWQ); in `v_o` the
            query heads that read one value head share its factors.
    """

    attention: AttentionSpec
    input_norm: str
    qkv: Projection
    o: Projection
    mlp_norm: str
    gate_up: Projection
    down: Projection
    q_norm: str | None = None
    k_norm: str | None = None
    post_attention_norm: str | None = None
    post_mlp_norm: str | None = None
    scale_pairs: tuple[ScalePair, ...] = SCALE_PAIRS

    @property
    def kind(self) -> tuple[object, ...]:
        """What distinguishes its arithmetic from that of other layers; tensor names do not."""
        norms = (self.q_norm, self.k_norm, self.post_attention_norm, self.post_mlp_norm)
        projections = (self.qkv, self.o, self.gate_up, self.down)
        return (
            self.attention,
            *(norm is not None for norm in norms),
            *((len(p.weights), bool(p.bias)) for p in projections),
        )


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to build a plan.

    Attributes:
        embed: Name of the embedding table `[vocab_size, hidden_size]`.
        lm_head: Name of the output matrix; equal to `embed` when they are tied.
        norm_offset: Norms multiply by `norm_offset + weight` (1 for Gemma).
        embed_scale: What embeddings are multiplied by.
        logit_softcap: Logits become `cap · tanh(logit / cap)`, where set.
        context: Positions the model was made for.
        bos_token_id, stop_token_ids: From `config.json` and `generation_config.json` together.
        shapes: Shape of every tensor the checkpoint must have, by name.
        ignored: Regular expressions of tensors that a checkpoint may hold and text generation does not need.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: tuple[Layer, ...]
    ropes: dict[str, RopeSpec]
    norm_eps: float
    activation: Activation
    embed: str
    final_norm: str
    lm_head: str
    context: int
    norm_offset: float = 0.0
    embed_scale: float = 1.0
    logit_softcap: float | None = None
    bos_token_id: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @property
    def rope_switch(self) -> int | None:
        """Tokens in total beyond which a sequence must be computed anew with the long RoPE set."""
        return next((r.switch_at for r in self.ropes.values() if r.switch_at is not None), None)

    def one_of_each(self) -> ModelSpec:
        """The model cut to the first layer of each kind, and to two layers at least where it has so many."""
        firsts = {layer.kind: index for index, layer in reversed(list(enumerate(self.layers)))}
        chosen = set(firsts.values())
        others = (index for index in range(len(self.layers)) if index not in chosen)
        chosen |= set(islice(others, max(0, 2 - len(chosen))))
        return replace(self, layers=tuple(self.layers[index] for index in sorted(chosen)))

    @property
    def parameters(self) -> int:
        """Weights in the checkpoint, tied ones counted once."""
        return sum(math.prod(shape) for shape in self.shapes.values())
