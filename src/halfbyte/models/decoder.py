"""What all supported families share: token and size fields, and the names and shapes of a decoder's tensors."""

from __future__ import annotations

from collections.abc import Sequence

from halfbyte.models.config import Config
from halfbyte.models.spec import Attention, Layer, ModelSpec

IGNORED = (r".*\.rotary_emb\.inv_freq",)
"""Buffers that old checkpoints carry and that follow from the configuration."""

Names = dict[str, str | tuple[str, ...]]


def layer_names(prefix: str, *, fused: bool) -> Names:
    """Checkpoint names of one Llama-like layer's tensors under `prefix`; `fused` as Phi-3 stores them."""

    def named(*parts: str) -> tuple[str, ...]:
        return tuple(f"{prefix}{part}.weight" for part in parts)

    return {
        "input_norm": named("input_layernorm")[0],
        "qkv": named("self_attn.qkv_proj")
        if fused
        else named("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "o": named("self_attn.o_proj")[0],
        "mlp_norm": named("post_attention_layernorm")[0],
        "gate_up": named("mlp.gate_up_proj") if fused else named("mlp.gate_proj", "mlp.up_proj"),
        "down": named("mlp.down_proj")[0],
    }


def common_fields(config: Config, prefix: str, *, tied: bool, head: str = "lm_head.weight") -> dict[str, object]:
    """Fields of `ModelSpec` that every family reads alike; `tied` is the family's default."""
    embed = f"{prefix}embed_tokens.weight"
    tied = config.flag("tie_word_embeddings", tied)
    bos = config.tokens("bos_token_id")
    return {
        "embed": embed,
        "final_norm": f"{prefix}norm.weight",
        "lm_head": embed if tied else head,
        "bos_token_id": bos[0] if bos else None,
        "stop_token_ids": config.tokens("eos_token_id"),
        "ignored": (*IGNORED, r"(.*\.)?lm_head\.weight") if tied else IGNORED,
    }


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a spec's checkpoint, by name."""
    vector = (spec.hidden_size,)
    table = (spec.vocab_size, spec.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {spec.embed: table, spec.lm_head: table, spec.final_norm: vector}
    for layer in spec.layers:
        a = layer.attention
        shapes |= dict.fromkeys([layer.input_norm, layer.mlp_norm], vector)
        shapes |= dict.fromkeys([n for n in (layer.post_attention_norm, layer.post_mlp_norm) if n], vector)
        shapes |= dict.fromkeys(a.qk_norm or (), (a.head_dim,))
        shapes |= _stacked(
            layer.qkv, (a.heads * a.head_dim, a.kv_heads * a.head_dim, a.kv_heads * a.head_dim), spec.hidden_size
        )
        shapes |= _stacked(layer.gate_up, (spec.intermediate_size,) * 2, spec.hidden_size)
        shapes[layer.o] = (spec.hidden_size, a.heads * a.head_dim)
        shapes[layer.down] = (spec.hidden_size, spec.intermediate_size)
    return shapes


def _stacked(names: Sequence[str], rows: Sequence[int], columns: int) -> dict[str, tuple[int, ...]]:
    """Shapes of matrices that are separate, or fused into one of all their rows."""
    if len(names) == 1:
        return {names[0]: (sum(rows), columns)}
    return {name: (count, columns) for name, count in zip(names, rows, strict=True)}


def uniform_layers(config: Config, attention: Attention, prefix: str, *, fused: bool) -> tuple[Layer, ...]:
    """As many Llama-like layers as the configuration asks for, all with the same attention."""
    count = config.integer("num_hidden_layers", most=1024)
    return tuple(
        Layer(attention=attention, **layer_names(f"{prefix}layers.{i}.", fused=fused))  # type: ignore[arg-type]
        for i in range(count)
    )
