"""Looks for faster sizes, row by row of the kernels' table, and then whether a whole step is faster with them.

Nothing is taken that the oracle does not confirm, nor what is not faster by more than the noise; where a whole step
is not faster either, its choices are dropped. So a model is never slower for it by more than noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median

from halfbyte.errors import DeviceError
from halfbyte.formats import Format
from halfbyte.gpu.device.device import Device
from halfbyte.gpu.lowering.columns import COLUMNS
from halfbyte.gpu.run.bound import BoundProgram
from halfbyte.gpu.run.pipelines import COMPILERS
from halfbyte.gpu.shaders import rules
from halfbyte.gpu.shaders.family import Constants, Shape
from halfbyte.gpu.shaders.variants import KernelConfig
from halfbyte.gpu.tuning.ab_test import PAIRS, Outcome, ab_test, faster, in_turns
from halfbyte.gpu.tuning.harness import DECODE, LAYERS, PREFILL, SAMPLING, Entry, Harness, smaller
from halfbyte.gpu.tuning.probe import DISTINCT_ROWS, RUNS, SHORT_RUNS, Probe
from halfbyte.gpu.tuning.store import (
    Choices,
    Measured,
    Verdict,
    keep_choices,
    load_choices,
    model_key,
)
from halfbyte.models.spec import ModelSpec

FULL = {DECODE: 0.35, PREFILL: 0.2, SAMPLING: 0.05} | {f"{columns} tokens": 0.07 for columns in COLUMNS[1:]}
"""Phases, and the part of the time that each may take."""
BUDGET_S = 60.0
SHORT_BUDGET_S = 3.2
SHORT_LAYERS = 4
ROW_WARM_UP_S = 0.1
SHORT = {DECODE: 0.7, PREFILL: 0.3}
SHORT_SHARE = 0.1
"""The short version looks at rows that take at least this part of a phase."""

_Begun = tuple[KernelConfig, BoundProgram]
"""Kernels that are looked at, and a program of them."""


@dataclass(frozen=True)
class _Row:
    """A row to be tuned: its first other sizes tell which dispatches it is about."""

    name: str
    family: str
    shape: Shape
    candidates: list[Constants]
    seconds: float


def tune(
    device: Device,
    spec: ModelSpec,
    formats: Callable[[str], Format],
    *,
    tokens: int,
    kv_dtype: str = "f16",
    activations: str = "int8",
    budget_s: float = BUDGET_S,
    short: bool = False,
    path: Path | None = None,
) -> Iterator[Measured | Verdict]:
    """Tune a model's kernels on a device; what is found is remembered as it comes.

    Args:
        device: Used for nothing else meanwhile.
        tokens: Prompt tokens that are computed together.
        budget_s: About how long it may take; making ready comes on top.
        short: Only the kernels that take the most time, without the output matrix.
        path: Where choices are kept, if not in the user's cache.

    Raises:
        HalfbyteError: The choices cannot be written; found out before anything is timed.
        DeviceError: The device has no room, or failed.
    """
    began = time.perf_counter()
    choices = load_choices(device, path)
    keep_choices(device, choices, path)
    vocabulary = DISTINCT_ROWS if short else None
    bench = Harness(
        device, spec, formats, tokens=tokens, kv_dtype=kv_dtype, activations=activations,
        layers=SHORT_LAYERS if short else LAYERS, vocabulary=vocabulary,
    )  # fmt: skip
    cut, runs = smaller(spec, len(spec.layers), vocabulary), SHORT_RUNS if short else RUNS
    plan, pipelines = bench.executor.plan, bench.executor.pipelines
    probe = Probe(
        device, cut, formats, bench.config, tokens=plan.tokens, context=plan.context, kv_dtype=kv_dtype,
        pipelines=pipelines, runs=runs,
    )  # fmt: skip
    spent = time.perf_counter() - began if short else 0.0
    tuner = Tuner(
        bench, probe, choices, model=model_key(spec, formats, kv_dtype, activations), layers=len(spec.layers),
        budget_s=budget_s - spent, short=short,
    )  # fmt: skip
    for found in tuner.run():
        keep_choices(device, choices, path)
        yield found
    keep_choices(device, choices, path)


class Tuner:
    """Tunes a model on a workbench.

    Args:
        layers: Of the whole model, where the workbench has fewer.
        model: What verdicts are remembered by.
        budget_s: Seconds that all of it may take.
        short: Only the rows that take the most time.
        now: The time in seconds.
    """

    def __init__(
        self,
        bench: Harness,
        probe: Probe,
        choices: Choices,
        *,
        model: str,
        layers: int,
        budget_s: float,
        short: bool = False,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._bench, self._probe, self._choices = bench, probe, choices
        self._model, self._short, self._now = model, short, now
        self._scale = layers / len(bench.spec.layers)
        self._shares = dict(SHORT if short else FULL)
        self._end = now() + budget_s
        self._done: set[str] = set()

    def run(self) -> Iterator[Measured | Verdict]:
        """Tune every phase; each result is in the choices when it comes."""
        verdicts: list[Verdict] = []
        for phase in list(self._shares):
            share = self._shares[phase] / sum(self._shares.values())
            del self._shares[phase]
            end = self._now() + share * max(0.0, self._end - self._now())
            won: list[Measured] = []
            for measured in self._rows(phase, end):
                self._choices.rows[measured.row] = measured
                won += [measured] if measured.sizes else []
                yield measured
            if won:
                verdicts.append(self._verdict(phase, won))
                self._choices.verdicts[self._model] = verdicts
                yield verdicts[-1]
        self._choices.verdicts[self._model] = verdicts
        (self._choices.short.add if self._short else self._choices.short.discard)(self._model)

    def _rows(self, phase: str, end: float) -> Iterator[Measured]:
        usual = self._bench.program(phase, self._bench.config)
        self._bench.warm_up(ROW_WARM_UP_S)
        rows = self._found(phase, usual)
        for i, row in enumerate(rows):
            if i and self._now() > self._end:
                break
            left = sum(max(other.seconds, rows[0].seconds / 8) for other in rows[i:])
            until = self._now() + max(row.seconds, rows[0].seconds / 8) / left * (end - self._now())
            yield self._tuned(phase, row, usual, until)
            self._done.add(row.name)
        self._bench.discard(usual)

    def _found(self, phase: str, usual: BoundProgram) -> list[_Row]:
        """The rows of a phase that have other sizes, those that take the longest first."""
        found = []
        for name, (family, shape) in self._bench.rows(phase).items():
            candidates = rules.FAMILIES[family].candidates(self._bench.config, shape)
            if candidates and name not in self._done:
                found.append((_Row(name, family, shape, candidates, 0.0), self._begun(phase, name, candidates[0])))
        rows = []
        for row, first in found:
            others = (self._begun(phase, row.name, sizes) for sizes in row.candidates[1:])
            made = (self._entries(phase, begun, usual) for begun in chain([first], others))
            if entries := next(filter(None, made), None):
                rows.append(replace(row, seconds=self._bench.seconds(entries[0])))
                self._bench.discard(entries[1].program, usual)
        if self._short and rows:
            rows = [row for row in rows if row.seconds >= SHORT_SHARE * sum(row.seconds for row in rows)]
        return sorted(rows, key=lambda row: -row.seconds)

    def _begun(self, phase: str, row: str, sizes: Constants) -> _Begun | None:
        """A phase's program with other sizes in a row, still being compiled; None where there is no room for it."""
        config = replace(self._bench.config, tuning=self._bench.config.tuning.merged(row, sizes))
        try:
            return config, self._bench.program(phase, config)
        except DeviceError:
            return None

    def _entries(self, phase: str, begun: _Begun | None, usual: BoundProgram) -> tuple[Entry, Entry] | None:
        """The dispatches that other sizes change, before and after; None if they change none, or do not compile."""
        if begun is None:
            return None
        config, program = begun
        try:
            entries = self._bench.differing(phase, config, program, usual)
            if entries[0].dispatches and entries[1].dispatches:
                return entries
        except DeviceError:
            pass
        self._bench.discard(program, usual)
        return None

    def _tuned(self, phase: str, row: _Row, usual: BoundProgram, until: float) -> Measured:
        made: dict[int, tuple[Entry, Entry]] = {}

        def seconds(which: int, i: int) -> float:
            try:
                return self._bench.seconds(made[i][which])
            except DeviceError:
                return float("inf")

        def right(i: int) -> bool:
            agrees = self._probe.right(made[i][1].config)
            self._bench.warm_up(ROW_WARM_UP_S)
            return agrees

        compiled = (self._now() + until) / 2
        for first in range(0, len(row.candidates), COMPILERS):
            if first and self._now() >= compiled:
                break
            some = row.candidates[first : first + COMPILERS]
            for i, begun in enumerate([self._begun(phase, row.name, sizes) for sizes in some], first):
                if pair := self._entries(phase, begun, usual):
                    made[i] = pair
        if not made:
            raise DeviceError(f"{self._bench.device.name} failed while {row.name} was timed.", "Update its driver.")
        self._bench.warm_up(ROW_WARM_UP_S)
        best = ab_test(
            list(made),
            usual=partial(seconds, 0),
            other=partial(seconds, 1),
            right=right,
            enough=lambda: self._now() > until,
        )
        for _, other in made.values():
            self._bench.discard(other.program, usual)
        shown = made[next(iter(made)) if best.winner is None else best.winner]
        return self._measured(phase, row, best, shown[0])

    def _measured(self, phase: str, row: _Row, best: Outcome[int], entry: Entry) -> Measured:
        dispatches = entry.dispatches
        a_layer = len(dispatches) >= len(self._bench.spec.layers)
        scale = (self._scale if a_layer else 1.0) / len(entry.commands)
        usual = rules.FAMILIES[row.family](self._bench.config, **row.shape)
        return Measured(
            row=row.name,
            model=self._model,
            label=" + ".join(dict.fromkeys(dispatch.label for dispatch in dispatches)),
            phase=phase,
            usual={name: usual[name] for name in row.candidates[0]},
            sizes={} if best.winner is None else row.candidates[best.winner],
            usual_s=best.usual_s * scale,
            best_s=best.winner_s * scale,
            calls=round(len(dispatches) * (self._scale if a_layer else 1.0)),
            tried=best.tried,
            wrong=best.wrong,
        )

    def _verdict(self, phase: str, won: list[Measured]) -> Verdict:
        """Time the whole program with all that won; where it is not faster, or not right, they are dropped."""
        tuning = self._bench.config.tuning
        for measured in won:
            tuning = tuning.merged(measured.row, dict(measured.sizes))
        config = replace(self._bench.config, tuning=tuning)
        agrees = self._probe.right(config)
        usual, tuned = (self._bench.whole(phase, c) for c in (self._bench.config, config))
        self._bench.warm_up(ROW_WARM_UP_S)
        before, after = in_turns(partial(self._bench.seconds, usual), partial(self._bench.seconds, tuned), PAIRS)
        kept = agrees and faster(before, after)
        if not kept:
            for measured in won:
                self._choices.rows[measured.row] = replace(measured, sizes={})
        for entry in (usual, tuned):
            self._bench.discard(entry.program)
        share = 1 / len(usual.commands)
        return Verdict(phase, len(self._bench.spec.layers), median(before) * share, median(after) * share, kept)
