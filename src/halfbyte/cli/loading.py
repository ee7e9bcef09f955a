"""Loading a model for a command: with a progress bar where it takes long enough to be seen."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halfbyte.model import Model

PATIENCE_S = 0.5
"""A bar that is gone sooner is only a flicker."""


def load_model(model: str | None, device: str, **options: Any) -> Model:
    """As `halfbyte.load`, with a bar on standard error if that is a terminal."""
    from halfbyte.model import load

    with late_bar() as progress:
        return load(model, device, progress=progress, **options)


@contextmanager
def late_bar() -> Iterator[Callable[[str, int, int], None]]:
    """What to call with (what, done, all): draws a bar on standard error, a terminal, once it takes long."""
    with ExitStack() as stack:
        yield _Late(stack)


class _Late:
    """What to call with (what, done, all): draws a bar once loading takes long, until the stack is closed."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._began = time.perf_counter()
        self._draw: Callable[[str, int, int], None] | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._draw is None and sys.stderr.isatty() and time.perf_counter() - self._began > PATIENCE_S:
            from halfbyte.cli.quantize import progress_bar

            self._draw = self._stack.enter_context(progress_bar())
        if self._draw is not None:
            self._draw(what, done, total)
