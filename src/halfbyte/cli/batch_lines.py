"""Lines of JSON as requests: a prompt, settings of its own, and whatever else is to be kept beside the answer."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from halfbyte.cli.prompts import Request, checked
from halfbyte.errors import HalfbyteError, UsageError

PROMPTS = ("messages", "prompt", "question")
"""Names of what is asked; the first that a line has counts."""

_NOT_IN_LINES = ("grammar", "prompt_logprobs", "dry_breaker_ids")
"""Options of `Model.generate` that JSON cannot carry, or whose results no line has."""


class Line(NamedTuple):
    """A line of a file, by its number from 1 on."""

    number: int
    text: bytes


def lines_of(path: Path) -> Iterator[Line]:
    """The lines of a file that are not blank, or of standard input for `-`, read one at a time.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        with _opened(path) as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield Line(number, text.strip())
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error.strerror}.", "Check the path after --prompts.") from error


def request_of(line: Line, where: str, options: Mapping[str, Any]) -> Request:
    """A line as a request; one that is none becomes one with an `error`.

    Args:
        options: Keyword arguments of `Model.generate` for lines that do not say otherwise.
    """
    place = f"{where}, line {line.number}"
    values: dict[str, Any] = {}
    try:
        values |= _values(line.text, place)
        return _request(values, place, options)
    except HalfbyteError as error:
        return Request("", {}, place, values, error)


def line_settings() -> frozenset[str]:
    """The settings that a line may have: options of `Model.generate`, and a `json_schema`."""
    from halfbyte.model import AnswerOptions
    from halfbyte.sampling.params import SamplingOptions

    names = {*AnswerOptions.__annotations__, *SamplingOptions.__annotations__, "json_schema"}
    return frozenset(names.difference(_NOT_IN_LINES))


def _opened(path: Path) -> BinaryIO:
    if str(path) != "-":
        return path.open("rb")
    try:
        descriptor = sys.stdin.fileno()
    except (OSError, ValueError):  # text in memory
        return io.BytesIO(sys.stdin.buffer.read())
    # A buffer of its own: a thread that waits in that of sys.stdin would keep the interpreter from ending.
    return open(descriptor, "rb", closefd=False)


def _values(text: bytes, place: str) -> dict[str, Any]:
    try:
        values = json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{place}: it is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place}: it is not JSON: {error}.", 'Write {"prompt": "…"}.') from error
    if not isinstance(values, dict):
        raise UsageError(f"{place}: it is not a JSON object.", 'Write {"prompt": "…"}.')
    return values


def _request(values: dict[str, Any], place: str, options: Mapping[str, Any]) -> Request:
    name = next((name for name in PROMPTS if values.get(name) is not None), None)
    prompt = None if name is None else values[name]
    merged = {**options, **_settings(values, place, options)}
    if name == "messages":
        prompt = _messages(prompt, place, merged.get("system"))
        merged["system"] = None
    elif isinstance(prompt, str):
        checked(prompt, f"{place}: the prompt")
    else:
        raise UsageError(f'{place}: there is no "prompt" with a text.', 'Write {"prompt": "…"} or {"messages": […]}.')
    return Request(prompt, merged, place, values)


def _settings(values: Mapping[str, Any], place: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a line says otherwise; null is nothing said.

    Raises:
        UsageError: A value is out of range or of the wrong type, or a setting has the name that other programs use.
    """
    from halfbyte.prompts import sequence_breakers, stop_strings
    from halfbyte.sampling.params import OTHER_NAMES, SamplingParams

    known = line_settings()
    for name in OTHER_NAMES.keys() & values.keys():
        raise UsageError(f'{place}: "{name}" is no setting.', f'Write "{OTHER_NAMES[name]}".')
    given = {name: value for name, value in values.items() if name in known and value is not None}
    system, most = given.get("system"), given.get("max_tokens", 1)
    if not isinstance(system, str | None):
        raise UsageError(f'{place}: "system" is {system!r}, not a text.')
    if type(most) is not int or most < 1:
        raise UsageError(f'{place}: "max_tokens" is {most!r}.', "Write a whole number, 1 or more.")
    if not isinstance(given.get("json_schema", {}), dict):
        raise UsageError(f'{place}: "json_schema" is no JSON object.', 'A schema looks like {"type": "object", …}.')
    if isinstance(given.get("logit_bias"), dict):
        given["logit_bias"] = {_token_id(key, place): value for key, value in given["logit_bias"].items()}
    sampling = {**options, **given}
    try:
        SamplingParams(**{name: sampling[name] for name in SamplingParams.__dataclass_fields__ if name in sampling})
        stop_strings(given.get("stop", ()))
        sequence_breakers(given.get("dry_sequence_breakers", ()))
    except UsageError as error:
        raise UsageError(f"{place}: {error.message}", error.hint) from error
    return given


def _token_id(key: str, place: str) -> int:
    try:
        return int(key)
    except ValueError as error:
        raise UsageError(f'{place}: "logit_bias" has {key!r}, which is no token id.', 'Write {"42": -5}.') from error


def _messages(value: Any, place: str, system: str | None) -> list[dict[str, Any]]:
    """The messages of a line, after the system message if they have none of their own."""
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise UsageError(
            f'{place}: "messages" is not a list of messages.', 'Write {"messages": [{"role": "user", "content": "…"}]}.'
        )
    if system is None or any(message.get("role") == "system" for message in value):
        return value
    return [{"role": "system", "content": system}, *value]
