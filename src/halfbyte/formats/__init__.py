"""Weight formats: how a matrix is stored, one stem a file.

A format is found by its name (`f32`, `bf16`, `q4g32`, `q4g128z`): each module of this package offers
`NAMES` and `parse(name)`, which gives a `Format` or None. Codecs are NumPy; the C++ and WGSL beside them say the
same for their device.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UnsupportedModelError
from halfbyte.mapped import MappedFile, file_of

Parts = dict[str, NDArray[np.generic]]
"""Arrays of one stored tensor by suffix: `{"": …}` for plain formats, `{".q": …, ".scale": …}` for packed."""


@dataclass(frozen=True)
class RowLayout:
    """An array that a GPU's kernels read, a run of bytes for each row of the matrix.

    Attributes:
        nbytes: Bytes a row takes; what the parts do not fill is zero.
        of: From the parts of some rows to their bytes, an array `[rows, …]` of any type.
    """

    nbytes: int
    of: Callable[[Parts], NDArray[np.generic]]


@dataclass(frozen=True)
class Storage:
    """How a GPU's kernels see the matrices of a format that have some number of columns.

    A snippet offers `weight4(row, k4)`: the values of columns 4·k4 … 4·k4 + 3. A packed one also works on blocks of 32
    codes: `weight_codes` and `weight_scale(row, block)` load what is stored of one, `block_product` multiplies it with
    32 int8 values, `block_bytes` gives its codes as signed bytes, and `tile_scale` what their products with int8 values
    are to be multiplied with: a factor, or a pair (see the constants).

    Attributes:
        snippet: The stem of the WGSL file that reads it.
        constants: What the snippet wants to know; of packed formats also HALVES (a pair: one factor for the first 16
            codes of a block, one for the others) and OFFSETS (a pair: the factor, and what is taken off each value).
        arrays: By the names of the snippet's bindings.
        packed: Whether it can be multiplied with int8 activations.
    """

    snippet: str
    constants: Mapping[str, Any]
    arrays: Mapping[str, RowLayout]
    packed: bool


def stored_part(suffix: str, nbytes: int) -> RowLayout:
    """A part as it is stored, in rows of `nbytes`."""
    return RowLayout(nbytes, lambda parts: parts[suffix])


class Format(Protocol):
    """One way to store a matrix `[rows, columns]` (or a vector, for plain formats)."""

    @property
    def name(self) -> str: ...

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The parts a tensor of this shape is stored as: suffix → (safetensors dtype such as `U8`, shape)."""
        ...

    def encode(self, values: NDArray[np.float32]) -> Parts:
        """Store float32 values."""
        ...

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The float32 values that are stored."""
        ...

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes that a tensor of this shape takes."""
        ...

    def storage(self, columns: int) -> Storage | None:
        """How a GPU's kernels see matrices of this many columns; None if there is no snippet for the format."""
        ...


@dataclass(frozen=True)
class Weight:
    """A stored tensor: its format, logical shape and parts, which may be views of a memory map."""

    format: Format
    shape: tuple[int, ...]
    parts: Parts

    def decode(self) -> NDArray[np.float32]:
        """Its values in float32, a new array.

        Raises:
            InvalidModelError: The file that it lies in was cut short meanwhile.
        """
        values = self.format.decode(self.parts, self.shape)
        for file in self.files():
            file.verify()
        return values

    def files(self) -> set[MappedFile]:
        """The mapped files that its parts are views of."""
        return {file for part in self.parts.values() if (file := file_of(part)) is not None}

    @property
    def nbytes(self) -> int:
        """Bytes it takes as stored."""
        return self.format.nbytes(self.shape)


class WeightSource(Protocol):
    """Where an executor takes its weights from, one at a time."""

    def weight(self, name: str) -> Weight:
        """The stored tensor called `name`."""
        ...

    def release(self, name: str) -> None:
        """Say that the memory map's pages of this tensor are not needed for now."""
        ...


def group_storage(snippet: str, form: Format, group: int, columns: int) -> Storage:
    """The storage of a format whose parts are `.q`, `.scale` and perhaps `.zero`."""
    item = {"U8": 1, "F16": 2}
    layout = form.layout((1, columns))
    groups = layout[".scale"][1][1]
    constants = {"GROUP": group, "GROUPS": groups, "BLOCKS": groups * group // 32, "ZERO": ".zero" in layout}
    arrays = {f"w_{suffix[1:]}": stored_part(suffix, item[kind] * shape[1]) for suffix, (kind, shape) in layout.items()}
    return Storage(snippet, {**constants, "HALVES": False, "OFFSETS": False}, arrays, True)


@cache
def get_format(name: str) -> Format:
    """The format called `name`.

    Raises:
        UnsupportedModelError: No format has that name.
    """
    for module in _modules():
        form: Format | None = module.parse(name)
        if form is not None:
            return form
    raise UnsupportedModelError(f"unknown weight format {name!r}.", f"Known are {', '.join(format_names())}.")


def format_names() -> list[str]:
    """The names of all formats."""
    return [name for module in _modules() for name in module.NAMES]


def _modules() -> Iterator[Any]:
    return (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
