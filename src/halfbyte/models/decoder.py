"""What all supported families share: token and size fields, and the names and shapes of a decoder's tensors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypedDict

from halfbyte.models.config import Config
from halfbyte.models.spec import (
    Activation,
    AttentionSpec,
    DeltaNet,
    Mixer,
    Mlp,
    ModelSpec,
    Projection,
    SelfAttention,
    ShortConv,
)

IGNORED = (r".*\.rotary_emb\.inv_freq",)
"""Buffers that old checkpoints carry and that follow from the configuration."""

FULL, SLIDING = "full_attention", "sliding_attention"
"""The kinds of layers that `layer_types` names."""


class CommonFields(TypedDict):
    """Fields of `ModelSpec` that every family reads alike."""

    embed: str
    final_norm: str
    lm_head: str
    bos_token_id: int | None
    stop_token_ids: tuple[int, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Stacking:
    """Which projections a checkpoint stores as one matrix: query, key and value; gate and up."""

    qkv: bool
    gate_up: bool

    @classmethod
    def of(cls, names: Collection[str]) -> Stacking:
        """What the names of a checkpoint's tensors say; where they name no gate, it is stored as q, k and v are."""
        qkv = any(name.endswith("self_attn.qkv_proj.weight") for name in names)
        apart = any(name.endswith("mlp.gate_proj.weight") for name in names)
        together = any(name.endswith("mlp.gate_up_proj.weight") for name in names)
        return cls(qkv, together or (qkv and not apart))


def projection(prefix: str, *parts: str, bias: bool = False) -> Projection:
    """The tensors of `parts` under `prefix`, stacked in that order.

    Args:
        bias: Whether they have biases.
    """
    biases = tuple(f"{prefix}{part}.bias" for part in parts) if bias else ()
    return Projection(tuple(f"{prefix}{part}.weight" for part in parts), biases)


def self_attention(
    spec: AttentionSpec, prefix: str, stacking: Stacking, *, qkv_bias: bool = False, o_bias: bool = False,
    norms: bool = False,
) -> SelfAttention:  # fmt: skip
    """Attention in the usual names of its tensors.

    Args:
        prefix: Of the layer.
        qkv_bias, o_bias: Whether query, key and value, or the output, have biases.
        norms: Whether q and k are normed.
    """
    at = f"{prefix}self_attn."
    parts = ("qkv_proj",) if stacking.qkv else ("q_proj", "k_proj", "v_proj")
    return SelfAttention(
        spec,
        projection(at, *parts, bias=qkv_bias),
        projection(at, "o_proj", bias=o_bias),
        f"{at}q_norm.weight" if norms else None,
        f"{at}k_norm.weight" if norms else None,
    )


def gated_mlp(width: int, activation: Activation, prefix: str, stacking: Stacking, *, bias: bool = False) -> Mlp:
    """A gated MLP in the usual names of its tensors; see `self_attention`."""
    at = f"{prefix}mlp."
    parts = ("gate_up_proj",) if stacking.gate_up else ("gate_proj", "up_proj")
    return Mlp(width, activation, projection(at, *parts, bias=bias), projection(at, "down_proj", bias=bias))


def common_fields(
    config: Config, names: Collection[str], prefix: str, *, tied: bool, head: str = "lm_head.weight"
) -> CommonFields:
    """Fields of `ModelSpec` that every family reads alike.

    Embedding table and output matrix are one where the configuration says so and the checkpoint holds only one of
    them; where it holds both, they are two, as for transformers (5.24, `PreTrainedModel.tie_weights`).

    Args:
        names: Names of the checkpoint's tensors.
        tied: What it means where the configuration does not say.
    """
    embed = f"{prefix}embed_tokens.weight"
    tied = config.flag("tie_word_embeddings", tied)
    if tied and not (embed in names and head in names):
        embed = head = head if head in names else embed
    bos = config.tokens("bos_token_id")
    return {
        "embed": embed,
        "final_norm": f"{prefix}norm.weight",
        "lm_head": head,
        "bos_token_id": bos[0] if bos else None,
        "stop_token_ids": config.tokens("eos_token_id"),
        "ignored": IGNORED,
    }


