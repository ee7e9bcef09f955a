"""`gemma3_text`: Gemma 3 1B, and the text part of larger ones.

Its own ways: norms multiply by (1 + w) and stand before and after each half; q and k are normed per head;
five of six layers see a sliding window and rotate with a base of their own; embeddings are scaled by
√hidden, rounded to the type of the checkpoint's weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, TypedDict

import numpy as np

from halfbyte.formats.dense import bf16_to_f32, f32_to_bf16
from halfbyte.models.config import Config, RopeRules, head_sizes, parse_rope
from halfbyte.models.decoder import (
    FULL,
    SLIDING,
    Stacking,
    common_fields,
    gated_mlp,
    layer_windows,
    self_attention,
    shorter,
)
from halfbyte.models.gguf import ATTENTION, HEAD_NORMS, MLP, Architecture, sliding_layers, sliding_pattern
from halfbyte.models.spec import AttentionSpec, Layer, ModelSpec, RopeSpec, ScalePair

TIED = True
"""Embedding table and output matrix are one unless the configuration says otherwise."""

SCALE_PAIRS: tuple[ScalePair, ...] = ("v_o", "norm_gate_up", "up_down")
"""Scaling the norm before q, k and v costs Gemma 3 accuracy, as AWQ's authors found."""

_LARGEST_LAYERS = 62
"""Layers of Gemma 3 27B, the one whose attention scale is not that of its head size."""


class FourNorms(TypedDict):
    """Fields of `Layer` that name its norms."""

    input_norm: str
    post_mixer_norm: str
    mlp_norm: str
    post_mlp_norm: str


def _whole_head(hidden: int, heads: int, head_dim: int, layers: int) -> int:
    """The size that llama.cpp takes the attention scale from: a file does not state it."""
    return hidden // heads if layers == _LARGEST_LAYERS else head_dim


def _from_gguf(keys: Config, config: dict[str, Any]) -> dict[str, Any]:
    """Its rotary scaling is that of the global layers; without a window there are only those."""
    layers = config["num_hidden_layers"]
    gemma: dict[str, Any] = {
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": _whole_head(
            config["hidden_size"], config["num_attention_heads"], config["head_dim"], layers
        ),
        "rope_local_base_freq": keys.number("rope.freq_base_swa", 10_000.0, most=1e12),
    }
    if config["sliding_window"] is None:
        keys.known("attention.sliding_window_pattern")
        gemma |= {"layer_types": [FULL] * layers, "sliding_window": config["max_position_embeddings"]}
    else:
        gemma |= sliding_layers(keys) or {"sliding_window_pattern": keys.integer("attention.sliding_window_pattern", 6)}
    if "final_logit_softcapping" in keys:
        gemma["final_logit_softcapping"] = keys.number("final_logit_softcapping")
    return gemma


def _to_gguf(spec: ModelSpec) -> dict[str, Any]:
    local = (spec.ropes[attention.rope].theta for attention in spec.attentions if attention.window)
    gemma: dict[str, Any] = {"rope.freq_base_swa": next(local, 10_000.0), **sliding_pattern(spec)}
    return gemma | ({} if spec.logit_softcap is None else {"final_logit_softcapping": spec.logit_softcap})


def _norm_factor(spec: ModelSpec, name: str) -> float:
    """The norm of q takes over the attention scale, as far as it is not that of the head size."""
    if not name.endswith("self_attn.q_norm.weight"):
        return 1.0
    a = spec.attentions[0]
    return a.scale * math.sqrt(_whole_head(spec.hidden_size, a.heads, a.head_dim, len(spec.layers)))


GGUF_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

GGUF = Architecture(
    "gemma3",
    {**ATTENTION, **MLP, **HEAD_NORMS, **GGUF_NORMS},
    config=_from_gguf,
    metadata=_to_gguf,
    norm_factor=_norm_factor,
    norm_offset=1.0,
    rope_theta=1_000_000.0,
    windows=True,
)


