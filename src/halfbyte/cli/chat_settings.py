"""What `/set` shows and changes: where answers end, what happens when the context is full, and all samplers."""

from __future__ import annotations

import json
from typing import Any, get_args

from halfbyte.cli.conversation import Conversation, WhenFull
from halfbyte.cli.sampling import biases
from halfbyte.errors import UsageError
from halfbyte.options import check_names, whole
from halfbyte.prompts import stop_strings

NONE = "none"
"""Typed for no stop texts, or no biases."""

_AS_OPTIONS = ("dry_breaker_ids", "logprobs")
"""Fields of `SamplingParams` that a line of text cannot set, or that change nothing to be seen."""


def names() -> list[str]:
    """What can be set."""
    from halfbyte.sampling.params import SamplingOptions

    sampling = (name for name in SamplingOptions.__annotations__ if name not in _AS_OPTIONS)
    return ["max_tokens", "stop", "when_full", "adapter", *sampling]


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
    if name == "stop":
        return " ".join(json.dumps(text, ensure_ascii=False) for text in conversation.arguments[name]) or NONE
    if name == "adapter":
        return conversation.model.adapter or NONE
    value = conversation.arguments.get(name, getattr(SamplingParams(), name))
    if name == "seed":
        return "random" if value is None else str(value)
    if name == "logit_bias":
        return " ".join(f"{token_id}={bias:g}" for token_id, bias in value.items()) or NONE
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
    if name == "adapter":
        conversation.model = conversation.model.with_adapter(None if text == NONE else text)
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
    if name == "stop":
        return stop_strings(() if text == NONE else _texts(text))
    if name == "logit_bias":
        return biases(() if text == NONE else text.replace(",", " ").split())
    if name == "seed" and text == "random":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _texts(text: str) -> tuple[str, ...]:
    """Texts between quotation marks, as in JSON; one as it is if it begins otherwise."""
    if not text.startswith('"'):
        return (text,)
    texts, rest = [], text
    try:
        while rest:
            part, end = json.JSONDecoder().raw_decode(rest)
            texts.append(part)
            rest = rest[end:].lstrip()
    except ValueError as error:
        raise UsageError(
            f"stop {text!r} has a quotation mark without its other one, or something between two texts.",
            'Write one text as it is, or several as "User:" "\\n\\n".',
        ) from error
    return tuple(texts)


def _when_full(text: str) -> WhenFull:
    for choice in get_args(WhenFull):
        if text == choice:
            return choice  # type: ignore[no-any-return]
    raise UsageError(f"when_full must be {' or '.join(get_args(WhenFull))} (got {text!r}).")
