"""`mistral`: Mistral; Llama with a sliding window, unless the configuration says null (from v0.2 on).

The window is that of every layer, or of those that `layer_types` names: then transformers' `AutoModel` takes the
model for a Ministral.
"""

from __future__ import annotations

from collections.abc import Collection

from halfbyte.models import llama
from halfbyte.models.config import Config
from halfbyte.models.decoder import layer_windows
from halfbyte.models.spec import ModelSpec

GGUF = llama.GGUF


def build(config: Config, names: Collection[str], prefix: str = "model.", head: str = "lm_head.weight") -> ModelSpec:
    """The spec of a Mistral checkpoint whose tensors start with `prefix`; what it leaves out is as in version 0.1."""
    unlimited = config.mentions("sliding_window") and config.raw("sliding_window") is None
    window = None if unlimited else config.integer("sliding_window", 4096)
    count = config.integer("num_hidden_layers", most=1024)
    kv_heads = None if config.mentions("num_key_value_heads") else 8
    windows = layer_windows(config, count, window) or (window,) * count
    config.refuse("attention_bias")
    family = llama.Likeness(kv_heads=kv_heads)
    return llama.like_llama(config, names, family, windows=windows, prefix=prefix, head=head)
