"""`smollm3`: SmolLM3; Llama without rotary embedding on every fourth layer.

Trap: `no_rope_layers` holds 1 for layers *with* rotary embedding (transformers 5.24, `SmolLM3Config`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from halfbyte.models import llama
from halfbyte.models.config import Config, RopeRules, head_sizes, parse_rope, rope_section
from halfbyte.models.decoder import layer_windows
from halfbyte.models.gguf import Architecture, not_in_gguf
from halfbyte.models.spec import ModelSpec, ProportionalScaling

TIED = True
"""Embedding table and output matrix are one unless the configuration says otherwise."""

_INTERVAL = 4


def _to_gguf(spec: ModelSpec) -> dict[str, Any]:
    """Nothing: a file does not say which layers turn, so it is every one but each fourth (llama.cpp, `smollm3.cpp`)."""
    turns = [attention.rope == "rope" for attention in spec.attentions]
    if turns != [bool((index + 1) % _INTERVAL) for index in range(len(turns))]:
        raise not_in_gguf("This smollm3 model turns other layers than all but each fourth")
    return {}


GGUF = Architecture(
    "smollm3",
    llama.GGUF.layer,
    config=lambda keys, config: {"model_type": "smollm3"},
    metadata=_to_gguf,
    permuted=True,
)


def build(config: Config, names: Collection[str]) -> ModelSpec:
    """The spec of a SmolLM3 checkpoint."""
    bias = config.flag("attention_bias", False)
    kv_heads = None if config.mentions("num_key_value_heads") else 4
    rules = RopeRules(2_000_000.0)
    family = llama.Likeness(
        rope=rules, kv_heads=kv_heads, tied=TIED, qkv_bias=bias, o_bias=bias, mlp_bias=config.flag("mlp_bias", False)
    )
    _, _, head_dim = head_sizes(config, config.integer("hidden_size"), kv_heads=kv_heads)
    context = config.integer("max_position_embeddings", least=2)
    rope = parse_rope(config, rope_section(config), head_dim, context, rules)
    turns = _turning(config)
    return llama.like_llama(
        config,
        names,
        family,
        windows=_windows(config, turns),
        change=lambda index, usual: usual if turns[index] else replace(usual, rope="none"),
        ropes={"rope": rope, "none": replace(rope, scaling=ProportionalScaling(0))},
    )


def _turning(config: Config) -> Sequence[bool]:
    """Whether each layer has rotary embedding."""
    count = config.integer("num_hidden_layers", most=1024)
    interval = config.integer("no_rope_layer_interval", _INTERVAL)
    listed = config.raw("no_rope_layers")
    if listed is None:
        return [bool((index + 1) % interval) for index in range(count)]
    if not isinstance(listed, list) or len(listed) < count or any(value not in (0, 1) for value in listed):
        raise config.error("no_rope_layers", f"a list of {count} of 0 and 1")
    return [bool(value) for value in listed]


def _windows(config: Config, turns: Sequence[bool]) -> Sequence[int | None]:
    """The window of each layer: with `use_sliding_window`, on those that `layer_types` lists, else on those without."""
    sliding = config.flag("use_sliding_window", False) and "sliding_window" in config
    window = config.integer("sliding_window", 4096) if sliding else None
    return layer_windows(config, len(turns), window) or [None if turning else window for turning in turns]
