"""Files that others cut short, replace or keep while they are mapped."""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from halfbyte.checkpoint.safetensors import SafetensorsFile
from halfbyte.errors import InvalidModelError
from halfbyte.mapped import MappedFile, file_of

PAGES = 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of ones."""
    path = tmp_path / "ones.bin"
    path.write_bytes(b"\x01" * PAGES * mmap.PAGESIZE)
    return path


def total(file: MappedFile) -> int:
    return int(np.frombuffer(file, np.uint8).sum())


def test_a_file_that_nobody_touches_stays_as_it_is(path: Path) -> None:
    file = MappedFile(path)
    assert total(file) == PAGES * mmap.PAGESIZE
    file.verify()


def test_bytes_that_were_cut_off_are_zeros_and_the_file_is_named(path: Path) -> None:
    file = MappedFile(path)
    os.truncate(path, 3 * mmap.PAGESIZE)
    assert total(file) == 3 * mmap.PAGESIZE
    with pytest.raises(InvalidModelError, match=f"{path} was cut short.*rename it over"):
        file.verify()


def test_a_cut_shows_before_anything_is_read_and_within_a_page(path: Path) -> None:
    file = MappedFile(path)
    os.truncate(path, PAGES * mmap.PAGESIZE - 1)
    with pytest.raises(InvalidModelError, match="cut short"):
        file.verify()


def test_bytes_that_were_read_as_zeros_are_not_forgotten_when_the_file_grows_again(path: Path) -> None:
    file = MappedFile(path)
    os.truncate(path, 0)
    assert total(file) == 0
    path.write_bytes(b"\x01" * PAGES * mmap.PAGESIZE)
    with pytest.raises(InvalidModelError, match="cut short"):
        file.verify()


def test_a_file_that_is_replaced_stays_as_it_was(path: Path) -> None:
    file = MappedFile(path)
    path.with_name("new").write_bytes(b"\x02" * 10)
    path.with_name("new").replace(path)
    assert total(file) == PAGES * mmap.PAGESIZE
    file.verify()


def test_files_are_guarded_each_for_itself(path: Path, tmp_path: Path) -> None:
    """Also after guards have been given up and their places taken by others."""
    for _ in range(5):
        files = [MappedFile(path) for _ in range(20)]
        del files
    other = tmp_path / "other.bin"
    other.write_bytes(path.read_bytes())
    cut, whole = MappedFile(other), MappedFile(path)
    os.truncate(other, 0)
    assert (total(cut), total(whole)) == (0, PAGES * mmap.PAGESIZE)
    whole.verify()
    with pytest.raises(InvalidModelError, match=r"other\.bin"):
        cut.verify()


def test_any_thread_may_find_bytes_missing(path: Path) -> None:
    file, found = MappedFile(path), []
    os.truncate(path, 0)
    threads = [threading.Thread(target=lambda: found.append(total(file))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [0] * 8


def test_the_file_of_a_view_is_found(path: Path) -> None:
    file = MappedFile(path)
    view = np.frombuffer(file, np.uint8, 100, 5)[3:50].view(np.int8).reshape(-1, 1)
    assert file_of(view) is file
    assert file_of(view.copy()) is None


def test_an_empty_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(InvalidModelError, match="empty"):
        MappedFile(tmp_path / "empty")


def test_a_tensor_of_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "model.safetensors"
    save_file({"w": np.ones((512, 512), np.float32)}, path)
    file = SafetensorsFile(path)
    view = file.tensor("w")
    os.truncate(path, 5000)
    assert view.sum() < 512 * 512
    with pytest.raises(InvalidModelError, match="cut short"):
        file.release("w")
    with pytest.raises(InvalidModelError, match="cut short"):
        file.tensor("w")


CUT = """
import faulthandler, mmap, os, signal, sys
import numpy as np
from halfbyte.errors import InvalidModelError
from halfbyte.mapped import MappedFile

def enable(when):
    if when == sys.argv[2]:
        faulthandler.enable()

enable("before")
path = sys.argv[1]
from pathlib import Path
ours = MappedFile(Path(path))
enable("after")
ours.verify()
with open(path, "rb") as file:
    theirs = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
os.truncate(path, 0)
try:
    print(np.frombuffer(ours, np.uint8).sum(), flush=True)
    ours.verify()
except InvalidModelError:
    print("refused", flush=True)
if sys.argv[3] == "sent":
    signal.raise_signal(signal.SIGBUS)
else:
    print(theirs[100])
"""


@pytest.mark.parametrize("faults", ["never", "before", "after"])
@pytest.mark.parametrize("how", ["fault", "sent"])
def test_bus_errors_of_others_end_the_process_as_ever(path: Path, faults: str, how: str) -> None:
    """A guarded file is survived; a fault elsewhere, and the signal itself, go to whoever had them before."""
    command = [sys.executable, "-c", CUT, str(path), faults, how]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout == "0\nrefused\n"
    assert ended.returncode == -signal.SIGBUS
    assert ended.stderr.count("Fatal Python error: Bus error") == (faults != "never")


def test_python_handlers_of_the_signal_are_kept(path: Path) -> None:
    heard: list[int] = []
    enabled = faulthandler.is_enabled()
    faulthandler.disable()
    before = signal.signal(signal.SIGBUS, lambda number, _: heard.append(number))
    try:
        file = MappedFile(path)
        os.truncate(path, 0)
        assert total(file) == 0
        assert heard == []
        signal.raise_signal(signal.SIGBUS)
        assert heard == [signal.SIGBUS]
    finally:
        signal.signal(signal.SIGBUS, before)
        if enabled:
            faulthandler.enable()
