"""The model that a command names, opened to look at: configuration and headers of tensors, no weights."""

from __future__ import annotations

from pathlib import Path

from halfbyte.checkpoint.base import Checkpoint
from halfbyte.checkpoint.open import open_checkpoint
from halfbyte.models import build_spec
from halfbyte.models.spec import ModelSpec


def model_folder(model: str | Path | None, *, revision: str | None = None, offline: bool = False) -> Path:
    """The folder or GGUF file of a model; the pocket model's for None. Raises what `locate` raises."""
    from halfbyte.model import locate

    return locate(model, revision, offline)


def open_model(
    model: str | Path | None, *, revision: str | None = None, offline: bool = False
) -> tuple[Checkpoint, ModelSpec]:
    """A model's checkpoint and the spec from its `config.json`. Raises what reading them raises."""
    checkpoint = open_checkpoint(model_folder(model, revision=revision, offline=offline))
    return checkpoint, build_spec(checkpoint.config, checkpoint.generation_config, checkpoint.shapes.keys())
