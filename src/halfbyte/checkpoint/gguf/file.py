"""GGUF files, checked in full before anything is read, as views of a read-only memory map.

A file (version 2 or 3, little-endian) is a header with two counts, the metadata (key, type, value), the tensors'
descriptions (name, dimensions innermost first, type, offset) and their bytes, each at a multiple of
`general.alignment`. Every count, length, type and offset is compared with what the file can hold before it is used.
Tensors have logical shapes here (rows first). A model may be split: `name-00001-of-00003.gguf` and so on.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from halfbyte.checkpoint.checks import damaged, is_shape, shown
from halfbyte.checkpoint.mapped import map_file
from halfbyte.errors import ModelNotFoundError, UnsupportedModelError
from halfbyte.formats import Format, Weight, get_format
from halfbyte.formats.ggml import BLOCKS, BlockFormat
from halfbyte.mapped import MappedFile

Value = int | float | bool | str | list[str] | NDArray[np.generic]
"""A metadata value; arrays of numbers are NumPy arrays, arrays of strings lists."""

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
TYPES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 10: "q2_k", 11: "q3_k", 12: "q4_k",
    13: "q5_k", 14: "q6_k", 20: "iq4_nl", 23: "iq4_xs", 30: "bf16", 39: "mxfp4",
}  # fmt: skip
"""Halfbyte's name of each of ggml's types that it reads."""

_UNREAD = {
    9: "q8_1", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 21: "iq3_s", 22: "iq2_s", 24: "i8",
    25: "i16", 26: "i32", 27: "i64", 28: "f64", 29: "iq1_m", 34: "tq1_0", 35: "tq2_0", 40: "nvfp4", 41: "q1_0",
}  # fmt: skip
"""ggml's names of the others, for messages."""

_MAX_ENTRIES = 1 << 16
_MAX_STRINGS = 1 << 22
_MAX_NAME_BYTES = 1 << 16
_MAX_DIMENSIONS = 4
_MAX_ALIGNMENT = 1 << 16
_FLOAT32, _BOOL, _STRING, _ARRAY = 6, 7, 8, 9
_NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
_DENSE = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}
_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its logical shape, its format, and its bytes from `start` to `stop` in the file."""

    shape: tuple[int, ...]
    format: Format
    start: int
    stop: int


class GgufFile:
    """An open file: `metadata` by key, `entries` by tensor name in file order.

    Raises:
        ModelNotFoundError: The file is not there or cannot be opened.
        InvalidModelError: Anything in the file contradicts the format or itself.
        UnsupportedModelError: An old or big-endian version, or a tensor type that Halfbyte does not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = map_file(path, 24)
        cursor = _Cursor(path, self._map)
        tensors, pairs = _counts(cursor)
        self.metadata = _metadata(cursor, pairs)
        self.entries = _entries(cursor, tensors, _alignment(cursor, self.metadata))
        self._map.verify()

    def weight(self, name: str) -> Weight:
        """A tensor as it is stored: a read-only view of the memory map, maybe unaligned.

        Raises:
            InvalidModelError: The file has been cut short since it was opened.
        """
        self._map.verify()
        entry = self.entries[name]
        if isinstance(entry.format, BlockFormat):
            rows, nbytes = entry.shape[0], entry.stop - entry.start
            blocks = np.frombuffer(self._map, np.uint8, nbytes, entry.start).reshape(rows, -1)
            return Weight(entry.format, entry.shape, {BLOCKS: blocks})
        flat = np.frombuffer(self._map, _DENSE[entry.format.name], math.prod(entry.shape), entry.start)
        return Weight(entry.format, entry.shape, {"": flat.reshape(entry.shape)})

    def release(self, name: str) -> None:
        """Give back the memory of the whole pages inside a tensor; they are read again when touched.

        Raises:
            InvalidModelError: The file has been cut short, so that the tensor may have been read as zeros.
        """
        entry = self.entries[name]
        self._map.release(entry.start, entry.stop)
        self._map.verify()


