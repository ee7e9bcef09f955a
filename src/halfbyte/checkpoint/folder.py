"""A model folder as a source of weights.

A folder holds `config.json` and its weights in safetensors files (shards.py). With `halfbyte.json` its tensors may be
packed: the tensor `x.weight` is then stored as `x.weight.q`, `x.weight.scale` and so on, as its format's layout says.
"""

from __future__ import annotations

from abc import ABC
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.checkpoint.base import DENSE, Checkpoint
from halfbyte.checkpoint.checks import damaged, shown
from halfbyte.checkpoint.manifest import MANIFEST_NAME, Manifest
from halfbyte.checkpoint.safetensors import SafetensorsFile
from halfbyte.checkpoint.shards import INDEX_NAME, Stored
from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import Format, Weight, get_format
from halfbyte.models import ties_embeddings
from halfbyte.text.files import TokenizerFiles, read_tokenizer_files

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
SETTINGS = (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
"""Files of a model folder, besides weights, that Halfbyte reads: names, or patterns of names."""

_CHUNK_BYTES = 1 << 24


class Folder(Checkpoint, ABC):
    """What all model folders share: safetensors files, and configuration and tokenizer files beside them."""

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        generation_config: dict[str, Any],
        manifest: Manifest | None,
        stored: Stored,
    ) -> None:
        super().__init__(path, config, generation_config, manifest)
        self._stored, self._files = stored, stored.files
        self._head_note = ""
        pair = _stored_pair(config, stored.files) if manifest is None else None
        if pair is not None:
            self._untie(*pair)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how it is read; complete after `check`."""
        return (*super().notes, *self._stored.notes, *filter(None, [self._head_note]))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(self._files[part].entries[part].nbytes for part in self._files)

    def tokenizer_files(self) -> TokenizerFiles:
        """What lies in the folder for `text.Tokenizer`. Raises as `read_tokenizer_files` does."""
        return read_tokenizer_files(self.path)

    def settings(self) -> dict[str, bytes]:
        """Contents of the folder's configuration and tokenizer files, by name."""
        files = [file for pattern in SETTINGS for file in sorted(self.path.glob(pattern)) if file.is_file()]
        return {file.relative_to(self.path).as_posix(): file.read_bytes() for file in files}

    def _untie(self, embed: str, head: str) -> None:
        """Leave out an output matrix that is a copy of the embedding table; else it is used, as by transformers."""
        if _same_bytes(self._files, embed, head):
            self._files = {name: file for name, file in self._files.items() if name != head}
            return
        self._head_note = f"config.json says that {head} is {embed}, but the two differ: {head} is used."

    def _lacks(self, name: str) -> str:
        shard = self._stored.promised.get(name)
        return super()._lacks(name) + (f", which {INDEX_NAME} places in {shard}" if shard else "")


def _stored_pair(config: Mapping[str, Any], files: Mapping[str, SafetensorsFile]) -> tuple[str, str] | None:
    """Embedding table and output matrix of a folder that stores both, though its config.json says they are one."""
    if not ties_embeddings(config):
        return None
    embed = next((name for name in files if name.endswith("embed_tokens.weight")), None)
    head = next((name for name in files if name.endswith("lm_head.weight")), None)
    return (embed, head) if embed and head else None


def _same_bytes(files: Mapping[str, SafetensorsFile], one: str, other: str) -> bool:
    first, second = files[one].entries[one], files[other].entries[other]
    if (first.dtype, first.shape) != (second.dtype, second.shape) or not first.shape:
        return False
    table, head = files[one].tensor(one), files[other].tensor(other)
    step = max(1, _CHUNK_BYTES * len(table) // max(1, first.nbytes))
    same = all(np.array_equal(table[i : i + step], head[i : i + step]) for i in range(0, len(table), step))
    for name in (one, other):
        files[name].release(name)
    return same


@dataclass(frozen=True)
class _Tensor:
    """Where a logical tensor lies: its shape, dtype or format name, and the parts by suffix."""

    shape: tuple[int, ...]
    kind: str
    suffixes: tuple[str, ...]


class FolderCheckpoint(Folder):
    """An open model folder with plain weights, or Halfbyte's own.

    Attributes:
        path: The folder.
        config, generation_config: The JSON files' objects; the latter empty when there is none.
        manifest: What `halfbyte.json` says, if it is Halfbyte's own folder.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        generation_config: dict[str, Any],
        manifest: Manifest | None,
        stored: Stored,
    ) -> None:
        super().__init__(path, config, generation_config, manifest, stored)
        self._tensors = _plain(self._files) if manifest is None else _recorded(path, manifest, self._files)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Logical shape of every tensor, by logical name."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def format(self, name: str) -> Format:
        """The format a tensor is stored in. Raises as `Checkpoint.format` does."""
        kind = self._tensor(name).kind
        if kind in DENSE.values() or self.manifest is not None:
            return get_format(kind)
        raise UnsupportedModelError(
            f"{self.path}: tensor {shown(name)} is stored as {kind}, which Halfbyte cannot compute with.",
            "Use a checkpoint in bf16, f16 or f32, or Halfbyte's own format.",
        )

    def weight(self, name: str) -> Weight:
        """A stored tensor; its parts are read-only views of the memory map. Raises as `format` does."""
        form, tensor = self.format(name), self._tensor(name)
        parts = {suffix: self._files[name + suffix].tensor(name + suffix) for suffix in tensor.suffixes}
        return Weight(form, tensor.shape, parts)

    def release(self, name: str) -> None:
        """Give back the memory of a tensor's pages; they are read again when touched."""
        for suffix in self._tensor(name).suffixes:
            self._files[name + suffix].release(name + suffix)

    def _tensor(self, name: str) -> _Tensor:
        if name not in self._tensors:
            self._reject(self._lacks(name), [name])
        return self._tensors[name]


def _plain(files: Mapping[str, SafetensorsFile]) -> dict[str, _Tensor]:
    """Logical tensors of a folder without manifest: those that are stored."""
    tensors = {}
    for name, file in files.items():
        entry = file.entries[name]
        tensors[name] = _Tensor(entry.shape, DENSE.get(entry.dtype, entry.dtype), ("",))
    return tensors


def _recorded(path: Path, manifest: Manifest, files: Mapping[str, SafetensorsFile]) -> dict[str, _Tensor]:
    """Logical tensors of Halfbyte's own folder: those of the manifest, each part as its format's layout says."""
    where = path / MANIFEST_NAME
    tensors, parts = {}, Counter[str]()
    for name, record in manifest.tensors.items():
        layout = _layout(where, name, record.format, record.shape)
        for suffix, (dtype, shape) in layout.items():
            part = name + suffix
            if part not in files:
                damaged(where, f"it lists {shown(name)} as {record.format}, but {shown(part)} is not stored")
            entry = files[part].entries[part]
            if (entry.dtype, entry.shape) != (dtype, shape):
                have, need = f"{entry.dtype} {list(entry.shape)}", f"{dtype} {list(shape)}"
                damaged(where, f"{shown(part)} is stored as {have}; {record.format} needs {need}")
            parts[part] += 1
        tensors[name] = _Tensor(record.shape, record.format, tuple(layout))
    stray = next((part for part in files if parts[part] != 1), None)
    if stray is not None:
        damaged(where, f"the stored tensor {shown(stray)} belongs to {parts[stray]} of its tensors instead of one")
    return tensors


def _layout(where: Path, name: str, form: str, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    try:
        return get_format(form).layout(shape)
    except ValueError:
        damaged(where, f"{shown(name)} of shape {list(shape)} cannot be stored as {form}")
