"""Opening a model by its path: the one place that knows every kind of checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfbyte.checkpoint.adapter import is_adapter
from halfbyte.checkpoint.base import Checkpoint
from halfbyte.checkpoint.checks import read_json, shown
from halfbyte.checkpoint.folder import CONFIG_NAME, GENERATION_CONFIG_NAME, FolderCheckpoint
from halfbyte.checkpoint.manifest import MANIFEST_NAME, read_manifest
from halfbyte.checkpoint.shards import Stored, open_weights
from halfbyte.errors import InvalidModelError, ModelNotFoundError, UnsupportedModelError

if TYPE_CHECKING:
    from halfbyte.checkpoint.layouts.grouped import Scheme

SCHEMES = {"awq": "autoawq", "gptq": "gptq", "compressed-tensors": "compressed_tensors"}
"""Modules of `layouts` that read packed weights, by `quant_method`; imported when needed, as `gguf` is."""

_NAME_ONE = "Name a folder with config.json and *.safetensors, or a GGUF file."
_USE_PLAIN = "Use the model's checkpoint in bf16, f16 or f32."
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_PACKED = re.compile(r".+\.(qweight|weight_packed)")
OWN_FILES = {"quant_config.json": "awq", "quantize_config.json": "gptq"}
"""Files beside config.json in which AutoAWQ and AutoGPTQ kept their settings, and whose they are."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a model folder or a GGUF file and check all headers; no weights are read yet.

    A folder without *.safetensors may hold one GGUF model, in one file or split.

    Raises:
        ModelNotFoundError: There is no such folder or file, or it holds no model.
        InvalidModelError: A file is damaged or contradicts another.
        UnsupportedModelError: Weights only as pickles, or quantized in a way Halfbyte cannot read; or an adapter.
    """
    gguf = path if is_gguf(path) else _only_gguf(path)
    if gguf is not None:
        from halfbyte.checkpoint.gguf.model import open_gguf

        return open_gguf(gguf)
    if not path.is_dir():
        what = "is a file, not a model folder" if path.exists() else "does not exist"
        raise ModelNotFoundError(f"{path} {what}.", _NAME_ONE)
    if is_adapter(path):
        raise UnsupportedModelError(
            f"{path} is an adapter, not a model.", "Load the model that it was trained on, with adapters or merge."
        )
    if not (path / CONFIG_NAME).is_file():
        raise ModelNotFoundError(f"{path} has no {CONFIG_NAME}.", _NAME_ONE)
    config = read_json(path / CONFIG_NAME)
    generation = path / GENERATION_CONFIG_NAME
    generation_config = read_json(generation, may_be_empty=True) if generation.is_file() else {}
    manifest = read_manifest(path / MANIFEST_NAME) if (path / MANIFEST_NAME).is_file() else None
    stored = open_weights(path)
    settings = None if manifest else _quantization(path, config, stored)
    if settings is not None:
        from halfbyte.checkpoint.foreign import QuantizedCheckpoint

        return QuantizedCheckpoint(path, config, generation_config, stored, _scheme(path, settings))
    return FolderCheckpoint(path, config, generation_config, manifest, stored)


def is_gguf(path: Path) -> bool:
    """Whether this is a GGUF file, by its name or by its first bytes."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    from halfbyte.checkpoint.gguf.file import MAGIC

    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _only_gguf(path: Path) -> Path | None:
    """The (first) file of the one GGUF model that a folder without *.safetensors holds, if so."""
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf" and file.is_file())
    if len({_SPLIT.sub("", file.name) for file in files}) > 1:
        raise ModelNotFoundError(f"{path} has {len(files)} GGUF files.", f"Name one of them, such as {files[0]}.")
    return files[0] if files else None


def _quantization(path: Path, config: Mapping[str, Any], stored: Stored) -> Mapping[str, Any] | None:
    """The settings of the tool that packed a folder's weights; None if they are plain."""
    settings = config.get("quantization_config") or config.get("compression_config")
    if not settings:
        settings = config.get("quantization") or _own_settings(path, stored)
    if not settings:
        return None
    if not isinstance(settings, dict):
        raise InvalidModelError(f"{path}: quantization_config is {shown(settings)}.", "Download the model again.")
    if "quant_method" not in settings and {"bits", "group_size"} <= settings.keys() and "quantization" in config:
        bits = shown(settings["bits"])
        raise UnsupportedModelError(
            f"{path} is quantized by MLX to {bits} bits, which Halfbyte cannot read.", _USE_PLAIN
        )
    return settings


def _own_settings(path: Path, stored: Stored) -> Mapping[str, Any] | None:
    """The settings from a file beside config.json, where packed tensors need them."""
    packed = next((name for name in stored.files if _PACKED.fullmatch(name)), None)
    if packed is None:
        return None
    for name, method in OWN_FILES.items():
        if (path / name).is_file():
            found = read_json(path / name)
            renamed = {"w_bit": "bits", "q_group_size": "group_size"}
            return {"quant_method": method} | {renamed.get(key, key): value for key, value in found.items()}
    raise UnsupportedModelError(
        f"{path} holds packed weights ({packed}), and nothing in it says how to read them: config.json has no "
        "quantization_config.",
        _USE_PLAIN,
    )


def _scheme(path: Path, settings: Mapping[str, Any]) -> Scheme:
    """How packed weights are laid out.

    Raises:
        InvalidModelError: The settings contradict themselves.
        UnsupportedModelError: A method, layout or number of bits that Halfbyte cannot read.
    """
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in SCHEMES:
        raise UnsupportedModelError(
            f"{path} is quantized with {shown(method)}, which Halfbyte cannot read.",
            f"It reads {', '.join(SCHEMES)}; otherwise use the model's bf16, f16 or f32 checkpoint.",
        )
    scheme: Scheme = import_module(f"halfbyte.checkpoint.layouts.{SCHEMES[method]}").scheme(path, settings)
    return scheme
