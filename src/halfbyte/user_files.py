"""Files of text that a user names."""

from __future__ import annotations

from pathlib import Path

from halfbyte.errors import UsageError


def read_text(path: Path, hint: str) -> str:
    """The text of a file.

    Args:
        hint: What to do where it cannot be read.

    Raises:
        UsageError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read {str(path)!r}: {reason}.", hint) from error