def build(
    config: Config, names: Collection[str], prefix: str = "model.", head: str = "lm_head.weight", dtype: str = ""
) -> ModelSpec:
    """The spec of a Gemma 3 text model whose tensors start with `prefix`.

    Args:
        dtype: The type of the checkpoint's weights where it is not in `config` itself.
    """
    for flag in ("attention_bias", "use_bidirectional_attention"):
        config.refuse(flag)
    config.expect("attn_logit_softcapping", None, "which no Gemma 3 model has and Halfbyte does not support")
    config.known("_sliding_window_pattern")
    hidden = config.integer("hidden_size", 2304)
    heads, kv_heads, head_dim = head_sizes(config, hidden, heads=8, kv_heads=4, head_dim=256)
    context = config.integer("max_position_embeddings", 131_072, least=2)
    scale = config.number("query_pre_attn_scalar", 256.0) ** -0.5
    mlp = (config.integer("intermediate_size", 9216), config.activation("hidden_activation", "gelu_pytorch_tanh"))
    stacking = Stacking.of(names)

    def layer(window: int | None, at: str) -> Layer:
        rope = SLIDING if window else FULL
        attention = AttentionSpec(heads, kv_heads, head_dim, scale, rope, window=shorter(window, context))
        mixer = self_attention(attention, at, stacking, norms=True)
        return Layer(mixer, gated_mlp(*mlp, at, stacking), **four_norms(at), scale_pairs=SCALE_PAIRS)

    return ModelSpec(
        model_type="gemma3_text",
        vocab_size=config.integer("vocab_size", 262_208),
        hidden_size=hidden,
        layers=tuple(layer(window, f"{prefix}layers.{i}.") for i, window in enumerate(_windows(config))),
        ropes=_ropes(config, head_dim, context),
        norm_eps=config.number("rms_norm_eps", 1e-6, most=1.0),
        norm_offset=1.0,
        embed_scale=embed_scale(hidden, dtype or config.text("dtype", config.text("torch_dtype", "float32"))),
        logit_softcap=config.number("final_logit_softcapping") if "final_logit_softcapping" in config else None,
        context=context,
        **common_fields(config, names, prefix, tied=TIED, head=head),
    )


def _windows(config: Config) -> Sequence[int | None]:
    """The window of each layer: as `layer_types` lists them, or none on every `sliding_window_pattern`-th."""
    count, window = config.integer("num_hidden_layers", 26, most=1024), config.integer("sliding_window", 4096)
    pattern = config.integer("sliding_window_pattern", 6)
    return layer_windows(config, count, window) or [window if (i + 1) % pattern else None for i in range(count)]


def _ropes(config: Config, head_dim: int, context: int) -> dict[str, RopeSpec]:
    """The global and the local rotary embedding, from either generation of configuration files.

    `rope_scaling` changes the global one; beside `rope_parameters` it replaces what that says of it, key by key.
    """
    described, scaling = config.section("rope_parameters"), config.section("rope_scaling")
    described.expect("rope_type", "default", "where Gemma 3 has a description per kind of layer")
    whole = described.section(FULL, defaults={"rope_theta": config.number("rope_theta", 1_000_000.0, most=1e12)})
    local = described.section(
        SLIDING, defaults={"rope_theta": config.number("rope_local_base_freq", 10_000.0, most=1e12)}
    )
    merged = whole.updated(scaling)
    keys = ("partial_rotary_factor", "original_max_position_embeddings")
    beside = Config({key: config.raw(key) for key in keys}, config.where)
    return {
        FULL: parse_rope(beside, merged, head_dim, context, RopeRules(1_000_000.0)),
        SLIDING: parse_rope(beside, local, head_dim, context, RopeRules()),
    }


def four_norms(at: str) -> FourNorms:
    """The norms before and after each half of Gemma's layers."""
    return {
        "input_norm": f"{at}input_layernorm.weight",
        "post_mixer_norm": f"{at}post_attention_layernorm.weight",
        "mlp_norm": f"{at}pre_feedforward_layernorm.weight",
        "post_mlp_norm": f"{at}post_feedforward_layernorm.weight",
    }


def embed_scale(hidden: int, dtype: str) -> float:
    """√hidden, rounded to the type of the checkpoint's weights."""
    scale = np.array([math.sqrt(hidden)], np.float32)
    if dtype == "bfloat16":
        scale = bf16_to_f32(f32_to_bf16(scale))
    if dtype == "float16":
        scale = scale.astype(np.float16).astype(np.float32)
    return float(scale[0])
