"""What was measured once is kept in small files: whole or as they were, and never trusted when damaged."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from halfbyte import user_cache
from halfbyte.errors import HalfbyteError


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"schema": 2, "values": {}}', '{"schema": 1, "values": 3}', "\xff"])
def test_a_damaged_file_or_another_schema_is_ignored_with_a_sentence(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "known.json"
    file.write_bytes(text.encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        assert user_cache.load(file, 1) == {}
    assert f"{file} is ignored" in caplog.text
    user_cache.store(file, 1, {"a": 1})
    assert user_cache.load(file, 1) == {"a": 1}


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "known.json"
    user_cache.store(file, 1, {"a": 1})

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("halfbyte.atomic.os.fsync", full)
    with pytest.raises(HalfbyteError, match="cannot be written: No space left on device"):
        user_cache.store(file, 1, {"a": 2})
    assert user_cache.load(file, 1) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["known.json"]


def test_a_cache_that_cannot_be_written_stops_only_who_must_know(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HalfbyteError, match="cannot be written"):
        user_cache.store(tmp_path / "file" / "known.json", 1, {})
    user_cache.store_if_possible(tmp_path / "file" / "known.json", 1, {})
