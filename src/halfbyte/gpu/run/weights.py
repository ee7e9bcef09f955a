"""Weights on the device: matrices as they are stored, streamed from the memory map; vectors as float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import Format, Parts, Rows, Storage, Weight, WeightSource, get_format
from halfbyte.gpu.device.device import CHUNK_NBYTES, Device
from halfbyte.gpu.run.recorder import Buffer
from halfbyte.plan import Plan

Array = NDArray[Any]
ROW_STEP = 64
"""Pieces of a matrix begin at multiples of this, so that every part of theirs begins at a whole word."""


def storage(stored: Format, columns: int) -> Storage:
    """How kernels see matrices of this many columns in a format.

    Raises:
        UnsupportedModelError: There is no snippet for it.
    """
    found = stored.storage(columns)
    if found is None:
        raise UnsupportedModelError(f"the GPU cannot read weights in {stored.name}.", "Use device='cpu'.")
    return found


@runtime_checkable
class Repeating(WeightSource, Protocol):
    """A `WeightSource` whose matrices repeat their first rows, as random ones do that only take up room."""

    def tile(self, name: str) -> Weight:
        """The rows of a matrix that the others repeat."""
        ...


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a matrix, in one set of buffers.

    Attributes:
        first: The matrix' row that is the piece's row 0.
    """

    first: int
    rows: int
    storage: Storage
    buffers: dict[str, Buffer]


@dataclass(frozen=True)
class Matrix:
    """A matrix `[rows, columns]` in one or more pieces."""

    rows: int
    columns: int
    pieces: tuple[Piece, ...]


class WeightStore:
    """The weights of a plan on a device, each uploaded when it is first asked for.

    Args:
        source: Where weights come from.
        progress: Called with the bytes uploaded so far.
    """

    def __init__(
        self, device: Device, plan: Plan, source: WeightSource, *, progress: Callable[[int], None] | None = None
    ) -> None:
        self._device = device
        self._plan = plan
        self._source = source
        self._progress = progress
        self._uploaded = 0
        self._arrived = 0
        self._matrices: dict[tuple[str, ...], Matrix] = {}
        self._vectors: dict[tuple[str, float], Buffer] = {}

    def matrix(self, names: tuple[str, ...]) -> Matrix:
        """The rows of the matrices `names`, stacked."""
        if names not in self._matrices:
            self._matrices[names] = self._upload(names)
        return self._matrices[names]

    def vector(self, name: str, offset: float = 0.0) -> Buffer:
        """A vector plus `offset` in float32, padded with zeros to whole blocks of 32."""
        if (name, offset) not in self._vectors:
            values = np.float32(offset) + self._source.weight(name).decode()
            self._vectors[name, offset] = self.constant(values, name)
        return self._vectors[name, offset]

    def constant(self, values: NDArray[np.float32], label: str) -> Buffer:
        """Float32 values in a buffer of their own, padded with zeros to whole blocks of 32."""
        padded = np.zeros(-(-values.size // 32) * 32, np.float32)
        padded[: values.size] = values.reshape(-1)
        handle = self._device.buffer(padded.nbytes, label)
        self._device.write(handle, 0, padded)
        return Buffer(handle)

    def _upload(self, names: tuple[str, ...]) -> Matrix:
        columns = self._plan.tensors[names[0]].shape[1]
        pieces: list[Piece] = []
        first = 0
        for format_name, run in groupby(names, lambda name: self._plan.tensors[name].dtype):
            stored = storage(get_format(format_name), columns)
            rows = {name: self._plan.tensors[name].shape[0] for name in run}
            pieces.extend(self._pieces(stored, rows, first))
            first += sum(rows.values())
        return Matrix(first, columns, tuple(pieces))

    def _pieces(self, stored: Storage, rows: dict[str, int], first: int) -> Iterator[Piece]:
        """Stacked matrices of one format, cut where a binding would become too large."""
        total = sum(rows.values())
        widest = max(array.nbytes for array in stored.arrays.values())
        limit = min(self._device.capabilities.max_binding, self._device.capabilities.max_buffer)
        most = max(ROW_STEP, limit // widest // ROW_STEP * ROW_STEP)
        pieces = [
            Piece(
                first + start,
                min(most, total - start),
                stored,
                self._buffers(stored, min(most, total - start), next(iter(rows))),
            )
            for start in range(0, total, most)
        ]
        at = 0
        for name, count in rows.items():
            if isinstance(self._source, Repeating) and (at | count) % ROW_STEP == 0:
                self._fill(pieces, stored, range(first + at, first + at + count), self._source.tile(name).parts)
            else:
                step = max(ROW_STEP, CHUNK_NBYTES // widest // ROW_STEP * ROW_STEP)
                self._send(pieces, stored, range(first + at, first + at + count, step), self._source.weight(name).parts)
            self._source.release(name)
            at += count
        yield from pieces

    def _buffers(self, stored: Storage, rows: int, label: str) -> dict[str, Buffer]:
        return {name: Buffer(self._device.buffer(rows * array.nbytes, label)) for name, array in stored.arrays.items()}

    def _send(self, pieces: list[Piece], stored: Storage, rows: range, parts: Parts) -> None:
        """Write a matrix's rows, some at once: the steps of `rows`."""
        for row in rows:
            start = row - rows.start
            chunk = {suffix: part[start : start + rows.step] for suffix, part in parts.items()}
            for binding, array in stored.arrays.items():
                self._scatter(pieces, row, binding, _row_bytes(array, chunk))

    def _fill(self, pieces: list[Piece], stored: Storage, rows: range, tile: Parts) -> None:
        """Fill `rows`, which begin and end at multiples of `ROW_STEP`, with copies of a tile that is sent once."""
        for binding, array in stored.arrays.items():
            values = _row_bytes(array, tile)
            height, nbytes = values.shape
            source = self._device.buffer(values.nbytes, "tile")
            self._device.write(source, 0, values)
            copies = []
            for piece in pieces:
                target = piece.buffers[binding].handle
                for row in range(rows.start, rows.stop, height):
                    begin, end = max(row, piece.first), min(row + height, rows.stop, piece.first + piece.rows)
                    if begin < end:
                        at = (begin - row) * nbytes, (begin - piece.first) * nbytes
                        copies.append((source, at[0], target, at[1], (end - begin) * nbytes))
            self._device.copy(copies)
            self._device.free(source)
            self._count(len(rows) * nbytes)

    def _scatter(self, pieces: list[Piece], row: int, binding: str, values: Array) -> None:
        """Write rows of bytes, the first being the matrix' row `row`, into the pieces they belong to."""
        for piece in pieces:
            start, end = max(row, piece.first), min(row + len(values), piece.first + piece.rows)
            if start < end:
                handle = piece.buffers[binding].handle
                self._write(handle, (start - piece.first) * values.shape[1], values[start - row : end - row])
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


def _row_bytes(array: Rows, parts: Parts) -> NDArray[np.uint8]:
    """An array's bytes `[rows, nbytes]` for some rows, padded with zeros where the device's rows are longer."""
    values = np.ascontiguousarray(array.of(parts))
    raw = values.view(np.uint8).reshape(len(values), -1)
    if raw.shape[1] == array.nbytes:
        return raw
    padded = np.zeros((len(raw), array.nbytes), np.uint8)
    padded[:, : raw.shape[1]] = raw
    return padded
