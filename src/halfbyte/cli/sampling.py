"""Sampling options of a command as keyword arguments of `Model.stream`; those that have no effect are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from halfbyte.cli import options as opt
from halfbyte.cli.declare import Command, takes
from halfbyte.cli.output import note
from halfbyte.errors import UsageError
from halfbyte.prompts import sequence_breakers

Sampling = dict[str, Any]

_OPTIONS: dict[str, tuple[Any, Any]] = {
    "temperature": (opt.Temperature, 0.0), "dynatemp_range": (opt.DynatempRange, 0.0),
    "dynatemp_exponent": (opt.DynatempExponent, 1.0), "top_n_sigma": (opt.TopNSigma, 0.0), "top_k": (opt.TopK, 0),
    "typical_p": (opt.TypicalP, 1.0), "top_p": (opt.TopP, 1.0), "min_p": (opt.MinP, 0.0),
    "xtc_probability": (opt.XtcProbability, 0.0), "xtc_threshold": (opt.XtcThreshold, 0.1),
    "mirostat": (opt.Mirostat, 0), "mirostat_tau": (opt.MirostatTau, 5.0), "mirostat_eta": (opt.MirostatEta, 0.1),
    "repetition_penalty": (opt.RepetitionPenalty, 1.0), "presence_penalty": (opt.PresencePenalty, 0.0),
    "frequency_penalty": (opt.FrequencyPenalty, 0.0), "repeat_last_n": (opt.RepeatLastN, -1),
    "dry_multiplier": (opt.DryMultiplier, 0.0), "dry_base": (opt.DryBase, 1.75),
    "dry_allowed_length": (opt.DryAllowedLength, 2), "dry_penalty_last_n": (opt.DryPenaltyLastN, -1),
    "dry_sequence_breaker": (opt.DrySequenceBreaker, None), "logit_bias": (opt.LogitBias, None),
    "samplers": (opt.Samplers, None), "seed": (opt.Seed, None), "logprobs": (opt.Logprobs, 0),
}  # fmt: skip

_NOT_ALWAYS = ("logprobs",)

SETTABLE = tuple(name for name in _OPTIONS if name not in ("logit_bias", "dry_sequence_breaker", "logprobs"))
"""Options that may have a default of the user: not lists, and not what concerns one model or one prompt."""

DRAWING = (
    "dynatemp_range", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc_probability", "mirostat", "seed",
)  # fmt: skip
"""Options that only matter where tokens are drawn."""

_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")

_NEED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(DRAWING, ("temperature",)),
    "dynatemp_exponent": ("dynatemp_range",),
    "xtc_threshold": ("xtc_probability",),
    **dict.fromkeys(("mirostat_tau", "mirostat_eta"), ("mirostat",)),
    "repeat_last_n": _PENALTIES,
    **dict.fromkeys(
        ("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breaker"), ("dry_multiplier",)
    ),
}
"""Options that have no effect unless one of some others is set."""

HOT = 2.0
"""Above it nobody wants to sample; where `-t 8` is typed, threads are meant, as in llama.cpp."""

_HARMLESS = {"top_k": 1}
"""Values that mean what greedy choice does anyway."""


def takes_sampling(*more: str) -> Callable[[Command], Command]:
    """Give a command the sampling options, and `more`, in the place of its parameter `sampling`: a `Sampling`."""
    options = {name: option for name, option in _OPTIONS.items() if name in more or name not in _NOT_ALWAYS}
    return takes("sampling", options, _arguments)


def unsupported(sampling: Mapping[str, Any]) -> str:
    """The flags of a `Sampling` that keep a device from choosing tokens itself."""
    from halfbyte.sampling.params import SamplingParams

    known = SamplingParams.__dataclass_fields__
    params = SamplingParams(**{name: value for name, value in sampling.items() if name in known})
    return ", ".join(map(_flag, (*params.beyond_plain, *(["logprobs"] if params.logprobs else []))))


def _arguments(values: dict[str, Any]) -> Sampling:
    """Options as keyword arguments.

    Raises:
        UsageError: A value is out of range or not in its form, or an option needs another one that is not set.
    """
    from halfbyte.sampling.params import SamplingParams

    breakers, order = values.pop("dry_sequence_breaker"), values.pop("samplers")
    values["logit_bias"] = biases(values["logit_bias"] or ())
    if order is not None:
        values["samplers"] = [name.strip() for name in order.replace(";", ",").split(",")]
    SamplingParams(**values)  # refuses what is out of range
    if values["temperature"] > HOT:
        note(f"At temperature {values['temperature']:g} an answer is almost random. For CPU threads: --threads N.")
    _check_needs({**values, "dry_sequence_breaker": breakers})
    if breakers is not None:
        texts = [] if breakers == ["none"] else list(map(_unescaped, breakers))
        values["dry_sequence_breakers"] = sequence_breakers(texts)
    return values


def biases(texts: Iterable[str]) -> dict[int, float]:
    """What is added to logits, by token id, from texts such as `42=-5`.

    Raises:
        UsageError: A text is not ID=X.
    """
    found = {}
    for text in texts:
        token_id, _, value = text.partition("=")
        try:
            found[int(token_id)] = float(value)
        except ValueError as error:
            raise UsageError(
                f"logit bias {text!r} is not ID=X.", "Write a token id and a number, such as 42=-5."
            ) from error
    return found


def without_effect(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Options that are set and have no effect, each with one that it needs."""
    from halfbyte.sampling.params import GREEDY_BELOW

    def is_set(name: str) -> bool:
        if name == "temperature":
            return bool(values[name] >= GREEDY_BELOW)
        return name in values and values[name] not in (_OPTIONS[name][1], _HARMLESS.get(name))

    return [(name, needed[0]) for name, needed in _NEED.items() if is_set(name) and not any(map(is_set, needed))]


def _check_needs(values: Mapping[str, Any]) -> None:
    for name, needed in without_effect(values):
        flag, other = _flag(name), _flag(needed)
        value = " ".join(values[name]) if isinstance(values[name], list) else values[name]
        lacking = f"at temperature {values['temperature']:g}" if needed == "temperature" else f"without {other}"
        raise UsageError(f"{flag} {value} has no effect {lacking}.", f"Set {other} as well, or leave out {flag}.")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _unescaped(text: str) -> str:
    """A text in which `\\n`, `\\t` and `\\\\` stand for a line break, a tab and a backslash."""
    parts = text.split("\\\\")
    return "\\".join(part.replace("\\n", "\n").replace("\\t", "\t") for part in parts)
