"""Markdown on a terminal, while it comes: printed once, whatever the pieces; and what it looks like."""

from __future__ import annotations

import io
import re
import signal
from collections.abc import Iterable
from typing import Any

import pytest
from rich.console import Console

from halfbyte.cli import markdown as module
from halfbyte.cli.markdown import markdown

ANSWER = """\
# Files

Use `find` **here**:
one line each.

1. First
2. Second <name>

   more of it

```sh
find . -size +100M

ls
```

| a | b |
|---|---|
| x | y |
"""
SHOWN = """\
Files

Use find here:
one line each.

 1 First
 2 Second <name>
   more of it

  find . -size +100M

  ls

 a  b
 ────
 x  y
"""


@pytest.fixture(autouse=True)
def every_piece_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BETWEEN_S", 0)


def terminal(height: int = 40) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=40, height=height, color_system=None, legacy_windows=False
    )


def printed(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def finally_shown(console: Console, pieces: Iterable[str]) -> str:
    """What a terminal shows at the end."""
    with markdown(console) as write:
        for piece in pieces:
            write(piece)
    return on_screen(printed(console)).rstrip() + "\n"


def on_screen(text: str) -> str:
    """What is seen of a text with the few control sequences that drawing again needs."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[\??\d*[A-Za-z]|\r|\n)", text):
        if part == "\n":
            row += 1
            lines.extend([""] * (row + 1 - len(lines)))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part == "\x1b[1A":
            row -= 1
        elif not part.startswith(("\x1b", "\r")):
            lines[row] += part
    return "\n".join(line.rstrip() for line in lines)


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("height", [4, 40])
def test_an_answer_is_shown_once_whatever_its_pieces(size: int, height: int) -> None:
    pieces = [ANSWER[i : i + size] for i in range(0, len(ANSWER), size)]
    assert finally_shown(terminal(height), pieces) == SHOWN


def test_lines_may_end_as_on_windows() -> None:
    assert finally_shown(terminal(), [ANSWER.replace("\n", "\r\n")]) == SHOWN


def test_only_the_last_block_is_drawn_again() -> None:
    console = terminal()
    with markdown(console) as write:
        write("first\n\nsecond\n")
        before = len(printed(console))
        write("more")
        again = printed(console)[before:]
    assert "second" in again
    assert "first" not in again


def test_a_block_larger_than_the_screen_shows_its_end_and_then_all() -> None:
    console = terminal(height=5)
    lines = "".join(f"line {number}\n" for number in range(20))
    with markdown(console) as write:
        write(f"```\n{lines}")
        drawn = printed(console)
    assert re.findall(r"line (\d+)", drawn) == ["16", "17", "18", "19"]
    assert re.findall(r"line (\d+)", on_screen(printed(console))) == [str(number) for number in range(20)]


def test_what_came_before_ctrl_c_stays() -> None:
    console = terminal()
    answering = markdown(console)
    answering.__enter__()("so **far**")
    answering.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert on_screen(printed(console)).rstrip() == "so far"


def test_ctrl_c_waits_for_the_end_of_a_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    console = terminal()
    render = console.render_lines

    def interrupted(*arguments: Any, **options: Any) -> Any:
        lines = render(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return lines

    monkeypatch.setattr(console, "render_lines", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finally_shown(console, ["so\n", "far"])
    assert on_screen(printed(console)).rstrip() == "so"


def test_an_answer_without_text_shows_nothing() -> None:
    assert finally_shown(terminal(), []) == "\n"
