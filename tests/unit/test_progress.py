"""Loading tells how far it has come: to a function, or with a bar; and the logger what was opened and where it runs."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest

import halfbyte
from halfbyte import progress


def test_loading_is_told_on_the_cpu_too() -> None:
    told: list[tuple[str, int, int]] = []
    with halfbyte.load(threads=1, context=32, progress=lambda *each: told.append(each)) as model:
        nbytes = model.nbytes
    assert len(told) > 10
    assert {(what, total) for what, _, total in told} == {("weights", nbytes)}
    done = [done for _, done, _ in told]
    assert done == sorted(done)
    assert done[-1] == nbytes


def drawn(monkeypatch: pytest.MonkeyPatch, calls: list[tuple[str, int, int]]) -> str:
    """What is written to standard error, a file, for calls that take longer than one has patience."""
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    monkeypatch.setattr("sys.stderr", error := io.StringIO())
    with progress.shown(True) as tick:
        for call in calls:
            tick(*call)
    return error.getvalue()


def test_a_bar_shows_what_is_done_and_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = drawn(monkeypatch, [("weights", 5, 10), ("weights", 10, 10), ("kernels", 1, 4)])
    assert "weights" in shown
    assert "kernels" in shown.split("weights")[-1]


def test_a_bar_is_gone_before_anyone_sees_it_where_work_is_short(capfd: pytest.CaptureFixture[str]) -> None:
    with progress.shown(True) as tick:
        tick("weights", 1, 1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("nothing", [None, False])
def test_nothing_is_shown_unless_asked_for(nothing: bool | None, capfd: pytest.CaptureFixture[str]) -> None:
    with progress.shown(nothing) as tick:
        tick("weights", 1, 2)
    assert capfd.readouterr() == ("", "")


def test_loading_says_what_was_opened_and_where_it_runs_but_no_prompt(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "halfbyte"), halfbyte.load(threads=1, context=64) as model:
        list(model.stream("SECRET"))
    said = "\n".join(f"{record.levelname} {record.getMessage()}" for record in caplog.records)
    assert f"INFO opening {model.path}" in said
    assert "running on cpu: threads=1 was given" in said
    assert "SECRET" not in said


def test_a_library_prints_nothing_by_itself_and_the_command_prints_warnings() -> None:
    code = "import halfbyte; halfbyte.load(threads=1000, context=32).close()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    command = [sys.executable, "-m", "halfbyte", "run", "--threads", "1000", "What does ls do?"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "threads=1000 is more than the processors" in done.stderr
