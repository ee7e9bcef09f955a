"""What was found out about this machine's GPUs, in the user's cache folder: JSON files that may vanish at any time."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any


def cache_file(name: str) -> Path:
    """Where a file of this name lies."""
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "halfbyte" / name


def read(path: Path) -> dict[str, Any]:
    """What was written; nothing where there is no file or another program's."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def write(path: Path, known: dict[str, Any]) -> None:
    """Remember; a folder that cannot be written only means that the next start asks again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps(known, indent=1), encoding="utf-8")
        scratch.replace(path)
    except OSError as problem:
        logging.getLogger(__name__).info("%s was not kept: %s", path.name, problem)
