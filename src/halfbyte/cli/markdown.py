"""Answers as Markdown, drawn on a terminal while they come.

A block is finished once the next one has begun, and is then printed for good. Only the last one is drawn again as it
grows, as much of its end as the screen holds.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import ClassVar

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.segment import Segment
from rich.syntax import Syntax
from rich.theme import Theme

_BETWEEN_S = 0.05
"""The least time between two drawings of the last block."""
_CODE_THEME = "ansi_dark"
_THEME = Theme({"markdown.code": "cyan"})
"""The terminal's own colours, without a background, for dark and light ones."""

_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
"""What looks like HTML is shown as it is: in answers it is mostly a placeholder, as in `cp <from> <to>`."""


@contextmanager
def markdown(console: Console | None = None) -> Iterator[Callable[[str], None]]:
    """What to call with each piece of an answer; it is drawn on standard output unless a console is given."""
    console = console or Console()
    with console.use_theme(_THEME), Live(console=console, auto_refresh=False, transient=True) as live:
        answer = _Answer(live)
        try:
            yield answer.add
        finally:
            with _whole():
                answer.finish()


@contextmanager
def _whole() -> Iterator[None]:
    """Have Ctrl-C wait: half a drawing would not be erased."""
    pressed = False

    def wait(*_: object) -> None:
        nonlocal pressed
        pressed = True

    before = signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


class _Answer:
    """An answer of which all blocks but the last are printed."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._text = ""
        self._printed = False
        self._drawn_at = 0.0

    def add(self, piece: str) -> None:
        """Take the next piece, and draw what has come if that was not just done."""
        self._text += piece.replace("\r", "")
        with _whole():
            if "\n" in piece:
                self._print_finished()
            if time.monotonic() - self._drawn_at >= _BETWEEN_S:
                self._live.update(_Block(self._text, below=self._printed, fitting=True), refresh=True)
                self._drawn_at = time.monotonic()

    def finish(self) -> None:
        """Print the last block for good."""
        self._live.update("", refresh=True)
        self._print(self._text)

    def _print_finished(self) -> None:
        """Print all blocks but the last. A line that is not complete may yet belong to the block before it."""
        lines = self._text.split("\n")
        tokens = _PARSER.parse("\n".join(lines[:-1]))
        starts = [token.map[0] for token in tokens if token.level == 0 and token.map]
        if len(starts) > 1:
            for start, end in pairwise(starts):
                self._print("\n".join(lines[start:end]))
            self._text = "\n".join(lines[starts[-1] :])

    def _print(self, text: str) -> None:
        if text.strip():
            self._live.console.print(_Block(text, below=self._printed))
            self._printed = True


class _Block:
    """Markdown without empty lines around it, but for one before if there is a block above.

    Args:
        fitting: Show no more of the end than the screen holds, with an empty line below for the `^C` of a terminal,
            which would else wrap at the right edge.
    """

    def __init__(self, text: str, *, below: bool, fitting: bool = False) -> None:
        self._markdown = _Markdown(text)
        self._below = below
        self._fitting = fitting

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._markdown, options, pad=False)
        written = [i for i, line in enumerate(lines) if any(segment.text.strip() for segment in line)]
        if not written:
            return
        lines = [*([[]] if self._below else []), *lines[written[0] : written[-1] + 1]]
        for line in lines[1 - console.height :] if self._fitting else lines:
            yield from line
            yield Segment.line()
        if self._fitting:
            yield Segment.line()


class _Heading(Heading):
    """At the left, without a box."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text


class _Code(CodeBlock):
    """Set in, without a background."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        yield Syntax(code, self.lexer_name, theme=self.theme, word_wrap=True, padding=(0, 2))


class _Markdown(Markdown):
    """Markdown whose lines stay lines, as models mean them."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements, "heading_open": _Heading, "fence": _Code, "code_block": _Code,
    }  # fmt: skip

    def __init__(self, text: str) -> None:
        super().__init__("", code_theme=_CODE_THEME)
        self.parsed = _PARSER.parse(text)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"
