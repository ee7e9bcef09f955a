"""Measured quality, kept in a model's `halfbyte.json` with everything that the figures depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from halfbyte import atomic
from halfbyte.checkpoint.manifest import MANIFEST_NAME, read_manifest
from halfbyte.checkpoint.open import open_checkpoint
from halfbyte.models import build_spec
from halfbyte.options import RunOptions

_PACKAGE = Path(__file__).resolve().parent.parent

_SAMPLES = ("tokens", "total")
"""How many tokens or questions a figure rests on."""

_CONDITIONS = ("text_sha256", "questions_sha256", "base_sha256", "protocol", "window", "stride", "bos", "activations")
"""What must be equal for one figure to be a better measurement of the same thing as another."""


def name_of(what: str, kv_dtype: str) -> str:
    """The name under which a model's `quality` keeps figures: each number format of the KV cache has its own."""
    return what if kv_dtype == RunOptions.kv_dtype else f"{what}_{kv_dtype}_cache"


def why_not_stored(folder: Path, name: str, figures: Mapping[str, Any]) -> str:
    """Why figures may not be stored under a name of `quality` without being asked to; empty if they may.

    Figures never go into the installed package, and never replace others that were measured under other conditions or
    on more tokens or questions.

    Raises:
        InvalidModelError: `halfbyte.json` is damaged.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return f"{folder} was not written by Halfbyte"
    if folder.resolve().is_relative_to(_PACKAGE):
        return "the pocket model belongs to the installed package"
    known = read_manifest(path).quality.get(name)
    if not isinstance(known, Mapping):
        return ""
    changed = [key for key in _CONDITIONS if known.get(key) != figures.get(key)]
    if changed:
        return f"it would replace a {_plain(name)} measured with another {_plain(changed[0])} ({_about(known)})"
    if _samples(figures) < _samples(known):
        return f"it would replace a {_plain(name)} measured on more ({_about(known)})"
    return ""


def can_be_stored(folder: Path) -> bool:
    """Whether figures may be stored in a folder at all, when asked to."""
    return (folder / MANIFEST_NAME).is_file() and not folder.resolve().is_relative_to(_PACKAGE)


def store(folder: Path, name: str, figures: Mapping[str, Any]) -> None:
    """Write figures under a name of `quality`, in place of older ones.

    Raises:
        InvalidModelError: `halfbyte.json` is damaged.
        UsageError: Another process is writing it.
        OSError: It cannot be written.
    """
    path = folder / MANIFEST_NAME
    with atomic.claimed(path):
        manifest = read_manifest(path)
        atomic.write(path, replace(manifest, quality={**manifest.quality, name: dict(figures)}).to_json())


def about_text(text: str, name: str, *, kind: str = "text") -> dict[str, str]:
    """A text's name and SHA-256, for the record."""
    return {kind: name, f"{kind}_sha256": hashlib.sha256(text.encode()).hexdigest()}


def about_base(folder: Path) -> dict[str, Any]:
    """A base model's name, bits per weight and the SHA-256 of its weights, for the record."""
    return {
        "base": folder.resolve().name,
        "base_bits_per_weight": bits_per_weight(folder),
        "base_sha256": weights_sha256(folder),
    }


def weights_sha256(model: Path) -> str:
    """The SHA-256 of a model's weights: of the tensors' own in `halfbyte.json`, else of the weight files."""
    digest = hashlib.sha256()
    if (model / MANIFEST_NAME).is_file():
        for name, record in sorted(read_manifest(model / MANIFEST_NAME).tensors.items()):
            digest.update(f"{name} {record.sha256}\n".encode())
        return digest.hexdigest()
    for path in [model] if model.is_file() else sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def bits_per_weight(folder: Path) -> float:
    """Stored bits per weight, over the tensors that text generation needs."""
    checkpoint = open_checkpoint(folder)
    spec = build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes)
    stored = sum(checkpoint.format(name).nbytes(shape) for name, shape in spec.shapes.items())
    return round(8 * stored / spec.parameters, 4)


def _samples(figures: Mapping[str, Any]) -> float:
    return next((figures[key] for key in _SAMPLES if isinstance(figures.get(key), int | float)), 0)


def _about(figures: Mapping[str, Any]) -> str:
    """What a figure was measured on, in a few words."""
    unit = "tokens" if "tokens" in figures else "questions"
    where = figures.get("text", figures.get("questions", "an unknown text"))
    return f"{_samples(figures):,} {unit} of {where}"


def _plain(key: str) -> str:
    return key.removesuffix("_sha256").replace("_", " ")
