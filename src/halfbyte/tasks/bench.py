"""`halfbyte.bench`: measure how fast a model is on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

from halfbyte import display
from halfbyte.errors import UsageError
from halfbyte.executors import Progress
from halfbyte.options import LoadOptions, RunOptions
from halfbyte.placement import choose_device
from halfbyte.progress import shown
from halfbyte.report import subject, tables
from halfbyte.report.bench import bench as measure
from halfbyte.report.schema import Record, cases
from halfbyte.report.subject import Settings, Subject

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Benchmark:
    """What `bench` has measured. Printed, it is the table that the command shows.

    Attributes:
        records: One per case, with raw samples, machine, versions and settings.
    """

    records: tuple[Record, ...]

    @property
    def figures(self) -> list[dict[str, float | None]]:
        """The medians of each case by their names in the table, such as `tokens/s`; None where nothing is measured."""
        return [
            {column.name: found.value if (found := column.figure(record)) else None for column in tables.COLUMNS}
            for record in self.records
        ]

    def __repr__(self) -> str:
        cases = ", ".join(map(tables.label, self.records))
        return f"<Benchmark of {tables.where(self.records[0])}: {cases}>"

    def __str__(self) -> str:
        return tables.terminal(self.records)

    def _repr_html_(self) -> str:
        rows = [[column.name, *map(column.cell, self.records)] for column in tables.COLUMNS]
        known = [row for row in rows if any(cell != tables.NONE for cell in row[1:])]
        head = ["", *map(tables.label, self.records)]
        return display.table(known, head=head, caption=tables.heading(self.records[0]))


def bench(
    model: str | Path | None = None,
    options: RunOptions | str | None = None,
    *,
    prompt_tokens: int | Iterable[int] = 128,
    new_tokens: int | Iterable[int] = 32,
    depth: int | Iterable[int] = 0,
    batch: int | Iterable[int] = 1,
    repeat: int = 5,
    warm_up: int = 1,
    each_token: bool = False,
    synthetic: str | None = None,
    layers: int | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress | bool | None = None,
    **changes: Unpack[LoadOptions],
) -> Benchmark:
    """Measure how fast a model reads prompts and generates tokens, after a correctness check.

    Of numbers that are lists, every combination is a case.

    Args:
        model: A folder, a GGUF file, a hub id, or None for the pocket model.
        options: How to run it: `RunOptions`, or only the name of a device. Its context and sequences follow from the
            cases.
        prompt_tokens: Prompt lengths, in tokens.
        new_tokens: Tokens to generate.
        depth: Tokens in the cache before the prompt.
        batch: Sequences at once.
        repeat: Repetitions of each case.
        warm_up: Repetitions before those that count.
        each_token: On a GPU, read each token back before starting the next.
        synthetic: Measure random weights in the shapes of this model of the catalog, without a download.
        layers: With `synthetic`: use only so many layers.
        revision, offline: As for `load`.
        progress: True for a bar on the terminal or in the notebook while the model is loaded, or a function, called as
            progress(what, done, all).
        **changes: Fields of `RunOptions`, such as `threads=4`, in place of those in `options`.

    Raises:
        UsageError: A number is out of range, or options contradict each other.
        ContextFullError: A case needs more positions than the model has.
        DeviceError: The device computes something else than the reference, or the model does not fit it.
        ModelNotFoundError, DownloadError, InvalidModelError, UnsupportedModelError: As for `load`.
    """
    if repeat < 1 or warm_up < 0:
        raise UsageError(f"{repeat} repetitions after {warm_up} cannot be measured.", "Give at least 1 and 0.")
    wanted = cases(*map(_numbers, (prompt_tokens, new_tokens, depth, batch)))
    run = RunOptions.of(options, **changes)
    settings = Settings(replace(run, device=choose_device(run)[0]), repeat, warm_up, each_token)
    measured = _subject(model, synthetic, layers, revision, offline, run.weights)
    with shown(progress) as tick:
        records = tuple(measure(measured, settings, wanted, _log.info, lambda: nullcontext(tick)))
    return Benchmark(records)


def _numbers(given: int | Iterable[int]) -> list[int]:
    return [given] if isinstance(given, int) else list(dict.fromkeys(given))


def _subject(
    model: str | Path | None, synthetic: str | None, layers: int | None, revision: str | None, offline: bool,
    weights: str | None,
) -> Subject:  # fmt: skip
    if synthetic is None:
        if layers is not None:
            raise UsageError("layers only applies to synthetic weights.", "Leave out layers, or give synthetic.")
        return subject.stored(model, revision=revision, offline=offline, weights=weights)
    if model is not None or revision is not None or offline:
        raise UsageError("synthetic cannot be combined with a stored model.", "Leave out one of the two.")
    return subject.synthetic(synthetic, layers=layers, weights=weights)
