"""What all supported families share: token and size fields, and the names and shapes of a decoder's tensors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypedDict

from halfbyte.models.config import Config
from halfbyte.models.spec import AttentionSpec, Layer, ModelSpec, Projection

IGNORED = (r".*\.rotary_emb\.inv_freq",)
"""Buffers that old checkpoints carry and that follow from the configuration."""

FULL, SLIDING = "full_attention", "sliding_attention"
"""The kinds of layers that `layer_types` names."""


class LayerNames(TypedDict):
    """Fields of `Layer` that name tensors which every Llama-like layer has."""

    input_norm: str
    qkv: Projection
    o: Projection
    mlp_norm: str
    gate_up: Projection
    down: Projection


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


def layer_names(prefix: str, stacking: Stacking, *, qkv_bias: bool = False) -> LayerNames:
    """Checkpoint names of one Llama-like layer's tensors under `prefix`.

    Args:
        qkv_bias: Whether the projections of query, key and value have biases.
    """

    def projection(*parts: str, bias: bool = False) -> Projection:
        biases = tuple(f"{prefix}{part}.bias" for part in parts) if bias else ()
        return Projection(tuple(f"{prefix}{part}.weight" for part in parts), biases)

    qkv = ("self_attn.qkv_proj",) if stacking.qkv else ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return {
        "input_norm": f"{prefix}input_layernorm.weight",
        "qkv": projection(*qkv, bias=qkv_bias),
        "o": projection("self_attn.o_proj"),
        "mlp_norm": f"{prefix}post_attention_layernorm.weight",
        "gate_up": projection(*(("mlp.gate_up_proj",) if stacking.gate_up else ("mlp.gate_proj", "mlp.up_proj"))),
        "down": projection("mlp.down_proj"),
    }


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
        a = layer.attention
        queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
        norms = (layer.input_norm, layer.mlp_norm, layer.post_attention_norm, layer.post_mlp_norm)
        shapes |= dict.fromkeys([name for name in norms if name], vector)
        shapes |= dict.fromkeys([name for name in (layer.q_norm, layer.k_norm) if name], (a.head_dim,))
        shapes |= _shapes_of(layer.qkv, (queries, keys, keys), spec.hidden_size)
        shapes |= _shapes_of(layer.gate_up, (spec.intermediate_size,) * 2, spec.hidden_size)
        shapes |= _shapes_of(layer.o, (spec.hidden_size,), queries)
        shapes |= _shapes_of(layer.down, (spec.hidden_size,), spec.intermediate_size)
    return shapes


def _shapes_of(projection: Projection, rows: Sequence[int], columns: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a projection's tensors: matrices that are separate, or stacked into one of all their rows."""
    counts = [sum(rows)] if len(projection.weights) == 1 else list(rows)
    shapes: dict[str, tuple[int, ...]] = {}
    shapes |= {name: (count, columns) for name, count in zip(projection.weights, counts, strict=True)}
    shapes |= {name: (count,) for name, count in zip(projection.bias, counts, strict=bool(projection.bias))}
    return shapes


def decoder_layers(
    attentions: Sequence[AttentionSpec], prefix: str, stacking: Stacking, *, qkv_bias: bool = False
) -> tuple[Layer, ...]:
    """A Llama-like layer for each attention."""
    return tuple(
        Layer(attention=attention, **layer_names(f"{prefix}layers.{i}.", stacking, qkv_bias=qkv_bias))
        for i, attention in enumerate(attentions)
    )
