"""How far long work has come: told to a function, or shown as a bar on a terminal or in a notebook."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from halfbyte.executors import Progress

PATIENCE_S = 0.5
"""Seconds before a bar shows, in Python and in commands: one that is gone sooner is only a flicker."""


@contextmanager
def shown(progress: Progress | bool | None) -> Iterator[Progress]:
    """What to call with (what, done, all).

    Args:
        progress: A function of one's own, True for a bar that disappears at the end, False or None for nothing.
    """
    if callable(progress):
        yield progress
    elif progress:
        bar = _Bar()
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield lambda what, done, total: None


# Commands have bars of rich: their clock runs on between steps, and notes stand above them. Only tqdm suits notebooks.
class _Bar:
    """Draws what it is called with: a new bar for each part of the work that is counted anew."""

    def __init__(self) -> None:
        self._tqdm = _tqdm()
        self._bar: Any = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._bar is None or total != self._bar.total or done < self._bar.n:
            self.close()
            self._bar = self._tqdm(
                desc=what, total=total, delay=PATIENCE_S, leave=False, dynamic_ncols=True,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
            )  # fmt: skip
        self._bar.set_description_str(what, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


def _tqdm() -> Any:
    """The bar that suits where this runs: in a notebook a widget, or a line of text where widgets are not installed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.auto import tqdm
    return tqdm
