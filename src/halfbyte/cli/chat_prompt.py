"""The prompt of `chat` on a terminal: several lines, paste, history with search, and completion (prompt_toolkit)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding import KeyBindings, KeyPress, KeyPressEvent
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.utils import is_dumb_terminal

from halfbyte.cli.chat_commands import QUOTES, Command
from halfbyte.cli.history import chat_history
from halfbyte.cli.output import note

_NEW_LINE = (("escape", "enter"), ("c-j",))
"""Keys that begin a new line: Alt-Enter and Ctrl-J."""


def typed(
    commands: Mapping[str, Command], keys: str = "", *, input: Input | None = None, output: Output | None = None
) -> Iterator[str]:
    """What is entered at the prompt, until Ctrl-D or a second Ctrl-C.

    Args:
        commands: By name, to complete.
        keys: Those that were pressed before.
        input, output: The terminal; by default that of the process.
    """
    session: PromptSession[str] = PromptSession(
        "> ",
        multiline=True,
        prompt_continuation="  ",
        history=chat_history(),
        completer=_CommandCompleter(commands),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        enable_suspend=True,
        key_bindings=_keys(),
        input=input,
        output=output or _terminal(),
    )
    pressed: list[KeyPress] = []
    Vt100Parser(pressed.append).feed_and_flush(keys)
    store_typeahead(session.input, pressed)
    warned = False
    while True:
        try:
            text = session.prompt()
        except EOFError:
            return
        except KeyboardInterrupt:
            if warned:
                return
            note("(Ctrl-C once more leaves)")
            warned = True
        else:
            warned = False
            yield text


def _terminal() -> Output | None:
    """The terminal even if standard output is redirected; None lets a dumb one be treated as such."""
    return None if is_dumb_terminal() else create_output(always_prefer_tty=True)


def _keys() -> KeyBindings:
    keys = KeyBindings()
    writing = has_focus(DEFAULT_BUFFER)  # and not searching

    @keys.add("enter", filter=writing)
    def enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if _is_open(buffer.text):
            buffer.insert_text("\n")
        elif buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    for combination in _NEW_LINE:
        keys.add(*combination, filter=writing)(new_line)
    return keys


def _is_open(text: str) -> bool:
    """Whether a block in triple quotation marks has begun and not ended."""
    text = text.strip()
    return text.startswith(QUOTES) and (len(text) < 2 * len(QUOTES) or not text.endswith(QUOTES))


class _CommandCompleter(Completer):
    """Completes the name of a command, and the argument of those that take a file or one of some values."""

    def __init__(self, commands: Mapping[str, Command]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        name, space, argument = document.text_before_cursor.partition(" ")
        if not name.startswith("/"):
            return
        if not space:
            names = (f"/{each} " if command.argument else f"/{each}" for each, command in self._commands.items())
            yield from _beginning(name, names)
        elif command := self._commands.get(name[1:]):
            if command.argument == "FILE":
                yield from self._paths.get_completions(Document(argument), complete_event)
            else:
                yield from _beginning(argument, command.choices())


def _beginning(text: str, words: Iterable[str]) -> Iterator[Completion]:
    return (Completion(word, start_position=-len(text)) for word in sorted(words) if word.startswith(text))
