"""`llama`: Llama 3.1 and 3.2, and what Mistral shares with them."""

from __future__ import annotations

from collections.abc import Collection

from halfbyte.models.config import Config, head_sizes, parse_rope, rope_section
from halfbyte.models.decoder import common_fields, uniform_layers
from halfbyte.models.spec import Attention, ModelSpec


def build(config: Config, names: Collection[str], window: int | None = None) -> ModelSpec:
    """The spec of a Llama-like checkpoint; separate or fused projections are told apart by the tensors' `names`.

    Args:
        window: Keys a query sees in every layer, itself included; None for all.
    """
    config.refuse("attention_bias")
    config.refuse("mlp_bias")
    hidden = config.integer("hidden_size")
    heads, kv_heads, head_dim = head_sizes(config, hidden)
    context = config.integer("max_position_embeddings", least=2)
    seen = window if window and window < context else None
    attention = Attention(heads, kv_heads, head_dim, head_dim**-0.5, rope="rope", window=seen)
    fused = any(name.endswith("qkv_proj.weight") for name in names)
    return ModelSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size"),
        layers=uniform_layers(config, attention, "model.", fused=fused),
        ropes={"rope": parse_rope(config, rope_section(config), head_dim, context, 10_000.0)},
        norm_eps=config.number("rms_norm_eps", 1e-5, most=1.0),
        activation=config.activation("hidden_act", "silu"),
        context=context,
        **common_fields(config, "model.", tied=False),  # type: ignore[arg-type]
        model_type=config.text("model_type"),
    )