def layer_windows(config: Config, count: int, window: int | None) -> tuple[int | None, ...] | None:
    """The sliding window of each layer as `layer_types` lists them; None if the configuration has no such list."""
    kinds = config.raw("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != count or any(kind not in (FULL, SLIDING) for kind in kinds):
        raise config.error("layer_types", f"a list of {count} of {FULL!r} and {SLIDING!r}")
    return tuple(window if kind == SLIDING else None for kind in kinds)


def shorter(window: int | None, context: int) -> int | None:
    """A sliding window; None where it is no shorter than the context."""
    return window if window and window < context else None


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a spec's checkpoint, by name."""
    vector = (spec.hidden_size,)
    table = (spec.vocab_size, spec.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {spec.embed: table, spec.lm_head: table, spec.final_norm: vector}
    for layer in spec.layers:
        shapes |= dict.fromkeys(layer.norms, vector)
        shapes |= _mixer_shapes(layer.mixer, spec.hidden_size)
        shapes |= _shapes_of(layer.mlp.gate_up, (layer.mlp.width,) * 2, spec.hidden_size)
        shapes |= _shapes_of(layer.mlp.down, (spec.hidden_size,), layer.mlp.width)
        if layer.input is not None:
            shapes |= _shapes_of(layer.input.gate, (layer.input.width,), spec.hidden_size)
            shapes |= _shapes_of(layer.input.into, (spec.hidden_size,), layer.input.width)
        if layer.scalar is not None:
            shapes[layer.scalar] = (1,)
    if (inputs := spec.layer_inputs) is not None:
        width = inputs.count * inputs.width
        shapes |= {inputs.table: (spec.vocab_size, width), inputs.norm: (inputs.width,)}
        shapes |= _shapes_of(inputs.projection, (width,), spec.hidden_size)
    return shapes


def _mixer_shapes(mixer: Mixer, hidden: int) -> dict[str, tuple[int, ...]]:
    match mixer:
        case SelfAttention():
            return _attention_shapes(mixer, hidden)
        case ShortConv():
            shapes = _shapes_of(mixer.into, (hidden,) * 3, hidden) | _shapes_of(mixer.o, (hidden,), hidden)
            return shapes | {mixer.kernel: (hidden, 1, mixer.taps)}
        case DeltaNet():
            d = mixer.spec
            values, heads = d.v_heads * d.v_dim, (d.v_heads,)
            into = _shapes_of(mixer.into, (d.channels, values, d.v_heads, d.v_heads), hidden)
            shapes = into | _shapes_of(mixer.o, (hidden,), values) | {mixer.kernel: (d.channels, 1, d.taps)}
            return shapes | {mixer.a_log: heads, mixer.dt_bias: heads, mixer.norm: (d.v_dim,)}


def _attention_shapes(mixer: SelfAttention, hidden: int) -> dict[str, tuple[int, ...]]:
    a = mixer.spec
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    into = (2 * queries if a.gated else queries, keys, keys)[: 3 if mixer.shares is None else 1]
    shapes = _shapes_of(mixer.qkv, into, hidden) | _shapes_of(mixer.o, (hidden,), queries)
    for name, width in ((mixer.q_norm, queries), (mixer.k_norm, keys)):
        if name:
            shapes[name] = (width if a.whole_norm else a.head_dim,)
    return shapes


def _shapes_of(projection: Projection, rows: Sequence[int], columns: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a projection's tensors: matrices that are separate, or stacked into one of all their rows."""
    counts = [sum(rows)] if len(projection.weights) == 1 else list(rows)
    shapes: dict[str, tuple[int, ...]] = {}
    shapes |= {name: (count, columns) for name, count in zip(projection.weights, counts, strict=True)}
    shapes |= {name: (count,) for name, count in zip(projection.bias, counts, strict=bool(projection.bias))}
    return shapes
