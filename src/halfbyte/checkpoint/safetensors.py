"""Safetensors files, checked in full before anything is read, as views of a read-only memory map.

A file is an 8-byte little-endian header length, a JSON header that names each tensor's dtype, shape and
byte range, and the tensors' bytes without holes. The views own no memory: pages come from the file when
they are touched and can be given back with `release`. bfloat16 is seen as its 16 bits in uint16.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.atomic import sync
from halfbyte.checkpoint.checks import damaged, is_shape, shown, unique_keys
from halfbyte.checkpoint.mapped import map_file
from halfbyte.errors import UnsupportedModelError
from halfbyte.mapped import MappedFile

MAX_HEADER_BYTES = 100_000_000

_READABLE: dict[str, str] = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2", "BF16": "<u2",
    "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip
_BITS: dict[str, int] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "C64": 64, **{dtype: 8 * np.dtype(code).itemsize for dtype, code in _READABLE.items()},
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its dtype as the header spells it, and its bytes from `start` to `stop` in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return self.stop - self.start


class SafetensorsFile:
    """An open file: `entries` by tensor name in file order, `metadata` strings.

    Raises:
        ModelNotFoundError: The file is not there or cannot be opened.
        InvalidModelError: Anything in the file contradicts the format or itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = map_file(path, 8)
        self.metadata, self.entries = _header(path, self._map)
        self._map.verify()

    def tensor(self, name: str) -> NDArray[np.generic]:
        """A read-only view of a tensor, maybe unaligned; BF16 comes as uint16.

        Raises:
            UnsupportedModelError: The dtype has no NumPy counterpart.
            InvalidModelError: The file has been cut short since it was opened.
        """
        self._map.verify()
        entry = self.entries[name]
        if entry.dtype not in _READABLE:
            raise UnsupportedModelError(
                f"{self.path}: tensor {shown(name)} is stored as {entry.dtype}, which Halfbyte cannot read.",
                "Use a checkpoint in bf16, f16 or f32.",
            )
        count = math.prod(entry.shape)
        flat = np.frombuffer(self._map, np.dtype(_READABLE[entry.dtype]), count, entry.start)
        return flat.reshape(entry.shape)

    def release(self, name: str) -> None:
        """Give back the memory of the whole pages inside a tensor; they are read again when touched.

        Raises:
            InvalidModelError: The file has been cut short, so that the tensor may have been read as zeros.
        """
        entry = self.entries[name]
        self._map.release(entry.start, entry.stop)
        self._map.verify()


def write_tensors(path: Path, tensors: Mapping[str, NDArray[np.generic]], metadata: Mapping[str, str]) -> None:
    """Write a new file with arrays of readable dtypes, and have it on the disk."""
    names = {np.dtype(code): dtype for dtype, code in _READABLE.items() if dtype != "BF16"}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, values in tensors.items():
        stop = position + values.nbytes
        header[name] = {"dtype": names[values.dtype], "shape": values.shape, "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        sync(file)


def _header(path: Path, data: MappedFile) -> tuple[dict[str, str], dict[str, Entry]]:
    """The checked metadata and tensors of a file."""
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, MAX_HEADER_BYTES):
        damaged(path, f"its header claims {length:,} bytes; the file has {len(data):,}")
    header = _parse(path, data[8 : 8 + length])
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        damaged(path, "its __metadata__ is not a table of strings")
    body = 8 + length
    entries = {name: _entry(path, name, value, body, len(data)) for name, value in header.items()}
    return metadata, _contiguous(path, entries, body, len(data))


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    """The header as a JSON object without repeated keys."""
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        damaged(path, f"its header is not valid JSON ({error})")
    if not isinstance(header, dict):
        damaged(path, "its header is not a JSON object")
    return header


def _entry(path: Path, name: str, value: Any, body: int, size: int) -> Entry:
    """One tensor of the header, its figures checked against each other and the file's size."""
    where = f"tensor {shown(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        damaged(path, f"{where} does not have just dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        damaged(path, f"{where} has the unknown dtype {shown(dtype)}")
    if not is_shape(shape):
        damaged(path, f"{where} has the impossible shape {shown(shape)}")
    if not _is_range(offsets, size - body):
        damaged(path, f"{where} claims the bytes {shown(offsets)} of {size - body:,}")
    bits, held = math.prod(shape) * _BITS[dtype], 8 * (offsets[1] - offsets[0])
    if bits != held:
        damaged(path, f"{where} of shape {shape} in {dtype} needs {bits // 8:,} bytes and has {held // 8:,}")
    return Entry(dtype, tuple(shape), body + offsets[0], body + offsets[1])


def _is_range(offsets: Any, size: int) -> bool:
    """Whether this is a [start, stop] within `size` bytes."""
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
        return False
    return bool(0 <= offsets[0] <= offsets[1] <= size)


def _contiguous(path: Path, entries: Mapping[str, Entry], body: int, size: int) -> dict[str, Entry]:
    """The entries in file order, which must follow each other without overlap or hole up to the end of the file."""
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    position = body
    for name, entry in ordered.items():
        if entry.start != position:
            what = "overlaps the one before it" if entry.start < position else "leaves a hole before it"
            damaged(path, f"tensor {shown(name)} {what} ({entry.start:,} instead of {position:,})")
        position = entry.stop
    if position != size:
        damaged(path, f"its tensors end at byte {position:,}, the file at {size:,}")
    return ordered
