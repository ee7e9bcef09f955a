"""Which file of a model folder holds each stored tensor.

Weights lie in `model.safetensors`, or in shards with `model.safetensors.index.json`, or in one other *.safetensors
file. What the shards hold counts; where the index says something else, that is remembered for messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from halfbyte.checkpoint.checks import damaged, read_json, shown
from halfbyte.checkpoint.safetensors import SafetensorsFile
from halfbyte.errors import InvalidModelError, ModelNotFoundError, UnsupportedModelError

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Stored:
    """The stored tensors of a folder.

    Attributes:
        files: The file that holds each, by the tensor's name.
        promised: Tensors that the index names and no shard holds, with the shard it names.
        notes: Where index and shards disagree about tensors that are there.
    """

    files: Mapping[str, SafetensorsFile]
    promised: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def shard_names(index: Path) -> dict[str, str]:
    """Tensor → file name, from a `model.safetensors.index.json`.

    Raises:
        InvalidModelError: A name is not that of a *.safetensors file in the same folder.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        damaged(index, "it has no weight_map")
    for file in weight_map.values():
        if not _is_plain_name(file):
            damaged(index, f"it names the file {shown(file)}, which is not a *.safetensors file of the same folder")
    return weight_map


def _is_plain_name(name: Any) -> bool:
    if not isinstance(name, str) or not name.endswith(".safetensors") or "\0" in name or name.startswith("."):
        return False
    return PurePosixPath(name).name == name and PureWindowsPath(name).name == name


def open_weights(path: Path) -> Stored:
    """Open a folder's weights and check their headers.

    Raises:
        ModelNotFoundError: A file is not there.
        InvalidModelError: A file is damaged, or there are several without an index.
        UnsupportedModelError: The weights are there only as pickles.
    """
    if (path / WEIGHTS_NAME).is_file():
        return _tensors_of(path / WEIGHTS_NAME)
    if (path / INDEX_NAME).is_file():
        return _open_shards(path / INDEX_NAME)
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return _tensors_of(files[0])
    if files:
        raise InvalidModelError(
            f"{path} has {len(files)} safetensors files and no {INDEX_NAME} that says what is in them.",
            "Download the model again.",
        )
    pickles = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
    if pickles:
        raise UnsupportedModelError(
            f"{path} has its weights only as pickles ({pickles[0]}).",
            "Pickles can run code and are never read; use a safetensors checkpoint.",
        )
    raise ModelNotFoundError(f"{path} has no {WEIGHTS_NAME}.", "Download the model again.")


def _tensors_of(file: Path) -> Stored:
    opened = SafetensorsFile(file)
    return Stored(dict.fromkeys(opened.entries, opened))


def _open_shards(index: Path) -> Stored:
    """Every shard that the index names, and what each holds."""
    weight_map = shard_names(index)
    lacking = sorted(file for file in set(weight_map.values()) if not (index.parent / file).is_file())
    if lacking:
        raise ModelNotFoundError(
            f"{index.parent} lacks the shard {lacking[0]}" + (f" and {len(lacking) - 1} more." if lacking[1:] else "."),
            "Download the model again; what is already there is kept.",
        )
    shards = {file: SafetensorsFile(index.parent / file) for file in sorted(set(weight_map.values()))}
    files: dict[str, SafetensorsFile] = {}
    notes: list[str] = []
    for file, shard in shards.items():
        stray = [name for name in shard.entries if weight_map.get(name) != file]
        files |= {name: shard for name in shard.entries if name not in stray or name not in files}
        if stray:
            more = f" and {len(stray) - 1} more" if stray[1:] else ""
            notes.append(f"{file} holds the tensor {shown(stray[0])}{more}, which {index.name} does not place there.")
    promised = {name: file for name, file in weight_map.items() if name not in files}
    files |= {name: shards[file] for name, file in weight_map.items() if name in shards[file].entries}
    return Stored(files, promised, tuple(notes))
