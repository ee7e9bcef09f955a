"""Small JSON files in the user's cache folder: what was measured once need not be measured again.

A file that is damaged or of another schema is ignored, with a sentence in the log. Writing replaces it whole.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halfbyte.errors import HalfbyteError


def folder() -> Path:
    """Halfbyte's folder among the user's caches; it may not be there yet."""
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "halfbyte"


def load(path: Path, schema: int) -> dict[str, Any]:
    """What `store` wrote; empty if there is nothing, or nothing that can be used."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("%s is ignored: %s.", path, error)
        return {}
    if not isinstance(found, dict) or found.get("schema") != schema or not isinstance(found.get("values"), dict):
        _log.warning("%s is ignored: this version reads schema %s of it.", path, schema)
        return {}
    values: dict[str, Any] = found["values"]
    return values


def store(path: Path, schema: int, values: Mapping[str, Any]) -> None:
    """Keep values that JSON can hold: either all are there afterwards, or what was before.

    Raises:
        HalfbyteError: The file cannot be written.
    """
    import tempfile  # only who writes waits for it

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"schema": schema, "values": values}, file, indent=1, allow_nan=False)
            Path(scratch).replace(path)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise HalfbyteError(
            f"{path} cannot be written: {error.strerror or error}.", "Free some space, or set XDG_CACHE_HOME."
        ) from error


def store_if_possible(path: Path, schema: int, values: Mapping[str, Any]) -> None:
    """The same, where a file that cannot be written only means that the next start asks again."""
    try:
        store(path, schema, values)
    except HalfbyteError as problem:
        _log.info("%s", problem)


_log = logging.getLogger(__name__)
