"""Weights on the device: matrices as they are stored, streamed from the memory map; vectors as float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import Format, WeightSource, get_format
from halfbyte.formats.dense import Dense
from halfbyte.formats.q4g import Q4G
from halfbyte.plan import Plan
from halfbyte.webgpu.device import Device
from halfbyte.webgpu.program import Buffer

Array = NDArray[Any]
ROW_STEP = 64
"""Pieces of a matrix begin at multiples of this, so that every part of theirs begins at a whole word."""


@dataclass(frozen=True)
class Storage:
    """How kernels see a format.

    Attributes:
        snippet: The WGSL file that reads it.
        constants: What the snippet wants to know.
        parts: Binding → (suffix of the stored part, bytes of a row).
        packed: Whether it can be multiplied with int8 activations.
    """

    snippet: str
    constants: dict[str, Any]
    parts: dict[str, tuple[str, int]]
    packed: bool


def storage(stored: Format, columns: int) -> Storage:
    """How kernels see matrices of this many columns in a format.

    Raises:
        UnsupportedModelError: There is no snippet for it.
    """
    match stored:
        case Q4G(group, zero_points):
            groups = stored.groups(columns)
            constants = {"GROUP": group, "GROUPS": groups, "BLOCKS": groups * group // 32, "ZERO": zero_points}
            parts = {"w_q": (".q", groups * group // 2), "w_scale": (".scale", groups * 2)}
            if zero_points:
                parts["w_zero"] = (".zero", (groups + 1) // 2)
            return Storage("q4g", constants, parts, True)
        case Dense(kind):
            fours = -(-columns // 4)
            return Storage(
                "dense", {"KIND": kind, "ROW4": fours}, {"w": ("", fours * (16 if kind == "f32" else 8))}, False
            )
    raise UnsupportedModelError(f"the GPU cannot read weights in {stored.name} yet.", "Use device='cpu'.")


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
        widest = max(nbytes for _, nbytes in stored.parts.values())
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
            weight = self._source.weight(name)
            for binding, (suffix, row_nbytes) in stored.parts.items():
                values = _rows_of_bytes(weight.parts[suffix], count, row_nbytes)
                self._scatter(pieces, first + at, binding, values)
            self._source.release(name)
            at += count
        yield from pieces

    def _buffers(self, stored: Storage, rows: int, label: str) -> dict[str, Buffer]:
        return {
            binding: Buffer(self._device.buffer(rows * nbytes, label)) for binding, (_, nbytes) in stored.parts.items()
        }

    def _scatter(self, pieces: list[Piece], row: int, binding: str, values: Array) -> None:
        """Write rows of bytes, the first being the matrix' row `row`, into the pieces they belong to."""
        for piece in pieces:
            start, end = max(row, piece.first), min(row + len(values), piece.first + piece.rows)
            if start < end:
                handle = piece.buffers[binding].handle
                self._write(handle, (start - piece.first) * values.shape[1], values[start - row : end - row])
                self._uploaded += (end - start) * values.shape[1]
        if self._progress:
            self._progress(self._uploaded)

    def _write(self, handle: Any, offset: int, values: Array) -> None:
        """Write bytes; rows that begin inside a word are joined to what is there."""
        begin = offset % 4
        if begin:
            before = self._device.read(handle, begin, offset - begin)
            values = np.concatenate([before, values.reshape(-1)])
        self._device.write(handle, offset - begin, values)


def _rows_of_bytes(part: Array, rows: int, row_nbytes: int) -> Array:
    """A stored part as bytes `[rows, row_nbytes]`, padded with zeros where the device's rows are longer."""
    raw = np.ascontiguousarray(part.reshape(rows, -1)).view(np.uint8)
    if raw.shape[1] == row_nbytes:
        return raw
    padded = np.zeros((rows, row_nbytes), np.uint8)
    padded[:, : raw.shape[1]] = raw
    return padded
