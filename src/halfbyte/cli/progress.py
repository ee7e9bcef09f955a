"""How far long work has come: a bar on a terminal, a line now and then elsewhere, always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from halfbyte.cli.output import note

Tick = Callable[[str, int, int], None]
"""Called as tick(what, done, all), all being 0 where nobody knows."""

LINE_EVERY_S = 30.0
"""Where there is no terminal, a line is printed at most this often."""
LONG_S = 20.0
"""What takes less is not worth an announcement."""


def timed(tick: Tick) -> Tick:
    """Adds the time left to what is said, by the pace of this part of the work.

    Where there is no bar, the first estimate is also a line.

    A part begins when the number of all steps changes. What an earlier command has done of it does not count.
    """
    part, began, first, announced = 0, 0.0, 0, False

    def advance(what: str, done: int, total: int) -> None:
        nonlocal part, began, first, announced
        now = time.monotonic()
        if total != part:
            part, began, first = total, now, done
        if done in (first, total):
            tick(what, done, total)
            return
        left = (now - began) / (done - first) * (total - done)
        if left > LONG_S and not announced and not sys.stderr.isatty():
            announced = True
            note(f"This will take {duration(left)} more, at the pace so far.")
        tick(f"{what}, {duration(left)} left", done, total)

    return advance


def duration(seconds: float) -> str:
    """About how long, in one unit."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


@contextmanager
def progress_bar() -> Iterator[Tick]:
    """Gives what to call with (what, done, all)."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def advance(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None)

        yield advance


def _lines() -> Tick:
    last = time.monotonic()

    def line(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY_S:
            last = time.monotonic()
            note(f"{100 * done // total}%: {what}" if total else what)

    return line
