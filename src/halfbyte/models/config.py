"""Reading `config.json` with suspicion: every value is checked for type and range before it is used."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from halfbyte.errors import InvalidModelError, UnsupportedModelError
from halfbyte.models.spec import (
    Activation,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    RopeScaling,
    RopeSpec,
    YarnScaling,
)

LARGEST = 1 << 24
"""No size in a configuration of a supported model comes near this."""

_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_REMEDY = "The file is damaged or not of this model; fetch it again."


class Config:
    """A JSON object whose values are asked for by name and type.

    It remembers what was asked for, in itself and in its sections, so that `refuse_unknown` can find the rest.

    Args:
        values: The object.
        where: How messages call it.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self._values = values
        self.where = where
        self._known: set[str] = set()
        self._sections: dict[str, Config] = {}

    def __contains__(self, key: str) -> bool:
        return self.raw(key) is not None

    def mentions(self, key: str) -> bool:
        """Whether it has the key, maybe with null."""
        self._known.add(key)
        return key in self._values

    def raw(self, key: str) -> Any:
        """A value as it is; None when it is absent."""
        self._known.add(key)
        return self._values.get(key)

    def known(self, *keys: str) -> None:
        """Keys that a family knows and needs not ask for: they do not change what it computes."""
        self._known.update(keys)

    def expect(self, key: str, value: object, consequence: str = "which Halfbyte does not support") -> None:
        """Refuse a model whose `key` is neither absent nor this value."""
        found = self.raw(key)
        if found is not None and found != value:
            raise UnsupportedModelError(f"{self.where}: {key} is {_shown(found)}, {consequence}.")

    def refuse_unknown(self, harmless: Collection[str] = (), prefixes: tuple[str, ...] = ()) -> None:
        """Refuse keys that nobody asked for: they may change what is computed. Null, false, zero and empty may not.

        Args:
            harmless: Keys that change nothing.
            prefixes: The same, by how they begin.

        Raises:
            UnsupportedModelError: There is such a key; it is named with its value.
        """
        for key, value in self._values.items():
            if key in self._known or key in harmless or key.startswith(prefixes) or not value:
                continue
            raise UnsupportedModelError(
                f"{self.where}: {_shown(key)} is {_shown(value)}, which Halfbyte does not know.",
                "It may change what the model computes. If you are sure that it does not, remove it from the file.",
            )
        for section in self._sections.values():
            section.refuse_unknown(harmless, prefixes)

    def error(self, key: str, expected: str) -> InvalidModelError:
        """The error for a value that is not what is expected."""
        return InvalidModelError(f"{self.where}: {key} is {_shown(self.raw(key))}, expected {expected}.", _REMEDY)

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = LARGEST) -> int:
        """An integer in `least`…`most`."""
        value = self.raw(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(key, f"an integer from {least} to {most}")
        return value

    def number(self, key: str, default: float | None = None, *, least: float = 1e-30, most: float = 1e30) -> float:
        """A finite number in `least`…`most`."""
        value = self.raw(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.error(key, "a positive finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.raw(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self.raw(key)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """A list of `length` positive finite numbers."""
        value = self.raw(key)
        if not isinstance(value, list) or len(value) != length:
            raise self.error(key, f"a list of {length} numbers")
        return tuple(Config({key: item}, self.where).number(key) for item in value)

    def section(self, key: str, defaults: Mapping[str, Any] | None = None) -> Config:
        """An object inside this one, the same at each call; empty when it is absent.

        Args:
            defaults: Values of keys that it does not mention.
        """
        value = self.raw(key)
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        if key not in self._sections:
            self._sections[key] = Config({**(defaults or {}), **value}, f"{self.where}: {key}")
        return self._sections[key]

    def updated(self, other: Config) -> Config:
        """This object with the values of another in place of its own."""
        self.known(*self._values)
        other.known(*other._values)
        merged = Config({**self._values, **other._values}, other.where if other._values else self.where)
        self._sections["updated"] = merged
        return merged

    def tokens(self, key: str) -> tuple[int, ...]:
        """Token ids: an integer or a list of them; empty when absent."""
        value = self.raw(key)
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


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


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


ROPE_KEYS = (
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings",
    "low_freq_factor", "high_freq_factor", "short_factor", "long_factor", "attention_factor", "beta_fast", "beta_slow",
    "mscale", "mscale_all_dim", "truncate", "finetuned",
)  # fmt: skip
"""Keys of a description of a rotary embedding; those that its type does not have are ignored, as by transformers."""


@dataclass(frozen=True)
class RopeRules:
    """Where families differ in reading a description of a rotary embedding.

    Attributes:
        theta: The base where none is given.
        partial: Whether `partial_rotary_factor` counts.
        share: What it is where none is given.
        original: The family's `original_max_position_embeddings`, if it has one: then the description's is ignored.
        missing: The description where the configuration has none.
    """

    theta: float = 10_000.0
    partial: bool = False
    share: float = 1.0
    original: int | None = None
    missing: Mapping[str, Any] = field(default_factory=dict)


USUAL_ROPE = RopeRules()


def rope_section(config: Config, rules: RopeRules = USUAL_ROPE) -> Config:
    """The object that describes the rotary embedding: `rope_scaling`, the older name, before `rope_parameters`."""
    config.known("rope_scaling", "rope_parameters")
    if not (config.raw("rope_scaling") or config.raw("rope_parameters")):
        return Config(rules.missing, config.where)
    return config.section("rope_scaling" if config.raw("rope_scaling") else "rope_parameters")


def parse_rope(config: Config, rope: Config, head_dim: int, context: int, rules: RopeRules) -> RopeSpec:
    """The rotary embedding that `rope` describes; what it lacks is looked up in `config`, as transformers 5 does."""
    rope.known(*ROPE_KEYS)

    def holder(key: str) -> Config:
        return rope if key in rope or key not in config else config

    theta = holder("rope_theta").number("rope_theta", rules.theta, most=1e12)
    kind = rope.text("rope_type", rope.text("type", "default"))
    dim = _rotated(holder("partial_rotary_factor"), head_dim, kind, rules)
    inside = "original_max_position_embeddings" not in config and rules.original is None
    original = (rope if inside else config).integer(
        "original_max_position_embeddings", rules.original or context, least=2
    )
    return RopeSpec(dim, theta, _scaling(kind, rope, RopeSpec(dim, theta), original, context))


def _rotated(holder: Config, head_dim: int, kind: str, rules: RopeRules) -> int:
    """How many values of a head are rotated."""
    key = "partial_rotary_factor"
    share = holder.number(key, rules.share, most=1.0)
    dim = int(head_dim * share)
    if kind == "proportional":
        return head_dim
    if not rules.partial:
        if kind != "default":
            holder.expect(key, 1)
        return head_dim
    if dim < 2 or dim % 2:
        raise holder.error(key, f"a share of head_dim ({head_dim}) that is an even number of values, not {dim}")
    return dim


def _scaling(kind: str, rope: Config, plain: RopeSpec, original: int, context: int) -> RopeScaling | None:
    """How the frequencies of `plain` are changed."""
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling(rope.number("factor", least=1.0))
        case "llama3":
            low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
            return Llama3Scaling(rope.number("factor", least=1.0), low, high, original)
        case "longrope" | "su":
            return _longrope(rope, original, plain.dim, context)
        case "yarn":
            return _yarn(rope, original, context)
        case "proportional":
            rope.expect("factor", 1)
            share = rope.number("partial_rotary_factor", 1.0, most=1.0)
            return ProportionalScaling(int(share * plain.dim // 2))
        case _:
            raise UnsupportedModelError(
                f"{rope.where}: rope type {kind!r} is not supported.",
                "Supported are default, linear, llama3, longrope, yarn and proportional.",
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


def _yarn(rope: Config, original: int, context: int) -> YarnScaling:
    """YaRN, with the attention factor as transformers 5.24 finds it where it is not given."""
    factor = rope.number("factor", context / original, least=1.0)
    mscale, all_dim = rope.number("mscale", 0.0, least=0.0), rope.number("mscale_all_dim", 0.0, least=0.0)
    derived = yarn_growth(factor, mscale) / yarn_growth(factor, all_dim) if mscale and all_dim else yarn_growth(factor)
    betas = (rope.number("beta_fast", 32.0), rope.number("beta_slow", 1.0))
    attention_factor = rope.number("attention_factor", derived)
    return YarnScaling(factor, original, attention_factor, *betas, rope.flag("truncate", True))


def yarn_growth(factor: float, weight: float = 1.0) -> float:
    """What YaRN multiplies cos and sin by to make up for longer waves."""
    return 0.1 * weight * math.log(factor) + 1.0
