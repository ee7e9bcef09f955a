"""The prompts of `run --prompts`: a line of JSON each, from a file or as they come through standard input.

A line becomes a request (`batch_lines.py`), a thread of its own begins the answers, and they are printed in the order
of the lines. With `--output` they go to a file, which says how far an earlier command came (`batch_results.py`).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from itertools import chain
from json import dumps, loads
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import typer

from halfbyte.cli.answering import Stats, answer, record, say_cut
from halfbyte.cli.batch_lines import Line, lines_of, request_of
from halfbyte.cli.batch_results import Results
from halfbyte.cli.output import note, print_error, print_json
from halfbyte.cli.progress import Tick, progress_bar
from halfbyte.cli.prompts import Request, placed
from halfbyte.errors import ContextFullError, HalfbyteError, TemplateError, UsageError

if TYPE_CHECKING:
    from halfbyte.answer import Generation, Stream
    from halfbyte.model import Model
    from halfbyte.runtime import Grammar

SEQUENCES = 8
"""Prompts that are answered at once."""
AHEAD = 4
"""Answers that are begun ahead of the one that is printed, for each sequence: short ones do not wait for a long one."""

_OF_ONE_LINE = (UsageError, ContextFullError, TemplateError)
"""Errors that say nothing about the other lines."""

Begun = tuple[Line, Request, "Stream | HalfbyteError"]
Write = Callable[[Line, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Batch:
    """Lines that are still to be answered.

    Attributes:
        lines: Number and text of each, from the first one that an earlier command has not answered.
        total: How many there are; None where they come through a pipe.
        where: Where they come from, for messages.
        options: What holds for each line that does not say otherwise.
        results: The file for the answers, if there is one.
    """

    lines: Iterator[Line]
    total: int | None
    where: str
    options: Mapping[str, Any]
    results: Results | None

    @property
    def together(self) -> int:
        """How many are answered at once by default."""
        return min(SEQUENCES, self.total or SEQUENCES)


def open_batch(path: Path, options: Mapping[str, Any], results: Results | None) -> Batch | None:
    """The lines of a file, or of standard input for `-`; None if all are answered already.

    Raises:
        UsageError: They cannot be read, none of them is a request, or the results are those of other lines.
    """
    where = "standard input" if str(path) == "-" else str(path)
    total = _count(path, where, options) if path.is_file() else None
    lines, done = lines_of(path), 0
    if results is not None:
        lines, done = results.skip(lines)
    first = next(lines, None)
    if first is None and not done:
        raise UsageError(f"{where!r} holds no prompts.", 'Write one per line: {"prompt": "…"}')
    if done and results is not None:
        rest = "nothing is left to do" if first is None else "going on from there"
        note(f"{results.path} has answers to {done:,} lines already: {rest}.")
    if first is None:
        return None
    return Batch(chain([first], lines), total and total - done, where, options, results)


def _count(path: Path, where: str, options: Mapping[str, Any]) -> int:
    """The number of lines in a file.

    Raises:
        UsageError: It has lines, and none of them is a request; the error is that of the first.
    """
    count, first, fine = 0, None, False
    for line in lines_of(path):
        count += 1
        if not fine:
            error = request_of(line, where, options).error
            first, fine = first or error, error is None
    if first is not None and not fine:
        raise first
    return count


def answer_batch(
    model: Model,
    batch: Batch,
    together: int,
    grammar: Grammar | None,
    *,
    json: bool,
    stats: Stats | None,
    verbose: bool,
) -> None:
    """Answer the lines of a batch; the errors of single lines are printed, and the first gives the exit code.

    Args:
        together: How many are computed at once.
        grammar: What holds the answers of lines without a schema of their own.
    """
    with nullcontext(_print if json else None) if batch.results is None else batch.results.opened() as write:
        _answer_all(model, batch, together, grammar, write, stats=stats, verbose=verbose)


def _print(line: Line, values: Mapping[str, Any]) -> None:
    print_json({"line": line.number} | dict(values) | {"line": line.number})


def _answer_all(
    model: Model,
    batch: Batch,
    together: int,
    grammar: Grammar | None,
    write: Write | None,
    *,
    stats: Stats | None,
    verbose: bool,
) -> None:
    failed: list[HalfbyteError] = []
    hidden = batch.results is not None or (write is not None and not sys.stdout.isatty())
    bar = progress_bar() if hidden else nullcontext(None)
    with closing(_begun(model, batch, grammar, AHEAD * together)) as begun, bar as tick:
        speed = _Speed(tick, batch.total)
        for index, (line, request, stream) in enumerate(begun):
            if write is None and batch.total != 1:
                sys.stdout.write("\n" * (index > 0))
                note(f"> {request.where if request.error else request.shown}")
            try:
                if isinstance(stream, HalfbyteError):
                    raise stream
                generation, tokens = answer(model, request, stream, stats, echo=write is None)
            except _OF_ONE_LINE as error:
                failed.append(error)
                print_error(error.message, error.hint)
                if write is not None:
                    write(line, {**request.given, "error": _described(error)})
                speed.done()
                continue
            if write is not None:
                write(line, record(request, generation, tokens))
            else:
                say_cut(model, request, generation, always=verbose)
            speed.done(generation)
    if failed:
        raise typer.Exit(failed[0].exit_code)


def _described(error: HalfbyteError) -> dict[str, str]:
    return {"type": type(error).__name__, "message": error.message, "hint": error.hint}


class _Speed:
    """How far a batch has come, and how fast, told to a bar after each answer."""

    def __init__(self, tick: Tick | None, total: int | None) -> None:
        self._tick, self._total = tick, total
        self._began = time.monotonic()
        self._done = self._tokens = 0

    def done(self, generation: Generation | None = None) -> None:
        """Count a line, and the tokens of its answer."""
        self._done += 1
        self._tokens += generation.new_tokens if generation else 0
        if self._tick is not None:
            self._tick(self._said(time.monotonic() - self._began), self._done, self._total or 0)

    def _said(self, seconds: float) -> str:
        speed = f"{self._tokens / max(seconds, 1e-9):,.0f} tokens/s"
        if self._total is None:
            return f"{self._done:,} answered, {speed}"
        left = timedelta(seconds=round(seconds / self._done * (self._total - self._done)))
        return f"{self._done:,} of {self._total:,}, {speed}, {left} left"


def _begun(model: Model, batch: Batch, grammar: Grammar | None, ahead: int) -> Generator[Begun, None, None]:
    """Each line with its answer, or why it has none.

    A thread reads the lines and begins their answers, so that those of a slow pipe begin as its lines come.
    """
    ready: SimpleQueue[Begun | BaseException | None] = SimpleQueue()
    room, ended = threading.Semaphore(ahead), threading.Event()
    grammar_of = lru_cache(maxsize=32)(lambda schema: model.grammar.json_schema(loads(schema)))

    def begin(request: Request) -> Stream | HalfbyteError:
        if request.error is not None:
            return request.error
        options = dict(request.options)
        own = options.pop("json_schema", None)
        try:
            held = grammar if own is None else grammar_of(dumps(own))
            if held is not None:
                options["grammar"] = held
            return model.submit(request.prompt, **options)
        except HalfbyteError as error:
            return placed(error, request)

    def begin_all() -> None:
        try:
            for line in batch.lines:
                room.acquire()
                if ended.is_set():
                    return
                request = request_of(line, batch.where, batch.options)
                ready.put((line, request, begin(request)))
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    threading.Thread(target=begin_all, name="halfbyte batch", daemon=True).start()
    try:
        while (found := ready.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found
            room.release()
    finally:
        ended.set()
        room.release()
        while not ready.empty():
            left = ready.get()
            if isinstance(left, tuple) and not isinstance(left[2], HalfbyteError):
                left[2].close()
