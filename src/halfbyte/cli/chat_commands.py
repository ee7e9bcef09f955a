"""The commands of `chat` as data: names, argument, help and function.

A text that begins with `/` and a word is a command; every other one is said to the model, and so is what stands
between a pair of triple quotation marks.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from halfbyte.cli import chat_settings, completion
from halfbyte.cli.conversation import Conversation
from halfbyte.cli.output import note, print_pairs
from halfbyte.cli.sampling import DRAWING
from halfbyte.cli.usage import close
from halfbyte.errors import HalfbyteError, UsageError
from halfbyte.units import quantity, size
from halfbyte.user_files import read_text

QUOTES = '"""'
_KEYS = (
    ("Alt-Enter, Ctrl-J", "begin a new line; so does a \\ at the end of one"),
    (f"{QUOTES}…{QUOTES}", "text of several lines, which is never a command"),
    ("Ctrl-R", "search what was typed before"),
    ("Ctrl-C", "stop an answer"),
)
LARGEST_FILE = 1 << 20
"""Bytes of a file that may be attached."""

_COMMAND = re.compile(r"/(\w+|\?)(?:\s+(.*))?", re.DOTALL)


class Leave(Exception):  # noqa: N818
    """The conversation is over."""


@dataclass(frozen=True)
class Command:
    """What can be typed after a `/`.

    Attributes:
        names: Help shows the first one, and mentions the others.
        argument: What follows the name, for help; FILE is completed as a path.
        choices: Gives completions of another argument.
    """

    names: tuple[str, ...]
    argument: str
    help: str
    function: Callable[[Conversation, str], None]
    choices: Callable[[], Iterable[str]] = tuple

    @property
    def shown(self) -> tuple[str, str]:
        """The first name with the argument, and the help with the other names."""
        name, *others = (f"/{name}" for name in self.names)
        also = f"; also {', '.join(others)}" if others else ""
        return f"{name} {self.argument}".rstrip(), self.help + also


def enter(conversation: Conversation, text: str) -> None:
    """Carry out a command, or say a text to the model.

    Raises:
        Leave: The command was `/quit`.
        HalfbyteError: There is no such command, or it failed.
    """
    if len(text) >= 2 * len(QUOTES) and text.startswith(QUOTES) and text.endswith(QUOTES):
        conversation.say(text.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n"))
    elif typed := _COMMAND.fullmatch(text):
        _named(typed[1]).function(conversation, (typed[2] or "").strip())
    else:
        conversation.say(text)


def commands() -> dict[str, Command]:
    """Every command by each of its names."""
    return {name: command for command in COMMANDS for name in command.names}


def _named(name: str) -> Command:
    known = commands()
    if name in known:
        return known[name]
    found = close(f"/{name}", [f"/{each}" for each in known])
    meant = f" Did you mean {' or '.join(found)}?" if found else ""
    raise UsageError(f"there is no command /{name}.{meant}", "/help lists them.")


def _system(conversation: Conversation, text: str) -> None:
    conversation.system = text or conversation.system
    note(f"system message: {conversation.system}" if conversation.system else "there is no system message")


def _reset(conversation: Conversation, _: str) -> None:
    conversation.begin(conversation.system, [])
    note("(new conversation)")


def _save(conversation: Conversation, name: str) -> None:
    path = _path("/save", name)
    text = json.dumps(conversation.messages, ensure_ascii=False, indent=2) + "\n"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError(f"{name!r} exists and is not overwritten.", "Choose another name.") from error
    except OSError as error:
        raise HalfbyteError(f"cannot write {name!r}: {error.strerror}.") from error
    note(f"{len(conversation.messages)} messages saved to {name}")


def _load(conversation: Conversation, name: str) -> None:
    path = _path("/load", name)
    try:
        messages = json.loads(read_text(path, "Choose a file that /save wrote."))
    except ValueError as error:
        raise _not_saved(name) from error
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise _not_saved(name)
    system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else None
    if [message["role"] for message in messages] != ["user", "assistant"] * (len(messages) // 2):
        raise _not_saved(name)
    conversation.begin(system, messages)
    note(f"{len(conversation.messages)} messages loaded from {name}")


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("role", "content"))


def _not_saved(name: str) -> UsageError:
    return UsageError(f"{name!r} is not a conversation.", "Choose a file that /save wrote.")


def _file(conversation: Conversation, name: str) -> None:
    path = _path("/file", name)
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"{name!r} is not a file.", "Choose a text file.")
    if os.path.isfile(path) and path.stat().st_size > LARGEST_FILE:
        raise UsageError(
            f"{name!r} has {size(path.stat().st_size)}; at most {size(LARGEST_FILE)} can be attached.",
            "Attach a part of it.",
        )
    text = read_text(path, "Choose a text file.")
    if "\0" in text:
        raise UsageError(f"{name!r} is not text: it has zero bytes.", "Choose a text file.")
    conversation.attach(path.name, text)
    note(f"{path.name} ({quantity(len(text.encode()), 'B')}) will be sent with the next message")


