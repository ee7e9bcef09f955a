"""`granite`: Granite 3 and 4's dense models; Llama with factors on embeddings, attention, residual stream and logits.

Traps: `attention_multiplier` takes the place of head_dim^-½; logits are *divided* by `logits_scaling`; a half's output
is multiplied before it is added, the stream is not (transformers 5.24, `GraniteDecoderLayer`, `GraniteForCausalLM`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from halfbyte.models import llama
from halfbyte.models.config import Config
from halfbyte.models.gguf import Architecture
from halfbyte.models.spec import ModelSpec

_FACTORS = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
}
"""Keys of `config.json`, and what GGUF calls them."""


def _from_gguf(keys: Config, config: dict[str, Any]) -> dict[str, Any]:
    head = config["head_dim"] ** -0.5
    factors = {
        ours: keys.number(key, head if ours == "attention_multiplier" else 1.0) for ours, key in _FACTORS.items()
    }
    return {"model_type": "granite", **factors}


def _to_gguf(spec: ModelSpec) -> dict[str, Any]:
    values = (spec.embed_scale, spec.residual_scale, spec.attentions[0].scale, 1 / spec.logit_scale)
    return dict(zip(_FACTORS.values(), values, strict=True))


GGUF = Architecture("granite", llama.GGUF.layer, config=_from_gguf, metadata=_to_gguf, permuted=True)


def build(config: Config, names: Collection[str]) -> ModelSpec:
    """The spec of a Granite checkpoint."""
    bias = config.flag("attention_bias", False)
    family = llama.Likeness(qkv_bias=bias, o_bias=bias, mlp_bias=config.flag("mlp_bias", False))
    embedding, residual, attention, logits = (config.number(key, 1.0) for key in _FACTORS)
    spec = llama.like_llama(config, names, family, change=lambda index, usual: replace(usual, scale=attention))
    return replace(spec, embed_scale=embedding, residual_scale=residual, logit_scale=1 / logits)
