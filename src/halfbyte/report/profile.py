"""Where the time of one answer goes: every step of every batch, as the core timed it, and what the host did between.

An answer is generated several times, with and without watching, so that the cost of watching is known; the last
watched one is kept. Bytes and operations are those that `halfbyte plan` shows, for the batch that was really run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import UsageError
from halfbyte.formats import Format, get_format
from halfbyte.model import Model
from halfbyte.plan import Batch, Plan, make_plan
from halfbyte.plan.batch import Float32
from halfbyte.report.parts import parts
from halfbyte.runtime import Engine, SamplingParams

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")

ROUNDS = 3
"""Answers of each kind, watched and not, that the cost of watching is judged by."""


@dataclass(frozen=True)
class Run:
    """One batch on the device.

    Attributes:
        start_s, end_s: On the host's clock.
        rows: Rows of logits that were wanted.
        last: The position of its last token.
        step_ns: Nanoseconds of each step of the plan, which fill the end of the run.
    """

    start_s: float
    end_s: float
    tokens: int
    rows: int
    last: int
    step_ns: NDArray[np.int64]

    @property
    def phase(self) -> Phase:
        """A batch of one token decodes."""
        return "decode" if self.tokens == 1 else "prefill"

    @property
    def seconds(self) -> float:
        """From the call to the logits."""
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Turn:
    """One step of the engine: what the host prepared, the batch, and the token that was chosen, if one was."""

    start_s: float
    end_s: float
    run: Run
    token_id: int | None


@dataclass(frozen=True)
class Line:
    """Steps of one kind in one phase.

    Attributes:
        nbytes, flops: Moved and computed by all calls together.
    """

    phase: Phase
    name: str
    calls: int
    seconds: float
    nbytes: float = 0.0
    flops: float = 0.0


@dataclass(frozen=True)
class Profile:
    """One answer, watched.

    Attributes:
        overhead: What watching adds to an answer, as a part of its time; noise may make it negative.
        noise: Half the range of the answers that were not watched, as a part of their time.
        read_bandwidth: Bytes a second that the same threads read from memory, measured after the answer.
    """

    plan: Plan
    turns: tuple[Turn, ...]
    lines: tuple[Line, ...]
    parts: tuple[Line, ...]
    texts: tuple[str, ...]
    overhead: float
    noise: float
    read_bandwidth: float
    device: str

    def of(self, phase: Phase) -> list[Turn]:
        """The engine's steps of a phase."""
        return [turn for turn in self.turns if turn.run.phase == phase]

    def seconds(self, phase: Phase) -> float:
        """Time of a phase, the host's included."""
        return sum(turn.end_s - turn.start_s for turn in self.of(phase))

    def covered(self, phase: Phase) -> float:
        """The steps' sum as a part of the time that the device's runs took."""
        runs = [turn.run for turn in self.of(phase)]
        return sum(float(run.step_ns.sum()) for run in runs) * 1e-9 / sum(run.seconds for run in runs)


def profile(model: Model, prompt_ids: Sequence[int], *, max_tokens: int) -> Profile:
    """Answer a prompt greedily and say what took how long.

    Raises:
        UsageError: The device does not tell the time of steps.
        ContextFullError: The prompt does not fit the context.
    """
    if not hasattr(model.executor, "step_ns"):
        raise UsageError(f"device {model.device} does not time its steps.", "Profile with --device cpu.")
    from halfbyte.cpu.machine import read_bandwidth

    _answer(model, prompt_ids, max_tokens, watched=False)
    plain, watched = [], []
    for _ in range(ROUNDS):
        plain.append(_seconds(_answer(model, prompt_ids, max_tokens, watched=False)))
        turns = _answer(model, prompt_ids, max_tokens, watched=True)
        watched.append(_seconds(turns))
    return Profile(
        plan=model.plan, turns=turns, lines=_lines(model, turns, [type(step).__name__ for step in model.plan.steps]),
        parts=_lines(model, turns, parts(model.plan)), texts=_texts(model, turns),
        overhead=median(watched) / median(plain) - 1, noise=(max(plain) - min(plain)) / 2 / median(plain),
        read_bandwidth=read_bandwidth(int(getattr(model.executor, "threads", 1))), device=model.device,
    )  # fmt: skip


