"""`qwen3`: Qwen3; Qwen2 without its biases, with a norm of each head of q and k.

Trap: `head_dim` is a size of its own (128 whatever the hidden size), and was missing from early ports
(transformers 5.24, `Qwen3Attention`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from halfbyte.models import llama, qwen2
from halfbyte.models.config import Config
from halfbyte.models.gguf import HEAD_NORMS
from halfbyte.models.spec import ModelSpec

GGUF = replace(
    qwen2.GGUF,
    name="qwen3",
    layer={**qwen2.GGUF.layer, **HEAD_NORMS},
    config=lambda keys, config: {"model_type": "qwen3"},
)


def build(config: Config, names: Collection[str]) -> ModelSpec:
    """The spec of a Qwen3 checkpoint."""
    bias = config.flag("attention_bias", False)
    kv_heads = None if config.mentions("num_key_value_heads") else 32
    family = llama.Likeness(kv_heads=kv_heads, head_dim=128, qkv_bias=bias, o_bias=bias, qk_norms=True)
    return llama.like_llama(config, names, family, windows=qwen2.windows(config))
