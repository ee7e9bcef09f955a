"""Weight formats: how a matrix is stored, one stem a file.

A format is found by its name (`f32`, `bf16`, `q4g32`, `q4g128z`): each module of this package offers
`NAMES` and `parse(name)`, which gives a `Format` or None. Codecs are NumPy; the C++ and WGSL beside them say the
same for their device.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UnsupportedModelError

Parts = dict[str, NDArray[np.generic]]
"""Arrays of one stored tensor by suffix: `{"": …}` for plain formats, `{".q": …, ".scale": …}` for packed."""


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


@dataclass(frozen=True)
class Weight:
    """A stored tensor: its format, logical shape and parts, which may be views of a memory map."""

    format: Format
    shape: tuple[int, ...]
    parts: Parts

    def decode(self) -> NDArray[np.float32]:
        """Its values in float32, a new array."""
        return self.format.decode(self.parts, self.shape)

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


@cache
def get_format(name: str) -> Format:
    """The format called `name`.

    Raises:
        UnsupportedModelError: No format has that name.
    """
    known: list[str] = []
    for found in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{found.name}")
        form: Format | None = module.parse(name)
        if form is not None:
            return form
        known += module.NAMES
    raise UnsupportedModelError(f"unknown weight format {name!r}.", f"Known are {', '.join(known)}.")
