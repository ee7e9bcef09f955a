"""`gemma2`: Gemma 2; Gemma 3 with caps on scores and logits, one rotary embedding, and no norms of q and k.

Every second layer sees a sliding window, the first one included.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from halfbyte.models.config import Config, RopeRules, head_sizes, parse_rope, rope_section
from halfbyte.models.decoder import Stacking, common_fields, gated_mlp, layer_windows, self_attention, shorter
from halfbyte.models.gemma3_text import GGUF_NORMS, SCALE_PAIRS, embed_scale, four_norms
from halfbyte.models.gguf import ATTENTION, MLP, Architecture, not_in_gguf, sliding_layers, sliding_pattern
from halfbyte.models.spec import AttentionSpec, Layer, ModelSpec

TIED = True
"""Embedding table and output matrix are one unless the configuration says otherwise."""

_LARGEST_LAYERS = 46
"""Layers of Gemma 2 27B, the one whose attention scale is not that of its head size."""


def _whole_head(hidden: int, heads: int, head_dim: int, layers: int) -> int:
    """The size that llama.cpp takes the attention scale from: a file does not state it."""
    return hidden // heads if layers == _LARGEST_LAYERS else head_dim


def _from_gguf(keys: Config, config: dict[str, Any]) -> dict[str, Any]:
    sizes = ("hidden_size", "num_attention_heads", "head_dim", "num_hidden_layers")
    whole = _whole_head(*(config[size] for size in sizes))
    return {
        "model_type": "gemma2",
        "query_pre_attn_scalar": whole,
        "sliding_window": config["sliding_window"] or 4096,
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
        **sliding_layers(keys),
    }


def _to_gguf(spec: ModelSpec) -> dict[str, Any]:
    a = spec.attentions[0]
    if a.scale != _whole_head(spec.hidden_size, a.heads, a.head_dim, len(spec.layers)) ** -0.5:
        raise not_in_gguf("This gemma2 model scales its scores by another size than that of its heads")
    caps = {"attn_logit_softcapping": a.softcap, "final_logit_softcapping": spec.logit_softcap}
    return sliding_pattern(spec) | {key: cap for key, cap in caps.items() if cap is not None}


GGUF = Architecture(
    "gemma2",
    {**ATTENTION, **MLP, **GGUF_NORMS},
    config=_from_gguf,
    metadata=_to_gguf,
    norm_offset=1.0,
    windows=True,
)


def build(config: Config, names: Collection[str]) -> ModelSpec:
    """The spec of a Gemma 2 checkpoint."""
    for flag in ("attention_bias", "use_bidirectional_attention"):
        config.refuse(flag)
    hidden, count = config.integer("hidden_size", 2304), config.integer("num_hidden_layers", 26, most=1024)
    heads, kv_heads, head_dim = head_sizes(config, hidden, heads=8, kv_heads=4, head_dim=256)
    context = config.integer("max_position_embeddings", 8192, least=2)
    scale, cap = config.number("query_pre_attn_scalar", 256.0) ** -0.5, _cap(config, "attn_logit_softcapping", 50.0)
    mlp = (config.integer("intermediate_size", 9216), config.activation("hidden_activation", "gelu_pytorch_tanh"))
    stacking = Stacking.of(names)
    window = config.integer("sliding_window", 4096)
    windows = layer_windows(config, count, window) or [None if i % 2 else window for i in range(count)]

    def layer(window: int | None, at: str) -> Layer:
        attention = AttentionSpec(heads, kv_heads, head_dim, scale, "rope", shorter(window, context), cap)
        mixer = self_attention(attention, at, stacking)
        return Layer(mixer, gated_mlp(*mlp, at, stacking), **four_norms(at), scale_pairs=SCALE_PAIRS)

    return ModelSpec(
        model_type="gemma2",
        vocab_size=config.integer("vocab_size", 256_000),
        hidden_size=hidden,
        layers=tuple(layer(window, f"model.layers.{i}.") for i, window in enumerate(windows)),
        ropes={"rope": parse_rope(config, rope_section(config), head_dim, context, RopeRules())},
        norm_eps=config.number("rms_norm_eps", 1e-6, most=1.0),
        norm_offset=1.0,
        embed_scale=embed_scale(hidden, config.text("dtype", config.text("torch_dtype", "float32"))),
        logit_softcap=_cap(config, "final_logit_softcapping", 30.0),
        context=context,
        **common_fields(config, names, "model.", tied=TIED),
    )


def _cap(config: Config, key: str, default: float) -> float | None:
    """A cap; null means none."""
    return None if config.mentions(key) and config.raw(key) is None else config.number(key, default)
