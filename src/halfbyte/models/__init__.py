"""Model families: one file per `model_type`, found by its name.

A family's file offers `build(config, names) -> ModelSpec` and, where GGUF has an architecture for it, `GGUF`: what its
files and tensors are called there. `TIED = True` says that its embedding table is its output matrix by default.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

from halfbyte.errors import UnsupportedModelError
from halfbyte.models.config import Config
from halfbyte.models.decoder import tensor_shapes
from halfbyte.models.gguf import Architecture
from halfbyte.models.harmless import KEYS, PREFIXES
from halfbyte.models.spec import ModelSpec

_SHARED = {"catalog", "config", "decoder", "gguf", "harmless", "spec"}


@cache
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
        UnsupportedModelError: The `model_type`, or something this model asks for, is not supported; also a key that
            Halfbyte does not know and that may change what is computed.
        InvalidModelError: A value is missing, of the wrong type or out of range.
    """
    read = Config(config)
    kind = read.text("model_type")
    if kind not in supported():
        raise UnsupportedModelError(
            f"config.json: model_type {kind!r} is not supported.", f"Supported are {', '.join(supported())}."
        )
    read.expect("is_causal", True, "and Halfbyte runs models that see only what came before")
    spec: ModelSpec = _family(kind).build(read, names)
    read.refuse_unknown(KEYS, PREFIXES)
    stops = dict.fromkeys(
        (*Config(generation_config, "generation_config.json").tokens("eos_token_id"), *spec.stop_token_ids)
    )
    spec = replace(spec, stop_token_ids=tuple(stops))
    return replace(spec, shapes=tensor_shapes(spec))


def ties_embeddings(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` says, or its family means, that the output matrix is the embedding table."""
    kind = config.get("model_type")
    if kind not in supported():
        return False
    said = config.get("tie_word_embeddings")
    text = config.get("text_config")
    if isinstance(text, dict) and text.get("tie_word_embeddings") is not None:
        said = text["tie_word_embeddings"]
    return bool(getattr(_family(kind), "TIED", False) if said is None else said)


@cache
def gguf_architectures() -> dict[str, Architecture]:
    """The architectures of GGUF files that can be read, by name."""
    found = [gguf_architecture(kind) for kind in supported()]
    return {architecture.name: architecture for architecture in found if architecture is not None}


def gguf_architecture(model_type: str) -> Architecture | None:
    """How GGUF files store a family; None if they have no place for it."""
    return getattr(_family(model_type), "GGUF", None)


def _family(model_type: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{model_type}")
