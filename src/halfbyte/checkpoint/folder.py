"""A model folder as a source of weights: configuration, tensors by logical name, checks before anything is read.

A folder holds `config.json` and either `model.safetensors`, or shards with `model.safetensors.index.json`,
or one other *.safetensors file. With `halfbyte.json` its tensors may be packed: the tensor `x.weight` is
then stored as `x.weight.q`, `x.weight.scale` and so on, as its format's layout says. GGUF files and what other
tools quantized are checkpoints too: gguf_model.py, foreign.py.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from halfbyte.checkpoint.checks import damaged, read_json, shown
from halfbyte.checkpoint.manifest import MANIFEST_NAME, Manifest, read_manifest
from halfbyte.checkpoint.safetensors import SafetensorsFile
from halfbyte.errors import InvalidModelError, ModelNotFoundError, UnsupportedModelError
from halfbyte.formats import Format, Weight, get_format
from halfbyte.models.spec import ModelSpec
from halfbyte.text.files import TokenizerFiles, read_tokenizer_files

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
SETTINGS = (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files of a model folder, besides weights, that Halfbyte reads."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

Progress = Callable[[str, int, int], None]
"""Called as progress(tensor name, bytes done, bytes in all)."""

_NAME_ONE = "Name a folder with config.json and *.safetensors, or a GGUF file."
_DENSE = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_HASH_CHUNK = 1 << 24


@dataclass(frozen=True)
class _Stored:
    """Where a logical tensor lies: its shape, dtype or format name, and the parts by suffix."""

    shape: tuple[int, ...]
    kind: str
    suffixes: tuple[str, ...]


class Checkpoint:
    """An open model folder; a `WeightSource`.

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
        files: Mapping[str, SafetensorsFile],
    ) -> None:
        self.path, self.config, self.generation_config, self.manifest = path, config, generation_config, manifest
        self._files = files
        self._tensors = _plain(files) if manifest is None else _recorded(path, manifest, files)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how it is read."""
        return ()

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Logical shape of every tensor, by logical name."""
        return {name: stored.shape for name, stored in self._tensors.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(self._files[part].entries[part].nbytes for part in self._files)

    def format(self, name: str) -> Format:
        """The format a tensor is stored in.

        Raises:
            InvalidModelError: There is no such tensor.
            UnsupportedModelError: It is stored in a way Halfbyte cannot compute with.
        """
        kind = self._stored(name).kind
        if kind in _DENSE.values() or self.manifest is not None:
            return get_format(kind)
        raise UnsupportedModelError(
            f"{self.path}: tensor {shown(name)} is stored as {kind}, which Halfbyte cannot compute with.",
            "Use a checkpoint in bf16, f16 or f32, or Halfbyte's own format.",
        )

    def weight(self, name: str) -> Weight:
        """A stored tensor; its parts are read-only views of the memory map. Raises as `format` does."""
        form, stored = self.format(name), self._stored(name)
        parts = {suffix: self._files[name + suffix].tensor(name + suffix) for suffix in stored.suffixes}
        return Weight(form, stored.shape, parts)

    def release(self, name: str) -> None:
        """Give back the memory of a tensor's pages; they are read again when touched."""
        for suffix in self._stored(name).suffixes:
            self._files[name + suffix].release(name + suffix)

    def tokenizer_files(self) -> TokenizerFiles:
        """What lies in the folder for `text.Tokenizer`. Raises as `read_tokenizer_files` does."""
        return read_tokenizer_files(self.path)

    def settings(self) -> dict[str, bytes]:
        """Contents of the folder's configuration and tokenizer files, by name."""
        return {name: (self.path / name).read_bytes() for name in SETTINGS if (self.path / name).is_file()}

    def check(self, spec: ModelSpec) -> None:
        """Compare names, shapes and formats with what the model needs.

        Raises:
            InvalidModelError: A tensor is missing, superfluous or has another shape; the first one is named.
            UnsupportedModelError: A tensor is stored in a way Halfbyte cannot compute with.
        """
        shapes = self.shapes
        ignored = re.compile("|".join(f"(?:{pattern})" for pattern in spec.ignored) or r"(?!)")
        missing = [name for name in spec.shapes if name not in shapes]
        wrong = [name for name, shape in spec.shapes.items() if shapes.get(name, shape) != shape]
        extra = [name for name in shapes if name not in spec.shapes and not ignored.fullmatch(name)]
        if missing:
            self._reject(f"it lacks the tensor {shown(missing[0])}", missing)
        if wrong:
            have, need = list(shapes[wrong[0]]), list(spec.shapes[wrong[0]])
            self._reject(f"the tensor {shown(wrong[0])} has the shape {have}; config.json asks for {need}", wrong)
        if extra:
            self._reject(f"it holds the tensor {shown(extra[0])}, which a {spec.model_type} model does not have", extra)
        for name in spec.shapes:
            self.format(name)

    def verify(self, progress: Progress | None = None) -> None:
        """Compute the SHA-256 of every tensor and compare it with the manifest; nothing to do without one.

        Raises:
            InvalidModelError: The bytes of a tensor are not those that were written.
        """
        records = {} if self.manifest is None else self.manifest.tensors
        done, total = 0, self.nbytes
        for name, record in records.items():
            weight = self.weight(name)
            if _sha256(weight) != record.sha256:
                damaged(self.path, f"the bytes of the tensor {shown(name)} are not those its SHA-256 stands for")
            self.release(name)
            done += weight.nbytes
            if progress is not None:
                progress(name, done, total)

    def _stored(self, name: str) -> _Stored:
        if name not in self._tensors:
            self._reject(f"it lacks the tensor {shown(name)}", [name])
        return self._tensors[name]

    def _reject(self, what: str, names: list[str]) -> None:
        others = f" (and {len(names) - 1} more like it)" if len(names) > 1 else ""
        raise InvalidModelError(
            f"{self.path} does not fit its config.json: {what}{others}.",
            "Weights and config.json must come from the same model; download it again.",
        )


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a model folder or a GGUF file and check all headers; no weights are read yet.

    A folder without *.safetensors may hold one GGUF model, in one file or split.

    Raises:
        ModelNotFoundError: There is no such folder or file, or it holds no model.
        InvalidModelError: A file is damaged or contradicts another.
        UnsupportedModelError: Weights only as pickles, or quantized in a way Halfbyte cannot read.
    """
    gguf = path if is_gguf(path) else _only_gguf(path)
    if gguf is not None:
        from halfbyte.checkpoint.gguf.model import open_gguf

        return open_gguf(gguf)
    if not path.is_dir():
        what = "is a file, not a model folder" if path.exists() else "does not exist"
        raise ModelNotFoundError(f"{path} {what}.", _NAME_ONE)
    if not (path / CONFIG_NAME).is_file():
        raise ModelNotFoundError(f"{path} has no {CONFIG_NAME}.", _NAME_ONE)
    config = read_json(path / CONFIG_NAME)
    generation = path / GENERATION_CONFIG_NAME
    generation_config = read_json(generation) if generation.is_file() else {}
    manifest = read_manifest(path / MANIFEST_NAME) if (path / MANIFEST_NAME).is_file() else None
    files = _open_weights(path)
    if manifest is None and config.get("quantization_config"):
        from halfbyte.checkpoint.foreign import open_foreign

        return open_foreign(path, config, generation_config, files)
    return Checkpoint(path, config, generation_config, manifest, files)


def is_gguf(path: Path) -> bool:
    """Whether this is a file with the name of a GGUF file."""
    return path.suffix.lower() == ".gguf" and path.is_file()


def _only_gguf(path: Path) -> Path | None:
    """The (first) file of the one GGUF model that a folder without *.safetensors holds, if so."""
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    files = sorted(file for file in path.iterdir() if is_gguf(file))
    if len({_SPLIT.sub("", file.name) for file in files}) > 1:
        raise ModelNotFoundError(f"{path} has {len(files)} GGUF files.", f"Name one of them, such as {files[0]}.")
    return files[0] if files else None


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


def _open_weights(path: Path) -> dict[str, SafetensorsFile]:
    """The file that holds each stored tensor."""
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


def _tensors_of(file: Path) -> dict[str, SafetensorsFile]:
    opened = SafetensorsFile(file)
    return dict.fromkeys(opened.entries, opened)


def _open_shards(index: Path) -> dict[str, SafetensorsFile]:
    """The shard of each tensor, as the index says and the shards confirm."""
    weight_map = shard_names(index)
    lacking = sorted(file for file in set(weight_map.values()) if not (index.parent / file).is_file())
    if lacking:
        raise ModelNotFoundError(
            f"{index.parent} lacks the shard {lacking[0]}" + (f" and {len(lacking) - 1} more." if lacking[1:] else "."),
            "Download the model again; what is there already is kept.",
        )
    shards = {file: SafetensorsFile(index.parent / file) for file in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
        if name not in shards[file].entries:
            damaged(index, f"it places the tensor {shown(name)} in {file}, which does not hold it")
    for file, shard in shards.items():
        stray = next((name for name in shard.entries if weight_map.get(name) != file), None)
        if stray is not None:
            damaged(index, f"it does not place the tensor {shown(stray)} in {file}, which holds it")
    return {name: shards[file] for name, file in weight_map.items()}


def _plain(files: Mapping[str, SafetensorsFile]) -> dict[str, _Stored]:
    """Logical tensors of a folder without manifest: those that are stored."""
    tensors = {}
    for name, file in files.items():
        entry = file.entries[name]
        tensors[name] = _Stored(entry.shape, _DENSE.get(entry.dtype, entry.dtype), ("",))
    return tensors


def _recorded(path: Path, manifest: Manifest, files: Mapping[str, SafetensorsFile]) -> dict[str, _Stored]:
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
        tensors[name] = _Stored(record.shape, record.format, tuple(layout))
    stray = next((part for part in files if parts[part] != 1), None)
    if stray is not None:
        damaged(where, f"the stored tensor {shown(stray)} belongs to {parts[stray]} of its tensors instead of one")
    return tensors


def _layout(where: Path, name: str, form: str, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    try:
        return get_format(form).layout(shape)
    except ValueError:
        damaged(where, f"{shown(name)} of shape {list(shape)} cannot be stored as {form}")


def _sha256(weight: Weight) -> str:
    """SHA-256 of a tensor's parts, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for part in weight.parts.values():
        flat = part.reshape(-1)
        step = max(1, _HASH_CHUNK // max(1, part.itemsize))
        for start in range(0, math.prod(part.shape), step):
            digest.update(flat[start : start + step].tobytes())
    return digest.hexdigest()
