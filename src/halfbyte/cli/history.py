"""Line editing for `chat`: the history and keys of `readline`, where Python has it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LINES_KEPT = 1000


@contextmanager
def line_editing() -> Iterator[None]:
    """Give `input()` editing keys and the lines of earlier conversations, and keep this one's.

    The file is readable by its user only. Where it cannot be read or written, there is no history.
    """
    try:
        import readline
    except ImportError:
        yield
        return
    path = history_path()
    with suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            readline.set_history_length(_LINES_KEPT)
            readline.write_history_file(path)
            path.chmod(0o600)


def history_path() -> Path:
    """Where lines typed in `chat` are kept: the user's folder for state on this system."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "halfbyte" / "chat_history"
