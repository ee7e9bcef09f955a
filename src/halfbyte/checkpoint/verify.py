"""Whether a model's bytes are those that were written, by the checksums that lie beside them.

Halfbyte's own folder tells the SHA-256 of each tensor. The cache of the Hugging Face hub calls each file by its
checksum: the SHA-256 of a large file; of a small one what Git calls it, the SHA-1 of `blob`, its size and its bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from halfbyte.checkpoint.adapter import AdapterFolder, is_adapter
from halfbyte.checkpoint.base import Progress
from halfbyte.checkpoint.gguf.choice import gguf_models
from halfbyte.checkpoint.open import open_checkpoint
from halfbyte.errors import InvalidModelError

_CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class Verified:
    """What was found right: tensors and files that have checksums, and their bytes. All 0 where nothing has one."""

    tensors: int
    files: int
    nbytes: int


def verify(path: Path, progress: Progress | None = None) -> Verified:
    """Compute the checksums of a model folder, GGUF file or adapter, and compare them with those that are known.

    Args:
        progress: Called as progress(tensor or file, bytes done, bytes in all).

    Raises:
        InvalidModelError: The first tensor or file whose bytes are others; or as `open_checkpoint`, which comes first.
    """
    report = progress or (lambda what, done, total: None)
    checkpoint = None if is_adapter(path) else open_checkpoint(path)
    if checkpoint is None:
        AdapterFolder(path)
    tensors = len(checkpoint.manifest.tensors) if checkpoint and checkpoint.manifest else 0
    done = checkpoint.nbytes if checkpoint and tensors else 0
    files = {file: sum_ for file, sum_ in _checksums(path) if not (tensors and file.suffix == ".safetensors")}
    total = done + sum(file.stat().st_size for file in files)
    if checkpoint is not None:
        checkpoint.verify(lambda name, so_far, _: report(name, so_far, total))
    for file, checksum in files.items():
        for nbytes in _compare(file, checksum):
            done += nbytes
            report(file.name, done, total)
    return Verified(tensors, len(files), total)


def _checksums(path: Path) -> Iterator[tuple[Path, str]]:
    """The files of a model that the cache has under their checksums."""
    for file in _files(path):
        blob = file.readlink() if file.is_symlink() else file
        if blob.parent.name == "blobs" and _CHECKSUM.fullmatch(blob.name):
            yield file, blob.name


def _files(path: Path) -> list[Path]:
    """All files of a folder, or of a GGUF model."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    models = gguf_models(file.name for file in path.parent.iterdir())
    return next(([path.with_name(name) for name in files] for files in models.values() if path.name in files), [path])


def _compare(file: Path, checksum: str) -> Iterator[int]:
    """Read a file in pieces, and give the size of each; raises InvalidModelError at the end if it is another file."""
    digest = hashlib.sha256()
    if len(checksum) == 40:
        digest = hashlib.sha1(f"blob {file.stat().st_size}\0".encode(), usedforsecurity=False)
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            digest.update(chunk)
            yield len(chunk)
    if digest.hexdigest() != checksum:
        raise InvalidModelError(
            f"{file} is damaged: its bytes are not those that its checksum {checksum[:12]}… stands for.",
            f"Delete {file.resolve()}, and pull the model again.",
        )
