"""`gemma3_text`: Gemma 3 1B, and the text part of larger ones.

Its own ways: norms multiply by (1 + w) and stand before and after each half; q and k are normed per head;
five of six layers see a sliding window and rotate with a base of their own; embeddings are scaled by
√hidden, rounded to the type of the checkpoint's weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np

from halfbyte.errors import UnsupportedModelError
from halfbyte.formats.dense import bf16_to_f32, f32_to_bf16
from halfbyte.models.config import Config, head_sizes, parse_rope, rope_section
from halfbyte.models.decoder import common_fields, layer_names
from halfbyte.models.spec import Attention, Layer, ModelSpec, Rope, ScalePair

SCALE_PAIRS: tuple[ScalePair, ...] = ("v_o", "norm_gate_up", "up_down")
"""Scaling the norm before q, k and v costs Gemma 3 accuracy, as AWQ's authors found."""

GLOBAL, LOCAL = "full_attention", "sliding_attention"


def build(
    config: Config, names: Collection[str], prefix: str = "model.", head: str = "lm_head.weight", dtype: str = ""
) -> ModelSpec:
    """The spec of a Gemma 3 text model whose tensors start with `prefix`.

    Args:
        dtype: The type of the checkpoint's weights where it is not in `config` itself.
    """
    config.refuse("attention_bias")
    hidden = config.integer("hidden_size", 2304)
    heads, kv_heads, head_dim = head_sizes(config, hidden, heads=8, kv_heads=4, head_dim=256)
    context = config.integer("max_position_embeddings", 131_072, least=2)
    window = config.integer("sliding_window", 4096)
    scale = config.number("query_pre_attn_scalar", 256.0) ** -0.5
    if "attn_logit_softcapping" in config:
        raise UnsupportedModelError(
            f"{config.where}: attn_logit_softcapping is set, which no Gemma 3 model has and Halfbyte does not support."
        )

    def layer(kind: str, start: str) -> Layer:
        fields: dict[str, Any] = layer_names(start, fused=False)
        fields["mlp_norm"] = f"{start}pre_feedforward_layernorm.weight"
        return Layer(
            attention=Attention(
                heads,
                kv_heads,
                head_dim,
                scale,
                rope=kind,
                window=window if kind == LOCAL and window < context else None,
                qk_norm=(f"{start}self_attn.q_norm.weight", f"{start}self_attn.k_norm.weight"),
            ),
            post_attention_norm=f"{start}post_attention_layernorm.weight",
            post_mlp_norm=f"{start}post_feedforward_layernorm.weight",
            scale_pairs=SCALE_PAIRS,
            **fields,
        )

    return ModelSpec(
        model_type="gemma3_text",
        vocab_size=config.integer("vocab_size", 262_208),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size", 9216),
        layers=tuple(layer(kind, f"{prefix}layers.{i}.") for i, kind in enumerate(_layer_types(config))),
        ropes=_ropes(config, head_dim, context),
        norm_eps=config.number("rms_norm_eps", 1e-6, most=1.0),
        norm_offset=1.0,
        activation=config.activation("hidden_activation", "gelu_pytorch_tanh"),
        embed_scale=_embed_scale(hidden, dtype or config.text("dtype", config.text("torch_dtype", "float32"))),
        logit_softcap=config.number("final_logit_softcapping") if "final_logit_softcapping" in config else None,
        context=context,
        **common_fields(config, prefix, tied=True, head=head),  # type: ignore[arg-type]
    )


def _layer_types(config: Config) -> list[str]:
    """Local or global, a word a layer: listed, or every `sliding_window_pattern`-th global."""
    count = config.integer("num_hidden_layers", 26, most=1024)
    kinds = config.values.get("layer_types")
    if kinds is None:
        pattern = config.integer("sliding_window_pattern", 6)
        return [LOCAL if (i + 1) % pattern else GLOBAL for i in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count or any(kind not in (GLOBAL, LOCAL) for kind in kinds):
        raise config.error("layer_types", f"a list of {count} of {GLOBAL!r} and {LOCAL!r}")
    return kinds


def _ropes(config: Config, head_dim: int, context: int) -> dict[str, Rope]:
    """The global and the local rotary embedding, from either generation of configuration files."""
    described = config.section("rope_parameters")
    if GLOBAL in described or LOCAL in described:
        sections = {kind: described.section(kind) for kind in (GLOBAL, LOCAL)}
    else:
        local = Config({"rope_theta": config.number("rope_local_base_freq", 10_000.0)}, config.where)
        sections = {GLOBAL: rope_section(config), LOCAL: local}
    empty = Config({}, config.where)
    return {
        GLOBAL: parse_rope(config, sections[GLOBAL], head_dim, context, 1_000_000.0),
        LOCAL: parse_rope(empty, sections[LOCAL], head_dim, context, 10_000.0),
    }


def _embed_scale(hidden: int, dtype: str) -> float:
    scale = np.array([math.sqrt(hidden)], np.float32)
    if dtype == "bfloat16":
        scale = bf16_to_f32(f32_to_bf16(scale))
    if dtype == "float16":
        scale = scale.astype(np.float16).astype(np.float32)
    return float(scale[0])
