"""What was typed in `chat` in earlier sessions: a file that only its user can read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from itertools import dropwhile
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from halfbyte import atomic

KEPT_LINES = 10_000
"""Lines of the file that are kept from earlier sessions; an entry has two more than its text."""


def chat_history() -> History:
    """The history over sessions; where its file cannot be written, that of this session."""
    path = history_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    with suppress(OSError):  # it stays as long as it is
        _cut(path.resolve())
    return _PrivateHistory(path)


def _cut(path: Path) -> None:
    """Leave the newest lines of a history, without the rest of an entry whose beginning goes."""
    with path.open("rb") as file:
        lines = file.readlines()
    if len(lines) > KEPT_LINES:
        kept = dropwhile(lambda line: line.startswith(b"+"), lines[-KEPT_LINES:])
        atomic.write(path, b"".join(kept))


class _PrivateHistory(FileHistory):
    """Entries as prompt_toolkit writes them, newest first, and before them the bare lines that readline wrote."""

    def load_history_strings(self) -> Iterable[str]:
        yield from super().load_history_strings()
        with open(self.filename, encoding="utf-8", errors="replace") as file:
            lines = [line.rstrip("\n") for line in file]
        yield from reversed([line for line in lines if line and not line.startswith(("+", "#"))])

    def store_string(self, string: str) -> None:
        with suppress(OSError):  # a full disk does not end the conversation
            super().store_string(string)


def history_path() -> Path:
    """Where it is kept: the user's folder for state on this system."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "halfbyte" / "chat_history"
