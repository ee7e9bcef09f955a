"""`halfbyte chat`: a conversation of many turns, streamed.

A line that begins with `/` and a word is a command; all other lines are said to the model. An error or
Ctrl-C ends the answer, never the conversation.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from halfbyte.cli import options as opt
from halfbyte.cli.history import line_editing
from halfbyte.cli.loading import FILES, RUN, Chosen, takes_model
from halfbyte.cli.output import accept_any_bytes, note, print_error
from halfbyte.cli.sampling import Sampling, takes_sampling
from halfbyte.errors import ContextFullError, HalfbyteError

if TYPE_CHECKING:
    from halfbyte.model import Model

HELP = """\
/system TEXT  set the system message; without TEXT, show it
/reset        forget the conversation, keep the system message
/save FILE    write the conversation to a new JSON file
/quit         leave; so do Ctrl-D, and Ctrl-C at the prompt
/help         show this
Ctrl-C stops an answer."""

_WHEN_FULL = "/reset begins a new conversation, /save FILE keeps this one."

_COMMAND = re.compile(r"/(\w+)(?:\s+(.*))?")


@takes_model(*FILES, *RUN)
@takes_sampling()
def chat(
    *,
    chosen: Chosen,
    system: opt.System = None,
    max_tokens: opt.MaxTokens = 1024,
    stop: opt.Stop = None,
    sampling: Sampling,
) -> None:
    """Talk with a model; /help lists the commands."""
    loaded = chosen.load()
    conversation = Conversation(loaded, system, {"max_tokens": max_tokens, "stop": tuple(stop or ()), **sampling})
    accept_any_bytes(sys.stdin)
    interactive = sys.stdin.isatty()
    if interactive:
        note(f"{loaded.name} on {loaded.device}. /help lists commands, Ctrl-D leaves.")
    with line_editing() if interactive else nullcontext():
        converse(conversation, interactive=interactive)


def converse(conversation: Conversation, *, interactive: bool) -> None:
    """Read lines until `/quit` or the end of input.

    Raises:
        typer.Exit: The last turn failed, and without a terminal only the exit code can say so.
    """
    failed: HalfbyteError | None = None
    while (line := _read_line(interactive)) is not None:
        if not (line := line.strip()):
            continue
        if command := _COMMAND.fullmatch(line):
            if command[1] == "quit":
                break
            conversation.obey(command[1], command[2] or "")
            continue
        if failed := conversation.say(line):
            print_error(failed.message, failed.hint)
    if failed and not interactive:
        raise typer.Exit(failed.exit_code)


def _read_line(interactive: bool) -> str | None:
    """The next line, or None at the end of input."""
    if not interactive:
        return sys.stdin.readline() or None
    try:
        return input("> ")
    except EOFError:
        sys.stdout.write("\n")
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        raise
    return None


class Conversation:
    """The messages so far and the model that answers them."""

    def __init__(self, model: Model, system: str | None, arguments: dict[str, Any]) -> None:
        self.model = model
        self.system = system
        self.turns: list[dict[str, str]] = []
        self.arguments = arguments

    @property
    def messages(self) -> list[dict[str, str]]:
        """The system message, if any, and all turns."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns]

    def say(self, text: str) -> HalfbyteError | None:
        """Print the answer to `text` as it comes, and keep both; returns the error that ended it, if one did.

        What came before an error or Ctrl-C is kept as the answer; if nothing came, `text` is forgotten too.
        """
        self.turns.append({"role": "user", "content": text})
        parts: list[str] = []
        try:
            self._stream(parts)
        except HalfbyteError as error:
            if isinstance(error, ContextFullError):
                error.hint = _WHEN_FULL
            return error
        except KeyboardInterrupt:
            note("(stopped)")
        finally:
            answer = "".join(parts)
            if answer:
                self.turns.append({"role": "assistant", "content": answer})
            else:
                self.turns.pop()
        return None

    def _stream(self, parts: list[str]) -> None:
        stream = self.model.stream(self.messages, **self.arguments)
        try:
            for token in stream:
                parts.append(token.text)
                sys.stdout.write(token.text)
                sys.stdout.flush()
        finally:
            stream.close()
            if parts:
                sys.stdout.write("\n")
                sys.stdout.flush()
        if stream.result().finish_reason == "context":
            note(f"(stopped: the context is full. {_WHEN_FULL})")

    def obey(self, command: str, argument: str) -> None:
        """Carry out a command other than `/quit`."""
        match command:
            case "system":
                self.system = argument or self.system
                note(f"system message: {self.system}" if self.system else "there is no system message")
            case "reset":
                self.turns.clear()
                note("(new conversation)")
            case "save":
                self._save(argument)
            case "help":
                print(HELP, file=sys.stderr)
            case _:
                print_error(f"there is no command /{command}.", "/help lists them.")

    def _save(self, name: str) -> None:
        path = Path(name).expanduser()
        if not name:
            print_error("/save needs the name of a file.")
            return
        text = json.dumps(self.messages, ensure_ascii=False, indent=2) + "\n"
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            print_error(f"{name!r} exists and is not overwritten.", "Choose another name.")
        except OSError as error:
            print_error(f"cannot write {name!r}: {error.strerror}.")
        else:
            note(f"{len(self.messages)} messages saved to {name}")
