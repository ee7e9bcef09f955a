"""What is typed while nobody reads it, kept as the keys that were pressed for the prompt that comes."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ENTER, CTRL_D = "\r", "\x04"


@contextmanager
def keys_kept() -> Iterator[str]:
    """Have the terminal on standard input keep keys, for a program whose prompts ask for keys and not for lines.

    A terminal that collects lines makes a line break of Enter and nothing of Ctrl-D, which a prompt cannot undo once it
    has asked for keys. Keys that are kept are not shown: they would stand within what is being written.

    Yields:
        The keys of the lines that were collected before; what was begun of a line is left to the prompt.
    """
    if sys.platform == "win32" or not sys.stdin.isatty():  # Windows always keeps keys
        yield ""
        return
    import termios

    terminal = sys.stdin.fileno()
    before, changed = (termios.tcgetattr(terminal) for _ in range(2))
    changed[0] &= ~termios.ICRNL
    changed[3] &= ~(termios.ICANON | termios.ECHO)
    typed = _lines(terminal)
    termios.tcsetattr(terminal, termios.TCSANOW, changed)
    try:
        yield typed
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def _lines(terminal: int) -> str:
    """The keys of the whole lines that a terminal has collected, without waiting for more."""
    lines = b""
    while select.select([terminal], [], [], 0)[0]:
        if not (line := os.read(terminal, 4096)):
            return lines.decode(errors="replace").replace("\n", ENTER) + CTRL_D
        lines += line
    return lines.decode(errors="replace").replace("\n", ENTER)