class _Watched:
    """An executor that notes when each batch ran and how long each of its steps took."""

    def __init__(self, model: Model, step_times: bool) -> None:
        self._executor = model.executor
        self._step_times = step_times
        self._nothing = np.zeros(len(model.plan.steps), np.int64)
        self.last: Run | None = None

    @property
    def plan(self) -> Plan:
        return self._executor.plan

    def run(self, batch: Batch) -> Float32:
        start = time.perf_counter()
        logits = self._executor.run(batch)
        end = time.perf_counter()
        step_ns = self._executor.step_ns().copy() if self._step_times else self._nothing  # type: ignore[attr-defined]
        tokens, rows = len(batch.token_ids), len(batch.logit_rows)
        self.last = Run(start, end, tokens, rows, int(batch.positions[-1]), step_ns)
        return logits


def _answer(model: Model, prompt_ids: Sequence[int], max_tokens: int, *, watched: bool) -> tuple[Turn, ...]:
    """Every step of an answer, on an engine of its own: nothing of an earlier answer is reused."""
    executor = _Watched(model, watched)
    engine = Engine(executor, rope_switch=model.spec.rope_switch)
    engine.submit(prompt_ids, SamplingParams(), max_tokens=max_tokens, stop_token_ids=model.spec.stop_token_ids)
    turns = []
    while not engine.idle:
        start = time.perf_counter()
        outputs = engine.step()
        end = time.perf_counter()
        if executor.last is None:
            raise TypeError("the engine ran no batch")
        turns.append(Turn(start, end, executor.last, outputs[0].token_id if outputs else None))
    return tuple(turns)


def _seconds(turns: Sequence[Turn]) -> float:
    return turns[-1].end_s - turns[0].start_s


def _texts(model: Model, turns: Sequence[Turn]) -> tuple[str, ...]:
    """The text of each token that was chosen."""
    return tuple(model.tokenizer.decode([turn.token_id]) for turn in turns if turn.token_id is not None)


def _lines(model: Model, turns: Sequence[Turn], names: Sequence[str]) -> tuple[Line, ...]:
    """Steps of one name added up, by phase; the longest first."""
    costs = _Costs(model)
    found: dict[tuple[Phase, str], Line] = {}
    for turn in turns:
        run = turn.run
        for name, nanoseconds, (nbytes, flops) in zip(names, run.step_ns, costs.of(run), strict=True):
            if nanoseconds == 0:
                continue
            line = found.get((run.phase, name), Line(run.phase, name, 0, 0.0))
            found[run.phase, name] = replace(
                line, calls=line.calls + 1, seconds=line.seconds + float(nanoseconds) * 1e-9,
                nbytes=line.nbytes + nbytes, flops=line.flops + flops,
            )  # fmt: skip
    return tuple(sorted(found.values(), key=lambda line: (PHASES.index(line.phase), -line.seconds)))


class _Costs:
    """Bytes and operations of each step, for batches of any size at any position."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._plans: dict[tuple[int, int], Plan] = {}

    def of(self, run: Run) -> list[tuple[int, int]]:
        """(bytes, operations) of each step of a run, attention's for the positions that its tokens see on average."""
        plan = replace(self._plan(run.tokens, max(1, run.rows)), context=self._mean_context(run))
        return [(plan.bytes_moved(step), step.flops(plan)) for step in plan.steps]

    def _mean_context(self, run: Run) -> int:
        return run.last + 1 - (run.tokens - 1) // 2

    def _plan(self, tokens: int, rows: int) -> Plan:
        if (tokens, rows) not in self._plans:
            self._plans[tokens, rows] = make_plan(
                self._model.spec, self._format, tokens=tokens, rows=rows, context=self._model.plan.context,
                block_size=self._model.plan.block_size, kv_dtype=self._kv_dtype,
            )  # fmt: skip
        return self._plans[tokens, rows]

    def _format(self, name: str) -> Format:
        return get_format(self._model.plan.tensors[name].dtype)

    @cached_property
    def _kv_dtype(self) -> str:
        return self._model.plan.of_kind("cache")[0].dtype
