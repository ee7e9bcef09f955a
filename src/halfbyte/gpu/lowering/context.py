"""What everything that is lowered for one executor shares: the plan, the kernels in use, and the weights' layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any

from halfbyte.errors import UnsupportedModelError
from halfbyte.formats import Storage, get_format
from halfbyte.gpu.lowering.columns import capacity, columns_for
from halfbyte.gpu.lowering.program import Matrix, Piece, Ref, Vector, buffer_nbytes, padded
from halfbyte.gpu.lowering.state import StateLayout
from halfbyte.gpu.shaders.capabilities import Capabilities
from halfbyte.gpu.shaders.shader import ShaderSet
from halfbyte.gpu.shaders.variants import KernelConfig
from halfbyte.plan import Plan
from halfbyte.plan.plan import LOGITS

ROW_STEP = 64
"""Pieces of a matrix begin at multiples of this, so that every part of theirs begins at a whole word."""


@dataclass(frozen=True)
class LoweringContext:
    """What lowering works with, and what it has referred to so far.

    Attributes:
        shaders: Every shader that programs use.
        matrices, vectors: The weights that programs read, by the names that refs give them.
        buffers: Bytes of the buffers that belong to programs, by name.
    """

    plan: Plan
    capabilities: Capabilities
    config: KernelConfig
    state: StateLayout
    shaders: ShaderSet
    matrices: dict[str, Matrix] = field(default_factory=dict)
    vectors: dict[str, Vector] = field(default_factory=dict)
    buffers: dict[str, int] = field(default_factory=dict)

    def matrix(self, tensors: tuple[str, ...]) -> Matrix:
        """The rows of the weights `tensors`, stacked, in pieces that fit a binding.

        Raises:
            UnsupportedModelError: A format has no kernels.
        """
        name = matrix_name(tensors)
        if name not in self.matrices:
            self.matrices[name] = self._laid_out(tensors)
        return self.matrices[name]

    def _laid_out(self, tensors: tuple[str, ...]) -> Matrix:
        shapes = [self.plan.tensors[name] for name in tensors]
        columns, pieces, first = shapes[0].shape[1], list[Piece](), 0
        for stored, run in groupby(shapes, lambda tensor: tensor.dtype):
            rows = sum(tensor.shape[0] for tensor in run)
            pieces += self._pieces(stored, columns, rows, first)
            first += rows
        return Matrix(tensors, tuple(tensor.shape[0] for tensor in shapes), first, columns, tuple(pieces))

    def _pieces(self, stored: str, columns: int, rows: int, first: int) -> Iterator[Piece]:
        """Rows of one format, cut where a binding would become too large."""
        arrays = storage(stored, columns).arrays
        pitch = {name: array.nbytes for name, array in arrays.items()}
        most = max(ROW_STEP, self.capabilities.largest // max(pitch.values()) // ROW_STEP * ROW_STEP)
        for start in range(0, rows, most):
            yield Piece(first + start, min(most, rows - start), stored, pitch)

    def arrays(self, matrix: Matrix, piece: int) -> dict[str, Ref]:
        """The buffers of a piece, by the names that its format's snippet binds."""
        name = matrix_name(matrix.tensors)
        return {binding: Ref("weight", name, piece, binding) for binding in matrix.pieces[piece].pitch}

    def vector(self, *tensors: str, offset: float = 0.0, scale: float = 1.0) -> Ref:
        """Vectors, one after the other, plus `offset`, times `scale`, in float32."""
        name = " + ".join([*tensors, *([str(offset)] if offset else [])]) + (f" · {scale}" if scale != 1 else "")
        self.vectors[name] = Vector(tensors, offset, sum(map(self.plan.size, tensors)), scale)
        return Ref("vector", name)

    def mark(self) -> tuple[int, frozenset[str]]:
        """How far shaders and buffers go, for `rewind`."""
        return len(self.shaders.shaders), frozenset(self.buffers)

    def rewind(self, mark: tuple[int, frozenset[str]]) -> None:
        """Forget the shaders and buffers that were referred to since `mark`."""
        shaders, buffers = mark
        self.shaders.keep(shaders)
        for name in self.buffers.keys() - buffers:
            del self.buffers[name]

    def logits(self) -> Ref:
        """The rows of logits that every program leaves in the same place, as many as a batch may have."""
        return self.buffer(Ref("logits", LOGITS), self.logit_rows * padded(self.plan.tensors[LOGITS].shape[1]) * 4)

    @property
    def logit_rows(self) -> int:
        """Rows of logits that there is room for."""
        return capacity(columns_for(self.plan.rows), self.plan.rows)

    def buffer(self, ref: Ref, nbytes: int) -> Ref:
        """Note how large a buffer of a program's own has to be."""
        self.buffers[ref.name] = buffer_nbytes(nbytes)
        return ref

    def packed(self, matrix: Matrix, piece: Piece) -> bool:
        """Whether rows can be multiplied with int8 blocks here."""
        return self.config.int8 and storage(piece.format, matrix.columns).packed


def matrix_name(tensors: tuple[str, ...]) -> str:
    """How refs call stacked weights."""
    return " + ".join(tensors)


@cache
def storage(stored: str, columns: int) -> Storage:
    """How kernels see matrices of this many columns in a format.

    Raises:
        UnsupportedModelError: There is no snippet for it.
    """
    found = get_format(stored).storage(columns)
    if found is None:
        raise UnsupportedModelError(f"the GPU cannot read weights in {stored}.", "Use device='cpu'.")
    return found


def format_constants(matrix: Matrix, piece: Piece) -> dict[str, Any]:
    """The snippet of a piece's format, what it wants to know, and both as a name."""
    found = storage(piece.format, matrix.columns)
    stored = "-".join(map(str, (found.snippet, *found.constants.values())))
    return {"FORMAT": found.snippet, "STORED": stored, **found.constants}
