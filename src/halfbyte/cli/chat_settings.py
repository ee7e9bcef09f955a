"""What `/set` shows and changes: the length of answers, what happens when the context is full, and all samplers."""

from __future__ import annotations

import json
from typing import Any, get_args

from halfbyte.cli.conversation import Conversation, WhenFull
from halfbyte.errors import UsageError
from halfbyte.options import check_names, whole

_AS_OPTIONS = ("dry_breaker_ids", "logit_bias", "logprobs")
"""Fields of `SamplingParams` that a line of text cannot set, or that change nothing to be seen."""


def names() -> list[str]:
    """What can be set."""
    from halfbyte.sampling.params import SamplingOptions

    return ["max_tokens", "when_full", *(name for name in SamplingOptions.__annotations__ if name not in _AS_OPTIONS)]


def shown(conversation: Conversation) -> list[tuple[str, str]]:
    """Each setting and its value."""
    return [(name, value_of(conversation, name)) for name in names()]


def value_of(conversation: Conversation, name: str) -> str:
    """The value of a setting, as it is typed.

    Raises:
        UsageError: There is no such setting.
    """
    from halfbyte.sampling.params import OTHER_NAMES, SamplingParams

    check_names("setting", [name], names(), OTHER_NAMES)
    if name == "when_full":
        return conversation.when_full
    if name == "max_tokens":
        return str(conversation.arguments[name])
    value = conversation.arguments.get(name, getattr(SamplingParams(), name))
    if name == "seed":
        return "random" if value is None else str(value)
    return ", ".join(value) if name == "samplers" else f"{value:g}"


def change(conversation: Conversation, name: str, text: str) -> None:
    """Give a setting the value that a text says.

    Raises:
        UsageError: There is no such setting, or the value is not one of its own.
    """
    from halfbyte.sampling.params import OTHER_NAMES, SamplingOptions, SamplingParams

    check_names("setting", [name], names(), OTHER_NAMES)
    if name == "when_full":
        conversation.when_full = _when_full(text)
        return
    value = _value(name, text)
    arguments = {**conversation.arguments, name: value}
    if name == "max_tokens" and (whole(value) or 0) < 1:
        raise UsageError(f"max_tokens must be a whole number of at least 1 (got {text!r}).", "Try /set max_tokens 256.")
    SamplingParams(**{key: each for key, each in arguments.items() if key in SamplingOptions.__annotations__})
    conversation.arguments = arguments


def _value(name: str, text: str) -> Any:
    """A number where the text is one; the library says what is wrong with other values."""
    if name == "samplers":
        return [part.strip() for part in text.split(",")]
    if name == "seed" and text == "random":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _when_full(text: str) -> WhenFull:
    for choice in get_args(WhenFull):
        if text == choice:
            return choice  # type: ignore[no-any-return]
    raise UsageError(f"when_full must be {' or '.join(get_args(WhenFull))} (got {text!r}).")
