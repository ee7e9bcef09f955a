"""Weights on the device: matrices as they are stored, streamed from the memory map; vectors as float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from halfbyte.formats import Parts, RowLayout, Storage, Weight, WeightSource
from halfbyte.gpu.device.device import CHUNK_NBYTES, Device
from halfbyte.gpu.lowering.context import ROW_STEP, storage
from halfbyte.gpu.lowering.program import Matrix, Piece, Vector
from halfbyte.gpu.run.bound import Buffer

Array = NDArray[Any]


@runtime_checkable
class Repeating(WeightSource, Protocol):
    """A `WeightSource` whose matrices repeat their first rows, as random ones do that only take up room."""

    def tile(self, name: str) -> Weight:
        """The rows of a matrix that the others repeat."""
        ...


Arrays = Mapping[str, Buffer]
"""The buffers of a piece of a matrix, by the names that its format's snippet binds."""


class _Place(NamedTuple):
    """A piece of a matrix on the device."""

    piece: Piece
    arrays: Arrays

    def overlap(self, first: int, end: int) -> range:
        """Which of the matrix' rows from `first` to `end` lie in it."""
        return range(max(first, self.piece.first), min(end, self.piece.first + self.piece.rows))


class WeightStore:
    """The weights of a plan on a device, each uploaded when it is first asked for.

    Args:
        source: Where weights come from.
        progress: Called with the bytes uploaded so far.
    """

    def __init__(self, device: Device, source: WeightSource, *, progress: Callable[[int], None] | None = None) -> None:
        self._device = device
        self._source = source
        self._progress = progress
        self._uploaded = 0
        self._arrived = 0
        self._matrices: dict[tuple[str, ...], tuple[Arrays, ...]] = {}
        self._vectors: dict[Vector, Buffer] = {}

    def matrix(self, matrix: Matrix) -> tuple[Arrays, ...]:
        """The buffers of each piece of a matrix."""
        if matrix.tensors not in self._matrices:
            self._matrices[matrix.tensors] = self._upload(matrix)
        return self._matrices[matrix.tensors]

    def vector(self, vector: Vector) -> Buffer:
        """A vector in float32."""
        if vector not in self._vectors:
            values = np.concatenate([self._source.weight(tensor).decode() for tensor in vector.tensors])
            shifted = (np.float32(vector.offset) + values) * np.float32(vector.scale)
            self._vectors[vector] = self.constant(shifted, vector.tensors[0])
        return self._vectors[vector]

    def constant(self, values: NDArray[np.float32], label: str) -> Buffer:
        """Float32 values in a buffer of their own, followed by zeros up to a multiple of 32 values."""
        padded = np.zeros(-(-values.size // 32) * 32, np.float32)
        padded[: values.size] = values.reshape(-1)
        handle = self._device.buffer(padded.nbytes, label)
        self._device.write(handle, 0, padded)
        return Buffer(handle)

    def _upload(self, matrix: Matrix) -> tuple[Arrays, ...]:
        places = [_Place(piece, self._buffers(piece, matrix.tensors[0])) for piece in matrix.pieces]
        row = 0
        for name, height in zip(matrix.tensors, matrix.heights, strict=True):
            self._upload_rows(name, range(row, row + height), matrix.columns, places)
            self._source.release(name)
            row += height
        return tuple(place.arrays for place in places)

    def _buffers(self, piece: Piece, label: str) -> Arrays:
        return {name: Buffer(self._device.buffer(piece.nbytes(name), label)) for name in piece.pitch}

    def _upload_rows(self, name: str, rows: range, columns: int, places: Sequence[_Place]) -> None:
        """Upload a weight, which has some of the matrix' rows."""
        stored = next(place.piece.format for place in places if place.overlap(rows.start, rows.stop))
        layout = storage(stored, columns)
        if isinstance(self._source, Repeating) and (rows.start | len(rows)) % ROW_STEP == 0:
            self._fill(places, layout, rows, self._source.tile(name).parts)
        else:
            widest = max(array.nbytes for array in layout.arrays.values())
            step = max(ROW_STEP, CHUNK_NBYTES // widest // ROW_STEP * ROW_STEP)
            self._send(places, layout, range(rows.start, rows.stop, step), self._source.weight(name).parts)

    def _send(self, places: Sequence[_Place], stored: Storage, rows: range, parts: Parts) -> None:
        """Write a matrix's rows, some at once: the steps of `rows`."""
        for row in rows:
            start = row - rows.start
            chunk = {suffix: part[start : start + rows.step] for suffix, part in parts.items()}
            for binding, array in stored.arrays.items():
                self._scatter(places, row, binding, _row_bytes(array, chunk))

    def _fill(self, places: Sequence[_Place], stored: Storage, rows: range, tile: Parts) -> None:
        """Fill `rows`, which begin and end at multiples of `ROW_STEP`, with copies of a tile that is sent once."""
        for binding, array in stored.arrays.items():
            values = _row_bytes(array, tile)
            height, nbytes = values.shape
            source = self._device.buffer(values.nbytes, "tile")
            self._device.write(source, 0, values)
            copies = []
            for place in places:
                for row in range(rows.start, rows.stop, height):
                    if found := place.overlap(row, min(row + height, rows.stop)):
                        at = (found.start - row) * nbytes, (found.start - place.piece.first) * nbytes
                        copies.append((source, at[0], place.arrays[binding].handle, at[1], len(found) * nbytes))
            self._device.copy(copies)
            self._device.free(source)
            self._count(len(rows) * nbytes)

    def _scatter(self, places: Sequence[_Place], row: int, binding: str, values: Array) -> None:
        """Write rows of bytes, the first being the matrix' row `row`, into the pieces they belong to."""
        for place in places:
            if found := place.overlap(row, row + len(values)):
                offset = (found.start - place.piece.first) * values.shape[1]
                rows = values[found.start - row : found.stop - row]
                self._write(place.arrays[binding].handle, offset, rows)
        self._count(values.nbytes)

    def _count(self, nbytes: int) -> None:
        """Count bytes that are on their way, and wait for them when they are many."""
        self._uploaded += nbytes
        if self._uploaded - self._arrived >= CHUNK_NBYTES:
            self._device.flush()
            self._arrived = self._uploaded
        if self._progress:
            self._progress(self._uploaded)

    def _write(self, handle: Any, offset: int, values: Array) -> None:
        """Write bytes; rows that begin inside a word are joined to what is there."""
        begin = offset % 4
        if begin:
            before = self._device.read(handle, begin, offset - begin)
            values = np.concatenate([before, values.reshape(-1)])
        self._device.write(handle, offset - begin, values)


def _row_bytes(array: RowLayout, parts: Parts) -> NDArray[np.uint8]:
    """An array's bytes `[rows, nbytes]` for some rows, padded with zeros where the device's rows are longer."""
    values = np.ascontiguousarray(array.of(parts))
    raw = values.view(np.uint8).reshape(len(values), -1)
    if raw.shape[1] == array.nbytes:
        return raw
    padded = np.zeros((len(raw), array.nbytes), np.uint8)
    padded[:, : raw.shape[1]] = raw
    return padded
