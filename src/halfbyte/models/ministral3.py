"""`ministral3`: Ministral 3 and later models of Mistral; Llama with YaRN, and queries that grow with their position.

Traps: `llama_4_scaling_beta` stands among the parameters of the rotary embedding; queries grow every
`original_max_position_embeddings` positions, not `max_position_embeddings` (transformers 5.24, `Ministral3Attention`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from halfbyte.models import llama
from halfbyte.models.config import Config, RopeRules, rope_section
from halfbyte.models.gguf import Architecture
from halfbyte.models.spec import ModelSpec, Temperature

RULES = RopeRules(missing={
    "type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16_384, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
})  # fmt: skip


def _from_gguf(keys: Config, config: dict[str, Any]) -> dict[str, Any]:
    """Queries begin to grow where YaRN does, whose original context a file states."""
    scaling = config["rope_scaling"] or {"rope_type": "default"}
    beta = keys.number("attention.temperature_scale", 0.0, least=0.0)
    return {"model_type": "ministral3", "rope_scaling": {**scaling, "llama_4_scaling_beta": beta}}


def _to_gguf(spec: ModelSpec) -> dict[str, Any]:
    growth = spec.attentions[0].temperature
    return {} if growth is None else {"attention.temperature_scale": growth.beta}


GGUF = Architecture("mistral3", llama.GGUF.layer, config=_from_gguf, metadata=_to_gguf, permuted=True)


def build(config: Config, names: Collection[str], prefix: str = "model.", head: str = "lm_head.weight") -> ModelSpec:
    """The spec of a Ministral 3 checkpoint whose tensors start with `prefix`."""
    rope = rope_section(config, RULES)
    rope.known("max_position_embeddings")
    beta = rope.number("llama_4_scaling_beta", 0.0, least=0.0)
    length = rope.integer("original_max_position_embeddings", config.integer("max_position_embeddings"))
    growth = Temperature(beta, length) if beta else None
    family = llama.Likeness(
        eps=1e-5, rope=RULES, kv_heads=None if config.mentions("num_key_value_heads") else 8, head_dim=128
    )
    window = config.integer("sliding_window") if "sliding_window" in config else None
    return llama.like_llama(
        config,
        names,
        family,
        windows=[window] * config.integer("num_hidden_layers", 34, most=1024),
        change=lambda index, usual: replace(usual, temperature=growth),
        prefix=prefix,
        head=head,
    )
