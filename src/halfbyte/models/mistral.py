"""`mistral`: Llama with a sliding window on every layer, unless the configuration says null (from v0.2 on)."""

from __future__ import annotations

from collections.abc import Collection

from halfbyte.models import llama
from halfbyte.models.config import Config
from halfbyte.models.spec import ModelSpec


def build(config: Config, names: Collection[str]) -> ModelSpec:
    """The spec of a Mistral checkpoint; where `sliding_window` is not mentioned it is the first version's 4096."""
    unlimited = "sliding_window" in config.values and config.values["sliding_window"] is None
    return llama.build(config, names, None if unlimited else config.integer("sliding_window", 4096))