def open_files(path: Path) -> list[GgufFile]:
    """The file, or all files of the split model that it is a part of, in order.

    Raises:
        As `GgufFile`; InvalidModelError too where the parts do not belong together.
    """
    first = GgufFile(path)
    count = first.metadata.get("split.count", 1)
    if not isinstance(count, int) or not 0 <= count <= 99_999:
        damaged(path, f"its split.count is {shown(count)}")
    if count <= 1:
        return [first]
    named = _SPLIT_NAME.fullmatch(path.name)
    if named is None or int(named[3]) != count:
        damaged(path, f"it is one of {count} parts, but is not called name-00001-of-{count:05}.gguf")
    paths = [path.with_name(f"{named[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    lacking = [part.name for part in paths if not part.is_file()]
    if lacking:
        more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
        raise ModelNotFoundError(f"{path} is part of a model that lacks {lacking[0]}{more}.", "Download all its parts.")
    files = [first if part == path else GgufFile(part) for part in paths]
    _check_parts(files, count)
    return files


def _check_parts(files: list[GgufFile], count: int) -> None:
    """Each part knows its number, and together they hold the tensors they should, each once."""
    seen: set[str] = set()
    for number, file in enumerate(files):
        if (file.metadata.get("split.no"), file.metadata.get("split.count")) != (number, count):
            damaged(file.path, f"it does not say that it is part {number + 1} of {count}")
        twice = seen.intersection(file.entries)
        if twice:
            damaged(file.path, f"the tensor {shown(min(twice))} is in another part too")
        seen.update(file.entries)
    total = files[0].metadata.get("split.tensors.count")
    if total is not None and total != len(seen):
        damaged(files[0].path, f"its parts hold {len(seen):,} tensors of {shown(total)}")


class _Cursor:
    """Reads from the front of a file, never beyond its end."""

    def __init__(self, path: Path, data: MappedFile) -> None:
        self.path, self.data, self.at, self.size = path, data, 0, len(data)

    def damaged(self, what: str) -> NoReturn:
        """Raise InvalidModelError about the file."""
        damaged(self.path, what)

    @property
    def left(self) -> int:
        """Bytes up to the end of the file."""
        return self.size - self.at

    def skip(self, nbytes: int, what: str) -> int:
        """Where the next `nbytes` begin; the cursor is behind them after this."""
        if nbytes > self.left:
            self.damaged(f"{what} needs {nbytes:,} bytes at {self.at:,}, and {self.left:,} are left")
        start, self.at = self.at, self.at + nbytes
        return start

    def unpack(self, code: str, what: str) -> int:
        """One little-endian integer."""
        value: int = struct.unpack_from(code, self.data, self.skip(struct.calcsize(code), what))[0]
        return value

    def text(self, what: str, limit: int | None = None) -> str:
        """A string: its length in 8 bytes, then UTF-8. Bytes of no character are kept as lone surrogates."""
        length = self.unpack("<Q", f"the length of {what}")
        if limit is not None and length > limit:
            self.damaged(f"{what} claims {length:,} bytes")
        start = self.skip(length, what)
        return self.data[start : start + length].decode("utf-8", "surrogateescape")

    def numbers(self, kind: int, count: int, what: str) -> NDArray[np.generic]:
        """An array of numbers of one of GGUF's types, copied out of the file."""
        dtype = np.dtype(_NUMBERS[kind])
        start = self.skip(count * dtype.itemsize, what)
        if kind == _BOOL:
            flags = np.frombuffer(self.data, np.uint8, count, start)
            if flags.size and flags.max() > 1:
                self.damaged(f"{what} holds a truth value of {flags.max()}")
        return np.frombuffer(self.data, dtype, count, start).copy()


def _counts(cursor: _Cursor) -> tuple[int, int]:
    """How many tensors and how many metadata pairs the header announces."""
    start = cursor.skip(4, "the magic number")
    if cursor.data[start : start + 4] != MAGIC:
        cursor.damaged("it does not begin with GGUF")
    version = cursor.unpack("<I", "the version")
    if version not in (2, 3):
        kind = "big-endian" if version in (2 << 24, 3 << 24) else f"of version {version}"
        hint = "Halfbyte reads versions 2 and 3, little-endian."
        raise UnsupportedModelError(f"{cursor.path} is a GGUF file {kind}.", hint)
    tensors, pairs = cursor.unpack("<Q", "the tensor count"), cursor.unpack("<Q", "the metadata count")
    for count, least, what in ((tensors, 25, "tensors"), (pairs, 13, "metadata entries")):
        if count > min(_MAX_ENTRIES, cursor.left // least):
            cursor.damaged(f"it claims {count:,} {what} in {cursor.left:,} bytes")
    return tensors, pairs


def _metadata(cursor: _Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.text("a metadata key", _MAX_NAME_BYTES)
        if key in metadata:
            cursor.damaged(f"the metadata key {shown(key)} comes twice")
        metadata[key] = _value(cursor, key)
    return metadata


def _value(cursor: _Cursor, key: str) -> Value:
    what = f"the value of {shown(key)}"
    kind = cursor.unpack("<I", f"the type of {shown(key)}")
    if kind == _STRING:
        return cursor.text(what)
    if kind == _ARRAY:
        return _array(cursor, what)
    if kind not in _NUMBERS:
        cursor.damaged(f"{what} has the unknown type {kind}")
    # The shortest decimal number that float32 rounds to the same value: 1e-05, as configurations have it.
    number = cursor.numbers(kind, 1, what)[0]
    value: int | float | bool = float(str(number)) if kind == _FLOAT32 else number.item()
    return value


def _array(cursor: _Cursor, what: str) -> Value:
    kind, count = cursor.unpack("<I", f"the type of {what}"), cursor.unpack("<Q", f"the length of {what}")
    if kind in _NUMBERS:
        return cursor.numbers(kind, count, what)
    if kind != _STRING:
        cursor.damaged(f"{what} is an array of the type {kind}")
    if count > min(_MAX_STRINGS, cursor.left // 8):
        cursor.damaged(f"{what} claims {count:,} strings in {cursor.left:,} bytes")
    return [cursor.text(what) for _ in range(count)]


def _alignment(cursor: _Cursor, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or not 8 <= value <= _MAX_ALIGNMENT or value & (value - 1):
        cursor.damaged(f"its general.alignment is {shown(value)}, not a power of two from 8 to {_MAX_ALIGNMENT}")
    return value


def _entries(cursor: _Cursor, count: int, alignment: int) -> dict[str, Entry]:
    """The tensors' descriptions, checked against the rest of the file and each other."""
    described = [_description(cursor) for _ in range(count)]
    body = -(-cursor.at // alignment) * alignment
    entries: dict[str, Entry] = {}
    for name, shape, form, offset in described:
        if name in entries:
            cursor.damaged(f"the tensor {shown(name)} comes twice")
        start, nbytes = body + offset, form.nbytes(shape)
        if offset % alignment or start + nbytes > cursor.size:
            cursor.damaged(f"the tensor {shown(name)} claims {nbytes:,} bytes at {start:,} of {cursor.size:,}")
        entries[name] = Entry(shape, form, start, start + nbytes)
    ordered = sorted(entries.items(), key=lambda item: item[1].start)
    for (before, entry), (name, following) in pairwise(ordered):
        if following.start < entry.stop:
            cursor.damaged(f"the tensors {shown(before)} and {shown(name)} overlap")
    return dict(ordered)


def _description(cursor: _Cursor) -> tuple[str, tuple[int, ...], Format, int]:
    """Name, logical shape, format and offset of a tensor."""
    name = cursor.text("a tensor's name", _MAX_NAME_BYTES)
    where = f"the tensor {shown(name)}"
    dimensions = cursor.unpack("<I", f"the rank of {where}")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        cursor.damaged(f"{where} has {dimensions:,} dimensions")
    sizes = [cursor.unpack("<Q", f"the shape of {where}") for _ in range(dimensions)]
    kind, offset = cursor.unpack("<I", f"the type of {where}"), cursor.unpack("<Q", f"the offset of {where}")
    if not is_shape(sizes) or 0 in sizes:
        cursor.damaged(f"{where} has the impossible shape {sizes[::-1]}")
    if kind not in TYPES:
        called = _UNREAD.get(kind, f"ggml type {kind}")
        raise UnsupportedModelError(
            f"{cursor.path}: {where} is stored as {called}, which Halfbyte cannot read.",
            f"It reads {', '.join(TYPES.values())}.",
        )
    return name, tuple(sizes[::-1]), _format(cursor, where, TYPES[kind], sizes), offset


def _format(cursor: _Cursor, where: str, kind: str, sizes: list[int]) -> Format:
    form = get_format(kind)
    if isinstance(form, BlockFormat):
        if sizes[0] % form.values:
            cursor.damaged(f"{where} has rows of {sizes[0]:,} values, no multiple of {kind}'s {form.values}")
        if len(sizes) != 2:
            raise UnsupportedModelError(
                f"{cursor.path}: {where} is quantized and has {len(sizes)} dimensions instead of 2.",
                "Mixtures of experts are not supported.",
            )
    return form
