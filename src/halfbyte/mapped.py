"""Files as read-only memory maps that outlive what others do to the file meanwhile.

A file that is replaced by renaming another over it stays as it was for those who have it mapped. One that is cut short
loses bytes under their feet: reads of these give zeros, and `verify` says so afterwards.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import DeviceError, InvalidModelError

try:
    from halfbyte import _mapped
except ImportError as missing:
    raise DeviceError.not_compiled("model files", missing) from missing


class MappedFile(mmap.mmap):
    """A whole file.

    Raises:
        OSError: The file cannot be opened.
        InvalidModelError: It is empty.
    """

    path: Path
    _guard: _mapped.Guard

    def __new__(cls, path: Path) -> Self:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise InvalidModelError(f"{path} is empty.", "Delete it and download or make it again.")
            mapped = super().__new__(cls, file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped.path = path
        mapped._guard = _mapped.Guard(np.frombuffer(mapped, np.uint8).ctypes.data, len(mapped))
        return mapped

    def verify(self) -> None:
        """Check that no byte has been lost; to be called after the map has been read.

        Raises:
            InvalidModelError: The file is shorter than it was, so what has been read may be zeros.
        """
        if self._guard.lost() or self.size() < len(self):
            raise InvalidModelError(
                f"{self.path} was cut short while it was in use.",
                "Load the model again. To replace a model in use, write a new file and rename it over the old one.",
            )

    def release(self, start: int, stop: int) -> None:
        """Give back the memory of the whole pages between two bytes; they are read again when touched."""
        if hasattr(mmap, "MADV_DONTNEED"):
            first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
            if last > first:
                self.madvise(mmap.MADV_DONTNEED, first, last - first)


def file_of(array: NDArray[np.generic]) -> MappedFile | None:
    """The mapped file that an array is a view of, if it is one."""
    owner: object = array
    while isinstance(owner, (np.ndarray, memoryview)):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    return owner if isinstance(owner, MappedFile) else None
