"""Model families: one file a `model_type`, found by its name; each offers `build(config, names) -> ModelSpec`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from halfbyte.errors import UnsupportedModelError
from halfbyte.models.config import Config
from halfbyte.models.decoder import tensor_shapes
from halfbyte.models.spec import ModelSpec

_SHARED = {"catalog", "config", "decoder", "spec"}


def supported() -> tuple[str, ...]:
    """Every `model_type` that can be run."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _SHARED))


def build_spec(config: Mapping[str, Any], generation_config: Mapping[str, Any], names: Collection[str]) -> ModelSpec:
    """What a checkpoint's files say about the model.

    Args:
        config: Contents of `config.json`.
        generation_config: Contents of `generation_config.json`, empty if there is none; its stop tokens count too.
        names: Names of the checkpoint's tensors, where they tell variants of a family apart.

    Raises:
        UnsupportedModelError: The `model_type`, or something this model asks for, is not supported.
        InvalidModelError: A value is missing, of the wrong type or out of range.
    """
    read = Config(config)
    kind = read.text("model_type")
    if kind not in supported():
        raise UnsupportedModelError(
            f"config.json: model_type {kind!r} is not supported.", f"Supported are {', '.join(supported())}."
        )
    spec: ModelSpec = importlib.import_module(f"{__name__}.{kind}").build(read, names)
    stops = dict.fromkeys(
        (*Config(generation_config, "generation_config.json").tokens("eos_token_id"), *spec.stop_token_ids)
    )
    spec = replace(spec, stop_token_ids=tuple(stops))
    return replace(spec, shapes=tensor_shapes(spec))
