"""Small JSON files in the user's cache folder, for what is measured once and used again.

A file that is damaged or has another schema is ignored, with a sentence in the log. Writing replaces the whole file.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halfbyte import atomic
from halfbyte.errors import HalfbyteError


def folder() -> Path:
    """Halfbyte's folder in the user's cache; it may not exist yet."""
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "halfbyte"


def load(path: Path, schema: int) -> dict[str, Any]:
    """The values that `store` wrote; empty if there are none, or none that can be used."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("%s is ignored: %s.", path, error)
        return {}
    if not isinstance(found, dict) or found.get("schema") != schema or not isinstance(found.get("values"), dict):
        _log.warning("%s is ignored: it does not have schema %s.", path, schema)
        return {}
    values: dict[str, Any] = found["values"]
    return values


def store(path: Path, schema: int, values: Mapping[str, Any]) -> None:
    """Write values that JSON can hold: the file is complete afterwards, or as it was.

    Raises:
        HalfbyteError: The file cannot be written.
    """
    text = json.dumps({"schema": schema, "values": values}, indent=1, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(path, text)
    except OSError as error:
        raise HalfbyteError(
            f"{path} cannot be written: {error.strerror or error}.", "Free some space, or set XDG_CACHE_HOME."
        ) from error


def store_if_possible(path: Path, schema: int, values: Mapping[str, Any]) -> None:
    """As `store`, but a file that cannot be written is only logged: the values are then found again next time."""
    try:
        store(path, schema, values)
    except HalfbyteError as problem:
        _log.info("%s", problem)


_log = logging.getLogger(__name__)
