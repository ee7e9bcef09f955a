"""Loading a model for a command: the options that say which and how, and a progress bar if it takes long.

The options are declared once, for all commands:

    @takes_model("model", "device", "threads")
    def command(prompt: Prompt, *, chosen: Chosen, json: opt.Json = False) -> None:

gives the command `--model`, `--device` and `--threads`, and `chosen` with what was given.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from halfbyte.cli import options as opt
from halfbyte.options import RunOptions

if TYPE_CHECKING:
    from halfbyte.model import Model

FILES = ("model", "revision", "offline")
"""Options that say where a model comes from."""

_FILES: dict[str, tuple[Any, Any]] = {
    "model": (opt.Model, None), "revision": (opt.Revision, None), "offline": (opt.Offline, False),
}  # fmt: skip
_RUN: dict[str, Any] = {
    "device": opt.DeviceOption, "gpu": opt.Gpu, "weights": opt.Weights, "kv_dtype": opt.KvCacheOption,
    "activations": opt.ActivationsOption, "context": opt.Context, "threads": opt.Threads,
    "batch_tokens": opt.BatchTokens, "cache_tokens": opt.CacheTokens,
}  # fmt: skip
"""Options that say how a model is run: fields of `RunOptions`, with its defaults."""

RUN = tuple(_RUN)

PATIENCE_S = 0.5
"""A bar that is gone sooner is only a flicker."""


@dataclass(frozen=True)
class Chosen:
    """The model that a command is to load, and how it is to run."""

    model: str | None
    revision: str | None
    offline: bool
    run: RunOptions

    def load(self) -> Model:
        """As `halfbyte.load`, with a bar on standard error if that is a terminal."""
        from halfbyte.model import load

        with late_bar() as progress:
            return load(self.model, self.run, revision=self.revision, offline=self.offline, progress=progress)


def takes_model(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options named, in the place of its parameter `chosen`; `FILES` and `RUN` have all of them."""
    defaults = {name: option.default for name, option in RunOptions.__dataclass_fields__.items()}
    given = {name: _FILES.get(name) or (_RUN[name], defaults[name]) for name in names}
    mine = [
        Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for name, (annotation, default) in given.items()
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapper(**values: Any) -> None:
            files = {name: values.pop(name, default) for name, (_, default) in _FILES.items()}
            run = RunOptions(**{name: values.pop(name) for name in given if name in _RUN})
            command(**values, chosen=Chosen(**files, run=run))

        own = signature(command, eval_str=True).parameters.values()
        before = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in own]
        at = next(i for i, each in enumerate(before) if each.name == "chosen")
        parameters = [*before[:at], *mine, *before[at + 1 :]]
        wrapper.__dict__["__signature__"] = signature(command).replace(parameters=parameters)
        wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
        return wrapper

    return decorate


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
            from halfbyte.cli.progress import progress_bar

            self._draw = self._stack.enter_context(progress_bar())
        if self._draw is not None:
            self._draw(what, done, total)
