"""`qwen2`: Qwen2 and Qwen2.5; Llama with biases on query, key and value.

Only with `use_sliding_window` are there windows, on the layers that `layer_types` names, else on those from
`max_window_layers` on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from halfbyte.models import llama
from halfbyte.models.config import Config
from halfbyte.models.decoder import layer_windows
from halfbyte.models.gguf import ATTENTION, MLP, Architecture
from halfbyte.models.spec import ModelSpec

GGUF = Architecture(
    "qwen2",
    {**ATTENTION, **MLP, "ffn_norm": "post_attention_layernorm"},
    config=lambda keys, config: {"model_type": "qwen2"},
)


def build(config: Config, names: Collection[str]) -> ModelSpec:
    """The spec of a Qwen2 checkpoint."""
    config.known("attention_bias")
    kv_heads = None if config.mentions("num_key_value_heads") else 32
    family = llama.Likeness(kv_heads=kv_heads, qkv_bias=True)
    return llama.like_llama(config, names, family, windows=windows(config))


def windows(config: Config) -> Sequence[int | None]:
    """The window of each layer."""
    count = config.integer("num_hidden_layers", most=1024)
    first = config.integer("max_window_layers", 28, least=0)
    window = config.integer("sliding_window", 4096) if config.flag("use_sliding_window", False) else None
    if config.mentions("sliding_window") and config.raw("sliding_window") is None:
        window = None
    return layer_windows(config, count, window) or [window if i >= first else None for i in range(count)]
