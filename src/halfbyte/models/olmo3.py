"""`olmo3`: OLMo 3; OLMo 2 with a sliding window on three of four layers, and rotary scaling on the others alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from halfbyte.models import llama, olmo2
from halfbyte.models.config import Config, RopeRules, head_sizes, parse_rope
from halfbyte.models.decoder import FULL, SLIDING, layer_windows
from halfbyte.models.spec import AttentionSpec, ModelSpec, RopeSpec

GGUF = olmo2.GGUF


def build(config: Config, names: Collection[str]) -> ModelSpec:
    """The spec of an OLMo 3 checkpoint."""
    count, window = config.integer("num_hidden_layers", most=1024), config.integer("sliding_window", 4096)
    windows = layer_windows(config, count, window) or [window if (i + 1) % 4 else None for i in range(count)]

    def change(index: int, usual: AttentionSpec) -> AttentionSpec:
        return replace(usual, whole_norm=True, rope=SLIDING if windows[index] else FULL)

    family, ropes = olmo2.likeness(config), _ropes(config)
    return llama.like_llama(config, names, family, windows=windows, change=change, ropes=ropes)


def _ropes(config: Config) -> dict[str, RopeSpec]:
    """The rotary embedding of each kind of layer; `rope_scaling`, the older form, is that of the unlimited ones."""
    _, _, head_dim = head_sizes(config, config.integer("hidden_size"))
    context, rules = config.integer("max_position_embeddings", least=2), RopeRules(500_000.0)
    described = config.section("rope_parameters")
    whole = described.section(FULL).updated(config.section("rope_scaling"))
    ropes = {FULL: whole, SLIDING: described.section(SLIDING)}
    return {kind: parse_rope(config, rope, head_dim, context, rules) for kind, rope in ropes.items()}
