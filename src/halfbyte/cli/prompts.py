"""What `run` is asked: the argument, standard input, or a file with a prompt a line."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfbyte.errors import HalfbyteError, UsageError


@dataclass(frozen=True)
class Request:
    """One prompt and what holds for it.

    Attributes:
        where: The file and line it comes from; empty for a single prompt.
    """

    prompt: str
    system: str | None
    max_tokens: int
    where: str = ""


def single_request(prompt: str | None, *, system: str | None, max_tokens: int) -> Request:
    """The prompt of the command line, or standard input's for `-` or none, without one line break at its end.

    Raises:
        UsageError: There is no prompt, it is empty, or it is no text.
    """
    if prompt is None and sys.stdin.isatty():
        raise UsageError("there is no prompt.", 'Give one, as in: halfbyte run "How do I extract a tar archive?"')
    if prompt is None or prompt == "-":
        prompt = _standard_input()
    return Request(_checked(prompt, "the prompt"), system and _checked(system, "--system"), max_tokens)


def read_requests(path: Path, *, system: str | None, max_tokens: int) -> list[Request]:
    """The prompts of a JSON-lines file; a line may hold its own `system` and `max_tokens`, other keys are ignored.

    Raises:
        UsageError: The file cannot be read, holds no prompt, or one of its lines is no request.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error.strerror}.", "Check the path after --prompts.") from error
    requests = [
        _line_request(line, f"{path}, line {number}", system, max_tokens)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not requests:
        raise UsageError(f"{str(path)!r} holds no prompts.", 'Write one a line: {"prompt": "…"}')
    return requests


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text: {error.reason} at byte {error.start}.") from error


def _line_request(line: bytes, where: str, system: str | None, max_tokens: int) -> Request:
    values = _line_values(line, where)
    if not isinstance(values.get("prompt"), str):
        raise UsageError(f'{where}: there is no "prompt" with a text.', 'Write {"prompt": "…"}.')
    system = values.get("system", system)
    if not isinstance(system, str | None):
        raise UsageError(f'{where}: "system" is {system!r}, not a text.')
    max_tokens = values.get("max_tokens", max_tokens)
    if type(max_tokens) is not int or max_tokens < 1:
        raise UsageError(f'{where}: "max_tokens" is {max_tokens!r}.', "Write a whole number, 1 or more.")
    return Request(_checked(values["prompt"], f"{where}: the prompt"), system, max_tokens, where)


def _line_values(line: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: it is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: it is not JSON: {error}.", 'Write {"prompt": "…"}.') from error
    if not isinstance(values, dict):
        raise UsageError(f"{where}: it is not a JSON object.", 'Write {"prompt": "…"}.')
    return values


def _checked(text: str, what: str) -> str:
    """`text`, unless it is empty or holds bytes that are no characters."""
    if not text:
        raise UsageError(f"{what} is empty.", "Write at least one character.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} is not UTF-8 text: {error.reason} at character {error.start}.") from error
    return text


def placed(error: HalfbyteError, request: Request) -> HalfbyteError:
    """`error` with the line of the file that caused it in its message."""
    if request.where:
        error.message = f"{request.where}: {error.message}"
    return error
