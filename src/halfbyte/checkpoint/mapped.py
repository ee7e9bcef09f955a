"""Read-only memory maps of weight files."""

from __future__ import annotations

import mmap
from pathlib import Path

from halfbyte.checkpoint.checks import damaged, refuse_lfs_pointer
from halfbyte.errors import ModelNotFoundError

_START = 64


def map_file(path: Path, header: int) -> mmap.mmap:
    """A file as a read-only memory map.

    Args:
        header: The least bytes that a file of its kind has.

    Raises:
        ModelNotFoundError: The file is not there or cannot be opened.
        InvalidModelError: It is shorter, or a Git LFS pointer.
    """
    try:
        with path.open("rb") as file:
            refuse_lfs_pointer(path, file.read(_START))
            size = path.stat().st_size
            if size < header:
                damaged(path, f"it has {size} bytes, fewer than the {header} of its header")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"There is no file {path}.", "Download the model again.") from error
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error


def release_pages(data: mmap.mmap, start: int, stop: int) -> None:
    """Give back the memory of the whole pages between two bytes; they are read again when touched."""
    if hasattr(mmap, "MADV_DONTNEED"):
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = stop // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            data.madvise(mmap.MADV_DONTNEED, first, last - first)
