"""Measured quality, kept in a model's `halfbyte.json` beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from halfbyte.checkpoint.manifest import MANIFEST_NAME, read_manifest


def record(folder: Path, name: str, figures: Mapping[str, Any]) -> bool:
    """Write figures under a name of `quality`, in place of older ones; False where the folder is not Halfbyte's own.

    Raises:
        InvalidModelError: `halfbyte.json` is damaged.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return False
    manifest = read_manifest(path)
    temporary = path.with_suffix(".json.new")
    temporary.write_text(
        replace(manifest, quality={**manifest.quality, name: dict(figures)}).to_json(), encoding="utf-8"
    )
    temporary.replace(path)
    return True
