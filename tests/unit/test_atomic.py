"""Files and folders appear whole or not at all, by one writer at a time."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from halfbyte import atomic
from halfbyte.errors import HalfbyteError, UsageError

KILLED = """
import os, signal, sys
from pathlib import Path
from halfbyte import atomic
target = Path(sys.argv[1])
with atomic.new_path(target, 1, overwrite=True) as path:
    path.mkdir()
    (path / "half").write_text("half")
    {where}
"""
BETWEEN_RENAMES = """
    rename = Path.rename
    def once(self, to):
        rename(self, to)
        os.kill(os.getpid(), signal.SIGKILL)
    Path.rename = once
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed(target: Path, where: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED.format(where=where), str(target)], check=False)
    assert done.returncode == -9


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "page.html"
    atomic.write(file, "old")
    file.chmod(0o640)
    atomic.write(file, "neu: ü")
    assert (file.read_text(encoding="utf-8"), file.stat().st_mode & 0o777) == ("neu: ü", 0o640)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for path in (file, tmp_path / "other.html"):
        with pytest.raises(OSError, match="No space left"):
            atomic.write(path, "half")
    assert (names(tmp_path), file.read_text(encoding="utf-8")) == (["page.html"], "neu: ü")


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    atomic.append(file, "one\n")
    atomic.append(file, "two: ü\n")
    whole = "one\ntwo: ü\n"
    assert file.read_text(encoding="utf-8") == whole
    with pytest.raises(OSError, match="No space left"):
        atomic.append(Path("/dev/full"), "x\n")

    class Full(io.FileIO):
        """Takes two bytes, then nothing."""

        def write(self, data: Any) -> int:
            if self.tell() >= limit:
                raise OSError(28, "No space left on device")
            return super().write(bytes(data)[:2])

    def opened(path: Path, mode: str, **_: Any) -> Full:
        return Full(str(path), mode)

    for path in (file, tmp_path / "new.jsonl"):
        limit = (path.stat().st_size if path.exists() else 0) + 4
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", opened)
            with pytest.raises(OSError, match="No space left"):
                atomic.append(path, "a longer line\n")
    assert (names(tmp_path), file.read_text(encoding="utf-8")) == (["rows.jsonl"], whole)


def test_a_device_is_written_to_as_it_is() -> None:
    atomic.write(Path(os.devnull), "gone")
    assert not Path(os.devnull).is_file()


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "out"
    killed(target, "os.kill(os.getpid(), signal.SIGKILL)")
    assert names(tmp_path) == [".out.lock", ".out.new"]
    with atomic.new_path(target, 1) as path:
        path.write_text("whole")
    assert (names(tmp_path), target.read_text()) == (["out"], "whole")


def test_a_folder_whose_replacement_was_killed_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    killed(target, BETWEEN_RENAMES.strip())
    assert not target.exists()
    with atomic.claimed(target):
        assert names(target) == ["old"]
    assert names(tmp_path) == ["out"]


def test_a_second_writer_is_refused_at_once(tmp_path: Path) -> None:
    target = tmp_path / "out"
    refused: list[UsageError] = []

    def second() -> None:
        try:
            with atomic.claimed(target):
                pass
        except UsageError as error:
            refused.append(error)

    with atomic.claimed(target):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert f"{target} is being written by another process ({os.getpid()})" in refused[0].message
        with atomic.new_path(target, 1) as path:
            path.write_text("mine")
    assert names(tmp_path) == ["out"]
    second()
    assert len(refused) == 1


def test_a_taken_name_is_never_replaced_by_another_kind(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.touch()
    for target in (folder, file):
        with pytest.raises(UsageError, match="already exists"), atomic.new_path(target, 1):
            pytest.fail("it was begun")
    with pytest.raises(HalfbyteError, match="cannot be written"), atomic.new_path(folder, 1, overwrite=True) as path:
        path.write_text("a file")
    assert folder.is_dir()
    assert names(tmp_path) == ["file", "folder"]
