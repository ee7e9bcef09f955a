"""Weight files as memory maps, and what is said of files that cannot be one."""

from __future__ import annotations

from pathlib import Path

from halfbyte.checkpoint.checks import damaged, refuse_lfs_pointer
from halfbyte.errors import ModelNotFoundError
from halfbyte.mapped import MappedFile

_START = 64


def map_file(path: Path, header: int) -> MappedFile:
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
        return MappedFile(path)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"There is no file {path}.", "Download the model again.") from error
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
