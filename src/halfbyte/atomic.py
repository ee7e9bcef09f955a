"""Files and folders that appear whole or not at all, by one writer at a time; failures of the disk in one sentence.

Long work claims its target first, so that a second writer is refused before it begins. What is being written lies
beside the target as `.NAME.new` and takes its name at the end. What a killed process left is removed, or put back
(`.NAME.old`), by the next one that claims the same target.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from halfbyte.errors import HalfbyteError, UsageError
from halfbyte.units import size

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system without locks answers."""


class _Held(threading.local):
    """The targets that this thread has claimed."""

    def __init__(self) -> None:
        self.targets: set[Path] = set()


_held = _Held()


def write(path: Path, data: str | bytes) -> None:
    """Write a file so that it is complete or as it was before; a device or pipe is written to directly.

    Raises:
        OSError: It cannot be written; nothing is left of the attempt.
    """
    content = data.encode() if isinstance(data, str) else data
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    scratch = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        with scratch.open("xb") as file:
            file.write(content)
            sync(file)
        with suppress(FileNotFoundError):
            scratch.chmod(stat.S_IMODE(path.stat().st_mode))
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def append(path: Path, text: str) -> None:
    """Append to a file so that all of the text is on the disk afterwards, or the file is as it was.

    Raises:
        OSError: It cannot be written.
    """
    new = not path.exists()
    with path.open("ab", buffering=0) as file:
        start, data = file.tell() if file.seekable() else 0, memoryview(text.encode())
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            with suppress(OSError):
                file.truncate(start)
            if new:
                path.unlink(missing_ok=True)
            raise


def refuse_taken(target: Path, *, overwrite: bool = False) -> None:
    """Refuse a target that is taken: any, or one that a file cannot replace.

    Raises:
        UsageError: It is.
    """
    if target.is_dir() and overwrite:
        raise UsageError(f"{target} is a folder; a file cannot replace it.", "Choose another name.")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} already exists.", "Choose another name or pass overwrite=True.")


def refuse_unwritable(file: Path, *, overwrite: bool) -> None:
    """Refuse, before long work, a file that could not be written at its end.

    Raises:
        UsageError: It is taken.
        OSError: Its folder does not exist or cannot be written to.
    """
    folder = file.absolute().parent
    if file.exists() and not file.is_file() and not file.is_dir():
        return
    refuse_taken(file, overwrite=overwrite or file.is_dir())
    missing = not folder.is_dir()
    if missing or not os.access(folder, os.W_OK):
        number = errno.ENOENT if missing else errno.EACCES
        raise OSError(number, os.strerror(number), str(folder))


@contextmanager
def claimed(target: Path) -> Iterator[None]:
    """Hold a target for one writer, and clear what a killed one left; claiming it again in the same thread is free.

    The claim is a lock on the file `.NAME.lock` beside the target, which the system gives back if the process dies.

    Raises:
        UsageError: Another process or thread is writing it.
        OSError: The folder cannot be written.
    """
    place = target.absolute()
    if place in _held.targets:
        yield
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    path = _beside(place, "lock")
    with _locked(path, target):
        _held.targets.add(place)
        try:
            _clear(place)
            yield
        finally:
            _held.targets.discard(place)
            with suppress(OSError):
                path.unlink()


@contextmanager
def new_path(target: Path, nbytes: int, *, overwrite: bool = False) -> Iterator[Path]:
    """A path beside `target` to write a file or folder to, which takes its name when the block ends without error.

    Args:
        nbytes: About what it will take; checked against the free space.
        overwrite: Whether a file may replace a file, and a folder a folder.

    Raises:
        UsageError: The target is taken, or another process is writing it.
        HalfbyteError: The disk is full or the target cannot be written; nothing is left of the attempt.
    """
    if not overwrite:
        refuse_taken(target)
    with disk_errors(target, nbytes), claimed(target):
        check_space(target, nbytes)
        scratch = _beside(target.absolute(), "new")
        try:
            yield scratch
            _put_in_place(scratch, target.absolute())
        finally:
            _remove(scratch)


def check_space(target: Path, nbytes: int) -> None:
    """Raise the error of a full disk if fewer than `nbytes` are free beside `target`."""
    if shutil.disk_usage(nearest_folder(target)).free < nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def disk_errors(target: Path, nbytes: int, hint: str = "") -> Iterator[None]:
    """Errors of the operating system while `target` is written as one sentence, with sizes where a disk is full.

    Args:
        nbytes: About what is needed.
        hint: What to do when the disk is full; by default, to free some space or use another disk.

    Raises:
        HalfbyteError: There was one.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            free = shutil.disk_usage(nearest_folder(target)).free
            raise HalfbyteError(
                f"The disk of {target} is full: about {size(nbytes)} are needed, {size(free)} are free.",
                hint or "Free some space or choose a folder on another disk.",
            ) from error
        raise HalfbyteError(
            f"{target} cannot be written: {error.strerror or error}.", "Check the folder and its permissions."
        ) from error


def nearest_folder(path: Path) -> Path:
    """A folder, or the nearest one above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def sync(file: BinaryIO) -> None:
    """Have what was written on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have a folder's entries on the disk, where the system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f".{target.name}.{what}")


def _put_in_place(scratch: Path, target: Path) -> None:
    """Give what is finished the target's name; what was there comes back if that fails."""
    if not scratch.is_dir():
        scratch.replace(target)
        sync_folder(target.parent)
        return
    sync_folder(scratch)
    old = _beside(target, "old")
    if target.exists():
        target.rename(old)
    try:
        scratch.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
    sync_folder(target.parent)
    _remove(old)


def _clear(target: Path) -> None:
    """Remove what a killed writer left; put back what it was about to replace."""
    old = _beside(target, "old")
    if old.exists() and not target.exists():
        old.rename(target)
    _remove(old)
    _remove(_beside(target, "new"))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path, target: Path) -> Iterator[None]:
    """Hold the lock on a file, which is made if need be; the file has the writer's process number in it."""
    while True:
        with path.open("a+b") as file:
            if not _lock(file):
                file.seek(0)
                number = file.read(20).decode(errors="replace").strip()
                raise UsageError(
                    f"{target} is being written by another process{number and f' ({number})'}.",
                    "Wait until it is done, or choose another name.",
                )
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                file.write(str(os.getpid()).encode())
                file.flush()
                yield
                return


def _lock(file: BinaryIO) -> bool:
    """Lock an open file until it is closed; False if another one holds it."""
    try:
        import fcntl
    except ImportError:
        return _lock_on_windows(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _lock_on_windows(file: BinaryIO) -> bool:
    """The same there: the lock covers a byte far behind the end, so that the number can be read."""
    import msvcrt

    file.seek(1 << 30)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    return True
