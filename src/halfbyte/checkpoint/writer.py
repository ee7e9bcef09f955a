"""Writing Halfbyte's own model folder: streamed tensor by tensor, complete or not there at all.

Formats say beforehand how large each part will be, so headers are written first and each part goes to its
place as it comes: memory holds one tensor. Everything is made in a temporary folder beside the target,
which takes the target's name when it is complete and on the disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from halfbyte.atomic import new_path, sync
from halfbyte.checkpoint.base import Progress
from halfbyte.checkpoint.manifest import MANIFEST_NAME, Manifest, TensorRecord
from halfbyte.checkpoint.shards import INDEX_NAME, WEIGHTS_NAME
from halfbyte.errors import UsageError
from halfbyte.formats import Format, Parts

MAX_SHARD_BYTES = 4_000_000_000
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}


@dataclass(frozen=True)
class Outgoing:
    """A tensor to write: what `halfbyte.json` will say about it, less its SHA-256."""

    name: str
    shape: tuple[int, ...]
    format: Format
    method: str


@dataclass(frozen=True)
class _Part:
    """A stored array: its place in its shard, counted from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def write_folder(
    target: Path,
    tensors: Sequence[Outgoing],
    parts: Callable[[str], Parts],
    *,
    settings: Mapping[str, bytes],
    origin: Path,
    source: str,
    quality: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> Manifest:
    """Write a model folder and return its manifest.

    Args:
        target: The folder to make. It may exist if it is empty, or is Halfbyte's own and `overwrite` is set.
        tensors: What to write, in order.
        parts: Gives a tensor's parts by its name; asked once for each, in order.
        settings: Contents of configuration and tokenizer files, by name.
        origin: Where the model comes from: what must not be replaced.
        source: What the manifest says the model was made from.
        quality: Measured figures for the manifest.
        max_shard_bytes: The most bytes of tensors in one file, unless a tensor is larger by itself.

    Raises:
        UsageError: The target is taken.
        HalfbyteError: The disk is full or the folder cannot be written; nothing is left of the attempt.
    """
    total = sum(tensor.format.nbytes(tensor.shape) for tensor in tensors)
    check_target(target, origin, overwrite)
    with new_path(target, total, overwrite=True) as folder:
        folder.mkdir()
        records = _write_weights(folder, _shards(tensors, max_shard_bytes), parts, total, progress)
        weights = sum(int(np.prod(tensor.shape)) for tensor in tensors)
        manifest = Manifest(records, round(8 * total / max(weights, 1), 4), source, quality or {})
        for name, data in settings.items():
            (folder / name).parent.mkdir(exist_ok=True)
            _write(folder / name, data)
        _write(folder / MANIFEST_NAME, manifest.to_json().encode())
    return manifest


def check_target(target: Path, origin: Path, overwrite: bool) -> None:
    """Refuse a target that may not be written: the same check as `write_folder`'s, for use before long work.

    Raises:
        UsageError: The target is taken.
    """
    if target.is_dir() and target.resolve() in (origin.resolve(), *origin.resolve().parents):
        raise UsageError(f"{target} is where the source model lies.", "Choose another folder.")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise UsageError(f"{target} already exists.", "Choose another name or pass overwrite=True.")
    if not (target / MANIFEST_NAME).is_file():
        raise UsageError(f"{target} is not a model folder written by Halfbyte.", "Choose another name.")


def _shards(tensors: Sequence[Outgoing], max_bytes: int) -> list[list[Outgoing]]:
    """The tensors in order, cut so that no shard is larger than it must be."""
    shards: list[list[Outgoing]] = [[]]
    held = 0
    for tensor in tensors:
        nbytes = tensor.format.nbytes(tensor.shape)
        if shards[-1] and held + nbytes > max_bytes:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        held += nbytes
    return shards


def _write_weights(
    folder: Path, shards: list[list[Outgoing]], parts: Callable[[str], Parts], total: int, progress: Progress | None
) -> dict[str, TensorRecord]:
    """Write every shard, and the index where there are several."""
    records: dict[str, TensorRecord] = {}
    weight_map: dict[str, str] = {}
    done = 0
    for number, shard in enumerate(shards, 1):
        file_name = WEIGHTS_NAME if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        places = _places(shard)
        with (folder / file_name).open("xb") as file:
            body = _write_header(file, places)
            for tensor in shard:
                records[tensor.name] = _write_tensor(file, body, tensor, parts(tensor.name), places)
                done += tensor.format.nbytes(tensor.shape)
                if progress is not None:
                    progress(tensor.name, done, total)
            sync(file)
        weight_map |= dict.fromkeys(places, file_name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write(folder / INDEX_NAME, json.dumps(index, indent=1).encode())
    return records


def _places(shard: Sequence[Outgoing]) -> dict[str, _Part]:
    """Where each part of a shard goes: wider elements first, so that all lie at multiples of their width."""
    layouts = [(t.name + suffix, *part) for t in shard for suffix, part in t.format.layout(t.shape).items()]
    places: dict[str, _Part] = {}
    position = 0
    for name, dtype, shape in sorted(layouts, key=lambda part: -_ITEM_BYTES[part[1]]):
        stop = position + int(np.prod(shape)) * _ITEM_BYTES[dtype]
        places[name] = _Part(name, dtype, shape, position, stop)
        position = stop
    return places


def _write_header(file: BinaryIO, places: Mapping[str, _Part]) -> int:
    """Write the safetensors header; returns where the tensors' bytes begin, a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": {"format": "halfbyte"}}
    for part in places.values():
        header[part.name] = {"dtype": part.dtype, "shape": part.shape, "data_offsets": [part.start, part.stop]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    return 8 + len(text)


def _write_tensor(
    file: BinaryIO, body: int, tensor: Outgoing, parts: Parts, places: Mapping[str, _Part]
) -> TensorRecord:
    """Write a tensor's parts to their places; returns its record."""
    digest = hashlib.sha256()
    for suffix in tensor.format.layout(tensor.shape):
        place, part = places[tensor.name + suffix], parts[suffix]
        if part.shape != place.shape or part.nbytes != place.stop - place.start:
            raise ValueError(f"{place.name} has the shape {part.shape} instead of {place.shape}")
        data = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
        digest.update(data)
        file.seek(body + place.start)
        file.write(data)
    return TensorRecord(tensor.format.name, tensor.method, tensor.shape, digest.hexdigest())


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        sync(file)
