"""How long work will still take, by the pace so far."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from halfbyte.cli import loading, progress
from halfbyte.progress import PATIENCE_S


def test_the_time_left_follows_from_the_pace_of_the_part(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("halfbyte.cli.progress.time.monotonic", lambda: now)
    said: list[str] = []
    tick = progress.timed(lambda what, done, total: said.append(what))
    for at, what, done, total in [
        (0.0, "layer 5", 4, 10),  # four were finished by an earlier command
        (60.0, "layer 6", 5, 10),
        (120.0, "layer 7", 6, 10),
        (360.0, "done", 10, 10),
        (361.0, "writing", 0, 100),
        (362.0, "writing", 50, 100),
    ]:
        now = at
        tick(what, done, total)
    assert said == [
        "layer 5", "layer 6, about 5 min left", "layer 7, about 4 min left", "done", "writing",
        "writing, about 1 s left",
    ]  # fmt: skip
    assert capsys.readouterr().err == "This will take about 5 min more, at the pace so far.\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "about 1 s"), (89, "about 89 s"), (600, "about 10 min"), (9000, "about 2.5 h")]
)
def test_durations_are_in_one_unit(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_a_bar_comes_only_once_loading_takes_as_long_as_it_does_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, int, int]] = []

    @contextmanager
    def bar() -> Iterator[progress.Tick]:
        yield lambda *step: drawn.append(step)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    now = 100.0
    monkeypatch.setattr("halfbyte.cli.loading.time.perf_counter", lambda: now)
    monkeypatch.setattr("halfbyte.cli.progress.progress_bar", bar)
    monkeypatch.setattr("sys.stderr", Terminal())
    with loading.late_bar() as tick:
        for after in (0.0, 0.9, 1.1):
            now = 100.0 + after * PATIENCE_S
            tick("weights", round(10 * after), 20)
    assert drawn == [("weights", 11, 20)]
