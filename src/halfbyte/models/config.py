"""Reading `config.json` with suspicion: every value is checked for type and range before it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from halfbyte.errors import InvalidModelError, UnsupportedModelError
from halfbyte.models.spec import Activation, LinearScaling, Llama3Scaling, LongRopeScaling, Rope, RopeScaling

LARGEST = 1 << 24
"""No size in a configuration of a supported model comes near this."""

_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_REMEDY = "The file is damaged or not of this model; fetch it again."


class Config:
    """A JSON object whose values are asked for by name and type.

    Args:
        values: The object.
        where: How messages call it.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self.values = values
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def error(self, key: str, expected: str) -> InvalidModelError:
        """The error for a value that is not what is expected."""
        shown = repr(self.values.get(key))
        shown = shown if len(shown) < 60 else shown[:57] + "..."
        return InvalidModelError(f"{self.where}: {key} is {shown}, expected {expected}.", _REMEDY)

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = LARGEST) -> int:
        """An integer in `least`…`most`."""
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(key, f"an integer from {least} to {most}")
        return value

    def number(self, key: str, default: float | None = None, *, least: float = 1e-30, most: float = 1e30) -> float:
        """A finite number in `least`…`most`."""
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.error(key, "a positive finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """A list of `length` positive finite numbers."""
        value = self.values.get(key)
        if not isinstance(value, list) or len(value) != length:
            raise self.error(key, f"a list of {length} numbers")
        return tuple(Config({key: item}, self.where).number(key) for item in value)

    def section(self, key: str) -> Config:
        """An object inside this one; empty when it is absent."""
        value = self.values.get(key)
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return Config(value, f"{self.where}: {key}")

    def tokens(self, key: str) -> tuple[int, ...]:
        """Token ids: an integer or a list of them; empty when absent."""
        value = self.values.get(key)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if len(items) > 1000:
            raise self.error(key, "at most 1000 token ids")
        return tuple(Config({key: item}, self.where).integer(key, least=0) for item in items)

    def activation(self, key: str, default: str) -> Activation:
        """The gate's activation.

        Raises:
            UnsupportedModelError: It is none that Halfbyte has.
        """
        name = self.text(key, default)
        if name not in _ACTIVATIONS:
            raise UnsupportedModelError(
                f"{self.where}: {key} {name!r} is not supported.", f"Supported are {', '.join(_ACTIVATIONS)}."
            )
        return _ACTIVATIONS[name]

    def refuse(self, key: str) -> None:
        """Refuse a model that sets the flag `key`."""
        if self.flag(key, False):
            raise UnsupportedModelError(f"{self.where}: {key} is true, which Halfbyte does not support.")


def head_sizes(
    config: Config, hidden: int, *, heads: int | None = None, kv_heads: int | None = None, head_dim: int | None = None
) -> tuple[int, int, int]:
    """(heads, kv_heads, head_dim), checked against each other; the arguments are the family's defaults."""
    n_heads = config.integer("num_attention_heads", heads, most=4096)
    n_kv = config.integer("num_key_value_heads", kv_heads or n_heads, most=4096)
    if n_heads % n_kv:
        raise config.error("num_key_value_heads", f"a divisor of num_attention_heads ({n_heads})")
    if "head_dim" not in config and head_dim is None and hidden % n_heads:
        raise config.error("num_attention_heads", f"a divisor of hidden_size ({hidden}), since head_dim is not given")
    return n_heads, n_kv, config.integer("head_dim", head_dim or hidden // n_heads, least=2, most=4096)


def parse_rope(config: Config, rope: Config, head_dim: int, context: int, default_theta: float) -> Rope:
    """The rotary embedding that `rope` describes.

    `rope` is `rope_parameters` (transformers 5) or `rope_scaling` (before); what it lacks is looked up in
    `config`, where older files keep it.
    """

    def holder(key: str) -> Config:
        return rope if key in rope else config

    theta = holder("rope_theta").number("rope_theta", default_theta, most=1e12)
    partial = holder("partial_rotary_factor").number("partial_rotary_factor", 1.0, most=1.0)
    dim = int(head_dim * partial)
    if dim < 2 or dim % 2:
        key = "partial_rotary_factor"
        raise holder(key).error(key, f"a share of head_dim ({head_dim}) that is an even number of values, not {dim}")
    kind = rope.text("rope_type", rope.text("type", "default"))
    return Rope(dim, theta, _scaling(kind, rope, holder("original_max_position_embeddings"), dim, context))


def _scaling(kind: str, rope: Config, original: Config, dim: int, context: int) -> RopeScaling | None:
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling(rope.number("factor", least=1.0))
        case "llama3":
            return Llama3Scaling(
                rope.number("factor", least=1.0),
                rope.number("low_freq_factor"),
                rope.number("high_freq_factor"),
                original.integer("original_max_position_embeddings", least=2),
            )
        case "longrope" | "su":
            return _longrope(rope, original.integer("original_max_position_embeddings", least=2), dim, context)
        case _:
            raise UnsupportedModelError(
                f"{rope.where}: rope type {kind!r} is not supported.",
                "Supported are default, linear, llama3 and longrope.",
            )


def _longrope(rope: Config, original: int, dim: int, context: int) -> LongRopeScaling:
    """LongRoPE (arXiv 2402.13753), with the attention factor √(1 + ln(factor) / ln(original)) unless it is given."""
    factor = rope.number("factor", context / original)
    derived = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return LongRopeScaling(
        rope.numbers("short_factor", dim // 2),
        rope.numbers("long_factor", dim // 2),
        original,
        rope.number("attention_factor", derived),
    )


def rope_section(config: Config) -> Config:
    """The object that describes the rotary embedding, under its new or its old name."""
    return config.section("rope_parameters" if "rope_parameters" in config else "rope_scaling")
