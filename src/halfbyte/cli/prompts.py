"""The prompts of `run`: the argument, standard input, both, or a file with a prompt per line."""

from __future__ import annotations

import io
import json
import os
import re
import select
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from halfbyte.cli.output import note
from halfbyte.errors import HalfbyteError, UsageError

PATIENCE_S = 2.0
"""How long standard input may be silent before a note says that it is waited for."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?(@[\w./-]+)?", re.ASCII)


@dataclass(frozen=True)
class Request:
    """One prompt and its settings.

    Attributes:
        prompt: Text or messages.
        where: The file and line it comes from; empty for a single prompt.
        given: What the line says of itself, to be repeated beside its answer: its number, and its `id` if it has one.
        error: Why the line cannot be answered; the other fields then mean nothing.
    """

    prompt: str | list[dict[str, Any]]
    system: str | None
    max_tokens: int
    where: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)
    error: HalfbyteError | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """The prompt under the name that a line has for it."""
        return {"prompt" if isinstance(self.prompt, str) else "messages": self.prompt}

    @property
    def shown(self) -> str:
        """The prompt as a line of text: of messages the last."""
        return self.prompt if isinstance(self.prompt, str) else str(self.prompt[-1].get("content", ""))


def single_request(prompt: str | None, *, system: str | None, max_tokens: int, model: str | None = None) -> Request:
    """The prompt of the command line, with what is piped into standard input after it; for `-` or none, only that.

    One line break at the end of standard input is left out.

    Args:
        model: The model that is named, if one is; else a prompt that names one is refused.

    Raises:
        UsageError: There is no prompt, it is empty, it is no text, or it names a model.
    """
    if prompt is None and sys.stdin.isatty():
        raise UsageError("there is no prompt.", 'Give one, as in: halfbyte run "How do I extract a tar archive?"')
    if prompt is None or prompt == "-":
        prompt = _standard_input()
    else:
        if model is None:
            _refuse_model(prompt)
        if piped := _piped():
            prompt = f"{prompt}\n\n{piped}"
    return Request(_checked(prompt, "the prompt"), system and _checked(system, "--system"), max_tokens)


def _refuse_model(prompt: str) -> None:
    """Refuse a prompt that is the name of a model, as other programs take it; say so if it is that of a file."""
    path = Path(prompt)
    if not prompt.strip() or " " in prompt or len(prompt) > 200:
        return
    is_model = _HUB_ID.fullmatch(prompt) or path.suffix.lower() == ".gguf" or (path / "config.json").is_file()
    if is_model:
        raise UsageError(
            f"{prompt!r} looks like a model, not like a prompt.",
            f'Name a model with -m: halfbyte run -m {prompt} "…". '
            f"To send these words as a prompt, name the model too, as in: -m pocket {prompt}",
        )
    if path.exists():
        note(f"The prompt {prompt!r} is also the name of a file. To send its text: halfbyte run - < {prompt}")


def read_requests(path: Path, *, system: str | None, max_tokens: int) -> list[Request]:
    """The prompts of a JSON-lines file.

    A line holds a `prompt` (or `question`), or `messages`, and may hold its own `system`, `max_tokens` and `id`; other
    keys are ignored. A line that is no request becomes one with an `error`.

    Raises:
        UsageError: The file cannot be read, or none of its lines is a request.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {error.strerror}.", "Check the path after --prompts.") from error
    requests = [
        _line_request(line, number, f"{path}, line {number}", system, max_tokens)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not requests:
        raise UsageError(f"{str(path)!r} holds no prompts.", 'Write one per line: {"prompt": "…"}')
    if all(request.error for request in requests) and requests[0].error:
        raise requests[0].error
    return requests


def _piped() -> str:
    """The text of a file or pipe that is connected to standard input; a note is printed while it is waited for."""
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # a stream without a file: text in memory, or one that cannot be read
        return _standard_input() if isinstance(sys.stdin, io.TextIOWrapper) else ""
    if not (stat.S_ISFIFO(kind) or stat.S_ISREG(kind) or stat.S_ISSOCK(kind)):
        return ""
    with suppress(OSError):  # some systems only wait for sockets
        if not select.select([sys.stdin], [], [], PATIENCE_S)[0]:
            note("Waiting for standard input, to put it after the prompt. To use the prompt alone, add: < /dev/null")
    return _standard_input()


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text: {error.reason} at byte {error.start}.") from error


def _line_request(line: bytes, number: int, where: str, system: str | None, max_tokens: int) -> Request:
    given: dict[str, Any] = {"line": number}
    try:
        values = _line_values(line, where)
        given |= {"id": values["id"]} if "id" in values else {}
        return replace(_request(values, where, system, max_tokens), given=given)
    except HalfbyteError as error:
        return Request("", None, 1, where, given, error)


def _request(values: dict[str, Any], where: str, system: str | None, max_tokens: int) -> Request:
    system = values.get("system", system)
    if not isinstance(system, str | None):
        raise UsageError(f'{where}: "system" is {system!r}, not a text.')
    max_tokens = values.get("max_tokens", max_tokens)
    if type(max_tokens) is not int or max_tokens < 1:
        raise UsageError(f'{where}: "max_tokens" is {max_tokens!r}.', "Write a whole number, 1 or more.")
    if "messages" in values:
        return Request(_messages(values["messages"], where, system), None, max_tokens, where)
    prompt = values.get("prompt", values.get("question"))
    if not isinstance(prompt, str):
        raise UsageError(f'{where}: there is no "prompt" with a text.', 'Write {"prompt": "…"} or {"messages": […]}.')
    return Request(_checked(prompt, f"{where}: the prompt"), system, max_tokens, where)


def _messages(value: Any, where: str, system: str | None) -> list[dict[str, Any]]:
    """The messages of a line, after the system message if they have none of their own."""
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise UsageError(
            f'{where}: "messages" is not a list of messages.', 'Write {"messages": [{"role": "user", "content": "…"}]}.'
        )
    if system is None or any(message.get("role") == "system" for message in value):
        return value
    return [{"role": "system", "content": system}, *value]


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
    """The error, with the line of the file that caused it in its message."""
    if request.where:
        error.message = f"{request.where}: {error.message}"
    return error
