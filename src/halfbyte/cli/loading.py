"""Loading a model for a command: the options that say which and how, and a progress bar if it takes long.

The options are declared once, for all commands:

    @takes_model("model", "device", "threads")
    def command(prompt: Prompt, *, chosen: Chosen, json: opt.Json = False) -> None:

gives the command `--model`, `--device` and `--threads`, and `chosen` with what was given.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfbyte.cli import options as opt
from halfbyte.cli.declare import Command, takes
from halfbyte.cli.output import note
from halfbyte.cli.usage import in_terminal
from halfbyte.errors import UsageError
from halfbyte.options import RunOptions
from halfbyte.progress import PATIENCE_S
from halfbyte.units import size

if TYPE_CHECKING:
    from halfbyte.model import Model

FILES = ("model", "revision", "offline")
"""Options that say where a model comes from."""

NAMED = "named"
"""The model as an argument, which does the same as `--model`."""

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
ADAPTERS = ("adapters", "merge")
"""Options for adapters; the first one beside the weights answers where none is named."""
_ADAPTERS: dict[str, Any] = {"adapters": opt.Adapters, "merge": opt.Merge}


@dataclass(frozen=True)
class Chosen:
    """The model that a command is to load, and how it is to run."""

    model: str | None
    revision: str | None
    offline: bool
    run: RunOptions

    def load(self) -> Model:
        """As `halfbyte.load`, with a bar on standard error if that is a terminal.

        Answers that name no adapter come with the first one.
        """
        from halfbyte.model import load

        with late_bar() as progress:
            model = load(self.model, self.run, revision=self.revision, offline=self.offline, progress=progress)
        return model.with_adapter(next(iter(self.run.adapters))) if self.run.adapters else model


def takes_model(*names: str) -> Callable[[Command], Command]:
    """Give a command the options named, in the place of its parameter `chosen`.

    `FILES` and `RUN` have all of them; `NAMED` is an argument.
    """
    defaults = {name: option.default for name, option in RunOptions.__dataclass_fields__.items()}

    def chosen(values: dict[str, Any]) -> Chosen:
        files = {name: values.get(name, default) for name, (_, default) in _FILES.items()}
        if values.get(NAMED) is not None:
            files["model"] = values[NAMED]
        run = {name: value for name, value in values.items() if name in _RUN or name == "merge"}
        return Chosen(**files, run=RunOptions(**run, adapters=_named(values.get("adapters") or ())))

    known = {NAMED: (opt.NamedModel, None), **_FILES, **{name: (_RUN[name], defaults[name]) for name in RUN}}
    known |= {name: (option, None) for name, option in _ADAPTERS.items()}
    return takes("chosen", {name: known[name] for name in names}, chosen)


def _named(adapters: Sequence[str]) -> dict[str, str]:
    """Paths of adapters by name; one that has no name is called after the last part of its path.

    Raises:
        UsageError: Two have the same name.
    """
    found: dict[str, str] = {}
    for given in adapters:
        name, equals, path = given.partition("=")
        if not equals:
            name, path = Path(given).name, given
        if name in found:
            raise UsageError(f"two adapters are called {name}.", "Name one of them: --adapter NAME=PATH.")
        found[name] = path
    return found


def say_loaded(model: Model) -> None:
    """Note what was loaded, how long that took, and where it runs."""
    note(f"{model.name}: {size(model.nbytes)}, loaded in {model.load_s:.2f} s")
    note(in_terminal(f"running on {model.device}: {model.why_device}"))
    for line in model.notes:
        note(line)


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