def _path(command: str, name: str) -> Path:
    if not name:
        raise UsageError(f"{command} needs the name of a file.")
    return Path(os.path.expanduser(name))  # Path's own fails for an unknown user


def _regenerate(conversation: Conversation, _: str) -> None:
    if conversation.turns and not conversation.arguments.get("temperature"):
        note("(at temperature 0 the answer stays the same; /set temperature 0.7 varies it)")
    conversation.regenerate()


def _model(conversation: Conversation, name: str) -> None:
    if name:
        conversation.switch(name)
    note(f"{conversation.model.name} on {conversation.model.device}")


def _set(conversation: Conversation, text: str) -> None:
    name, _, value = text.partition(" ")
    if not name:
        print_pairs(chat_settings.shown(conversation), file=sys.stderr)
        return
    if value:
        chat_settings.change(conversation, name, value.strip())
    note(f"{name}: {chat_settings.value_of(conversation, name)}")
    if value and name in DRAWING and not conversation.arguments.get("temperature"):
        note("(this has no effect at temperature 0)")


def _stats(conversation: Conversation, _: str) -> None:
    print_pairs(figures(conversation), file=sys.stderr)


def figures(conversation: Conversation) -> list[tuple[str, str]]:
    """What the last answer took, and what is left of the context."""
    used, context = conversation.context_used(), conversation.model.plan.context
    left = ("context", f"{used:,} of {context:,} tokens used, {max(0, context - used):,} free")
    last = conversation.last
    if last is None:
        return [left]
    speed = f"{last.tokens_per_s:,.1f} tokens/s" if last.tokens_per_s else "-"
    return [
        ("answer", f"{last.new_tokens:,} tokens"),
        ("speed", speed),
        ("first token", f"after {last.prefill_ms:,.0f} ms"),
        left,
    ]


def _help(_: Conversation, __: str) -> None:
    print_pairs([*(command.shown for command in COMMANDS), *_KEYS], file=sys.stderr)


def _quit(_: Conversation, __: str) -> None:
    raise Leave


COMMANDS = (
    Command(("system",), "[TEXT]", "set or show the system message", _system),
    Command(("file",), "FILE", "attach a text file to the next message", _file),
    Command(("regenerate", "retry"), "", "have the last message answered again", _regenerate),
    Command(("reset", "clear"), "", "forget the conversation, keep the system message", _reset),
    Command(("save",), "FILE", "write the conversation to a new JSON file", _save),
    Command(("load",), "FILE", "go on with a conversation that was saved", _load),
    Command(("model",), "[MODEL]", "go on with another model, or show which", _model, lambda: completion.models("")),
    Command(("set",), "[NAME [X]]", "show or change settings, such as temperature or stop", _set, chat_settings.names),
    Command(("stats",), "", "show speed, and what is left of the context", _stats),
    Command(("help", "?"), "", "show this", _help),
    Command(("quit", "bye", "exit"), "", "leave, as Ctrl-D does, and Ctrl-C twice", _quit),
)
