"""New files and folders that are complete or not there at all, and failures of the disk in one line."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from halfbyte.errors import HalfbyteError, UsageError


@contextmanager
def new_path(target: Path, nbytes: int, *, overwrite: bool = False) -> Iterator[Path]:
    """A path beside `target` to write a file or folder to, which takes its name when the block ends without error.

    Args:
        nbytes: About what it will take; checked against the free space.
        overwrite: Whether a file may be replaced.

    Raises:
        UsageError: The target is taken.
        HalfbyteError: The disk is full or the target cannot be written; nothing is left of the attempt.
    """
    if target.exists() and not (overwrite and target.is_file()):
        raise UsageError(f"{target} is there already.", "Remove it or name another.")
    outer: Path | None = None
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(target.absolute().parent).free < nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        outer = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
        yield outer / target.name
        (outer / target.name).replace(target)
    except OSError as error:
        raise _explained(error, target, nbytes) from error
    finally:
        if outer is not None:
            shutil.rmtree(outer, ignore_errors=True)


def _explained(error: OSError, target: Path, nbytes: int) -> HalfbyteError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HalfbyteError(
            f"The disk of {target} is full: {nbytes / 1e6:,.1f} MB are needed.",
            "Free some space or name a path on another disk.",
        )
    return HalfbyteError(f"{target} cannot be written: {error.strerror or error}.", "Check the folder's permissions.")
