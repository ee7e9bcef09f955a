"""Reading a text that comes in pieces as if it were whole.

A format's parser is a generator that reads with a `Reader`'s methods. Wherever the text so far does not decide what
comes, the generator waits. So what it finds cannot depend on where the text was cut.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from typing import TypeVar

from halfbyte.text.detokenize import overlap
from halfbyte.text.tools.events import Event, ReasoningPiece, TextPiece, ToolCallArguments, ToolCallEnd, ToolCallStart

T = TypeVar("T")
Steps = Generator[None, None, T]
Emit = Callable[[str], None]

_SPACE = " \t\r\n"
_SCALAR_ENDS = frozenset(',]}:)"' + _SPACE)
_OPENING, _CLOSING = frozenset("{["), frozenset("}]")


class Reader:
    """The text of one answer and the events found in it."""

    def __init__(self) -> None:
        self._held = ""
        self._ended = False
        self._events: list[Event] = []
        self._space = ""
        self._thought_space = ""
        self._calls = 0
        self._taken: list[str] = []

    # --- what a parser finds

    def text(self, text: str) -> None:
        """Text for the reader; white space is held back until more text shows that no call follows."""
        rest = text.rstrip(_SPACE)
        if rest:
            self._events.append(TextPiece(self._space + rest))
            self._space = ""
        self._space += text[len(rest) :]

    def reasoning(self, text: str) -> None:
        """What the model thinks; white space at its end is left out."""
        rest = text.rstrip(_SPACE)
        if rest:
            self._events.append(ReasoningPiece(self._thought_space + rest))
            self._thought_space = ""
        self._thought_space += text[len(rest) :]

    def start(self, name: str) -> None:
        """A call of the tool of this name; what follows are its arguments."""
        self._space = ""
        self._events.append(ToolCallStart(self._calls, name))
        self._calls += 1

    def arguments(self, piece: str) -> None:
        """A part of the arguments' JSON."""
        if piece:
            self._events.append(ToolCallArguments(self._calls - 1, piece))

    def end(self) -> None:
        """The call is complete."""
        self._events.append(ToolCallEnd(self._calls - 1))

    def remember(self) -> None:
        """What is taken from here on can be given back as text."""
        self._taken = []

    def give_back(self) -> None:
        """What was taken since `remember` was no call: it is text."""
        self.text("".join(self._taken))
        self._taken = []

    # --- reading

    def until(self, emit: Emit, *marks: str) -> Steps[str]:
        """Hands on text up to the first of some marks, takes and returns the mark; "" if the text ends before.

        The mark, and what is taken after it, can be given back.
        """
        while True:
            places = [(place, mark) for mark in marks if (place := self._held.find(mark)) >= 0]
            if places:
                place, found = min(places)
                emit(self._take(place))
                self.remember()
                self._take(len(found))
                return found
            unsafe = 0 if self._ended else max(overlap(self._held, mark) for mark in marks)
            emit(self._take(len(self._held) - unsafe))
            if self._ended:
                return ""
            yield

    def peek(self) -> Steps[str]:
        """The next character, "" at the end."""
        while not self._held and not self._ended:
            yield
        return self._held[:1]

    def take(self, text: str) -> Steps[bool]:
        """Whether this text comes next; takes it then."""
        while len(self._held) < len(text) and text.startswith(self._held) and not self._ended:
            yield
        found = self._held.startswith(text)
        if found:
            self._take(len(text))
        return found

    def run(self, goes_on: Callable[[str], bool], emit: Emit) -> Steps[None]:
        """Hands on the characters that come next as long as `goes_on` says so of each."""
        while True:
            size = next((i for i, character in enumerate(self._held) if not goes_on(character)), len(self._held))
            emit(self._take(size))
            if self._held or self._ended:
                return
            yield

    def some(self, count: int) -> Steps[str]:
        """The next characters, fewer at the end."""
        while len(self._held) < count and not self._ended:
            yield
        return self._take(count)

    def skip_space(self) -> Steps[None]:
        """Takes white space."""
        yield from self.run(_SPACE.__contains__, lambda space: None)

    def json_value(self, emit: Emit) -> Steps[bool]:
        """Hands on the one JSON value that comes next, as it stands; returns whether it was complete.

        Only what is needed to find the value's end is checked.
        """
        first = yield from self.peek()
        if first not in ("{", "[", '"'):
            taken: list[str] = []
            yield from self.run(lambda character: character not in _SCALAR_ENDS, taken.append)
            emit("".join(taken))
            return any(taken)
        depth, quoted, escaped = 0, False, False
        while True:
            for place, character in enumerate(self._held):
                if quoted:
                    quoted = escaped or character != '"'
                    escaped = character == "\\" and not escaped
                elif character == '"':
                    quoted = True
                else:
                    depth += (character in _OPENING) - (character in _CLOSING)
                if depth <= 0 and not quoted:
                    emit(self._take(place + 1))
                    return True
            emit(self._take(len(self._held)))
            if self._ended:
                return False
            yield

    def json_string(self) -> Steps[str | None]:
        """The JSON string that comes next; None if something else does."""
        if (yield from self.peek()) != '"':
            return None
        taken: list[str] = []
        yield from self.json_value(taken.append)
        try:
            value = json.loads("".join(taken), strict=False)
        except ValueError:
            return None
        return value if isinstance(value, str) else None

    def _take(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        if text:
            self._taken.append(text)
        return text


class ReaderParser:
    """A parser from a generator that reads with a `Reader`; what it leaves is text."""

    def __init__(self, steps: Callable[[Reader], Steps[None]]) -> None:
        self._reader = Reader()
        self._steps = steps(self._reader)
        self._done = False

    def push(self, text: str) -> list[Event]:
        """What has become certain with this text."""
        self._reader._held += text
        return self._events()

    def finish(self) -> list[Event]:
        """What was held back; the answer is over."""
        self._reader._ended = True
        events = self._events()
        space, self._reader._space = self._reader._space, ""
        return [*events, *([TextPiece(space)] if space and not self._reader._calls else [])]

    def _events(self) -> list[Event]:
        try:
            if not self._done:
                next(self._steps)
        except StopIteration:
            self._done = True
        if self._done:
            self._reader.text(self._reader._take(len(self._reader._held)))
        events, self._reader._events = self._reader._events, []
        return events


def ignore(text: str) -> None:
    """Where text that is read does not matter."""
