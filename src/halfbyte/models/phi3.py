"""`phi3`: Phi-3.5-mini, Phi-4-mini and Phi-4; Llama with fused projections, LongRoPE and partial rotary."""

from __future__ import annotations

from collections.abc import Collection

from halfbyte.models import llama
from halfbyte.models.config import Config
from halfbyte.models.spec import ModelSpec


def build(config: Config, names: Collection[str]) -> ModelSpec:
    """The spec of a Phi-3 or Phi-4 checkpoint."""
    return llama.build(config, names, config.integer("sliding_window") if "sliding_window" in config else None)
