"""`phi3`: Phi-3.5-mini, Phi-4-mini and Phi-4; Llama with fused projections, LongRoPE and partial rotary."""

from __future__ import annotations

from collections.abc import Collection

from halfbyte.models import llama
from halfbyte.models.config import Config, RopeRules
from halfbyte.models.gguf import Architecture
from halfbyte.models.spec import ModelSpec

GGUF = Architecture(
    "phi3",
    {
        "attn_norm": "input_layernorm",
        "attn_qkv": "self_attn.qkv_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_up": "mlp.gate_up_proj",
        "ffn_down": "mlp.down_proj",
    },
    config=lambda keys, config: {"model_type": "phi3"},
    metadata=lambda spec: {"rope.scaling.original_context_length": spec.rope_switch or spec.context},
    partial=True,
    windows=True,
)


def build(config: Config, names: Collection[str]) -> ModelSpec:
    """The spec of a Phi-3 or Phi-4 checkpoint."""
    config.refuse("attention_bias")
    for key, value in (("full_attn_mod", 1), ("interpolate_factor", 1), ("lm_head_bias", False), ("mlp_bias", False)):
        config.expect(key, value)
    window = config.integer("sliding_window") if "sliding_window" in config else None
    windows = (window,) * config.integer("num_hidden_layers", most=1024)
    family = llama.Likeness(eps=1e-5, rope=RopeRules(partial=True, original=4096))
    return llama.like_llama(config, names, family, windows=windows)
