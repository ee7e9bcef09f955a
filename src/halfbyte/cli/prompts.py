"""The prompt of `run`: the argument, a text after it, or that text alone."""

from __future__ import annotations

import io
import json
import os
import select
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfbyte.cli.output import note
from halfbyte.cli.words import no_prompt
from halfbyte.errors import HalfbyteError, UsageError
from halfbyte.user_files import read_text

PATIENCE_S = 2.0
"""How long standard input may be silent before a note says that it is waited for."""


@dataclass(frozen=True)
class Request:
    """One prompt and its settings.

    Attributes:
        prompt: Text or messages.
        options: Keyword arguments of `Model.generate`.
        where: The file and line it comes from; empty for a single prompt.
        given: What is repeated beside its answer: the fields of its line.
        error: Why the line cannot be answered; the other fields then mean nothing.
    """

    prompt: str | list[dict[str, Any]]
    options: Mapping[str, Any]
    where: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)
    error: HalfbyteError | None = None

    @property
    def shown(self) -> str:
        """The prompt as a line of text: of messages the last."""
        return self.prompt if isinstance(self.prompt, str) else str(self.prompt[-1].get("content", ""))


def single_request(
    prompt: str | None, *, system: str | None, max_tokens: int, file: Path | None = None, model: str | None = None
) -> Request:
    """The prompt of the command line, with the text of a file, or what is piped into standard input, after it.

    For `-` or None it is that text alone. One line break at its end is left out.

    Args:
        model: The word that was taken for the model, to be named where there is no prompt.

    Raises:
        UsageError: There is no prompt, it is empty or no text, or the file cannot be read.
    """
    if prompt is None and file is None and sys.stdin.isatty():
        raise no_prompt(model)
    if file is not None and prompt == "-":
        raise UsageError("there are both - and --file.", "Give one of the two.")
    if prompt is not None and prompt != "-":
        text = _piped() if file is None else _file_text(file)
        _note_file(prompt)
        prompt = f"{prompt}\n\n{text}" if text else prompt
    else:
        prompt = _standard_input() if file is None else _file_text(file)
    if not prompt and model is not None:
        raise no_prompt(model)
    options = {"system": system and checked(system, "--system"), "max_tokens": max_tokens}
    return Request(checked(prompt, "the prompt"), options, given={"prompt": prompt})


def _note_file(prompt: str) -> None:
    """Say that a prompt is the name of a file, if it is: other programs would read it."""
    if os.path.isfile(prompt):
        note(f"The prompt {prompt!r} is also the name of a file. To send its text: halfbyte run -f {prompt}")


def read_schema(path: Path) -> dict[str, Any]:
    """The JSON schema in a file.

    Raises:
        UsageError: The file cannot be read, or holds no JSON object.
    """
    try:
        schema = json.loads(read_text(path, "Check the path after --json-schema."))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{str(path)!r} is not JSON: {error}.", "Give a file with a JSON schema.") from error
    if not isinstance(schema, dict):
        raise UsageError(f"{str(path)!r} holds no JSON object.", 'A schema looks like {"type": "object", …}.')
    return schema


def read_variables(text: str | None) -> dict[str, Any] | None:
    """What --chat-template-kwargs says; None if it was not given.

    Raises:
        UsageError: It is no JSON object.
    """
    if text is None:
        return None
    remedy = """Write --chat-template-kwargs '{"enable_thinking": false}'."""
    try:
        variables = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--chat-template-kwargs {text!r} is not JSON: {error}.", remedy) from error
    if not isinstance(variables, dict):
        raise UsageError(f"--chat-template-kwargs {text!r} is no JSON object.", remedy)
    return variables


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


def _file_text(file: Path) -> str:
    if str(file) == "-":
        return _standard_input()
    return _without_break(read_text(file, "Check the path after --file.").removeprefix("\ufeff"))


def _standard_input() -> str:
    try:
        return _without_break(sys.stdin.buffer.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text: {error.reason} at byte {error.start}.") from error


def _without_break(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def checked(text: str, what: str) -> str:
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
