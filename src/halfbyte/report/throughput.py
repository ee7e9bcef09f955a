"""Measure many conversations: requests come when they are due, one engine answers them, every token is timed.

One thread submits, steps and reads the clock, so that nothing else runs beside the engine. A request that comes during
a step is submitted after it; its times count from when it was due.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from halfbyte.plan import Executor
from halfbyte.report.bench import Loaded, Loading, Say, check_fits, load
from halfbyte.report.subject import Settings, Subject
from halfbyte.report.throughput_schema import Request, Step, ThroughputRecord
from halfbyte.report.workload import Arrival, Workload, arrivals
from halfbyte.runtime import Engine, SamplingParams
from halfbyte.runtime.sequence import Sequence

WARM_UP_TOKENS = 8
"""The most tokens of an answer that does not count."""

DIGITS = 6
"""Times are kept in whole microseconds."""


def throughput(
    subject: Subject,
    settings: Settings,
    workload: Workload,
    say: Say,
    finished: Callable[[ThroughputRecord], None],
    loading: Loading = nullcontext,
) -> None:
    """Check and load a model, and measure a workload on it, after `settings.warm_up` requests that do not count.

    Args:
        say: Told what is being done.
        finished: Gets the record; when an exception ends the measurement, of what was measured until then.

    Raises:
        ContextFullError: The longest possible request needs more positions than the model has.
        DeviceError: The device computes something else than the reference, or failed.
        MemoryError: The model or its cache does not fit.
        UsageError: A setting that the device does not have.
    """
    check_fits(subject, "the longest request", workload.context)
    sequences = settings.run.sequences
    loaded = load(subject, settings, say, loading, context=workload.context, sequences=sequences)
    try:
        _measure(loaded, workload, say, finished)
    finally:
        loaded.executor.close()


def _measure(loaded: Loaded, workload: Workload, say: Say, finished: Callable[[ThroughputRecord], None]) -> None:
    spec, warm_up = loaded.subject.spec, loaded.settings.warm_up

    def run_of(asked: Workload) -> Run:
        """A run with caches that are empty."""
        engine = Engine(loaded.executor, rope_switch=spec.rope_switch)
        return Run(engine, loaded.executor, arrivals(asked, spec.vocab_size))

    if warm_up:
        say(f"{loaded.subject.name}: warming up")
        run_of(_warming(workload, warm_up)).to_the_end()
    say(f"{loaded.subject.name}: {workload.requests} requests")
    run = run_of(workload)
    try:
        run.to_the_end()
    finally:
        if run.steps:
            finished(_record(loaded, workload, run))


def _warming(workload: Workload, requests: int) -> Workload:
    """Requests of the same lengths, all at once, with short answers."""
    fewest, most = (min(tokens, WARM_UP_TOKENS) for tokens in workload.new_tokens)
    return replace(workload, requests=requests, new_tokens=(fewest, most), rate=None)


def _record(loaded: Loaded, workload: Workload, run: Run) -> ThroughputRecord:
    return ThroughputRecord(
        time=datetime.now(UTC).isoformat(timespec="seconds"), workload=workload, requests=run.requests,
        steps=tuple(run.steps), load_s=loaded.load_s, **loaded.record(),
    )  # fmt: skip


@dataclass
class _Answer:
    """A request that has come, and what its answer has so far."""

    arrival: Arrival
    sequence: Sequence
    token_s: list[float] = field(default_factory=list)

    def request(self) -> Request:
        """It, for the record."""
        arrival, sequence = self.arrival, self.sequence
        return Request(
            round(arrival.due_s, DIGITS), len(arrival.prompt_ids), sequence.num_cached_tokens,
            sequence.num_preemptions, arrival.new_tokens, tuple(self.token_s),
        )  # fmt: skip


class Run:
    """Gives requests to an engine when they are due, and notes what comes back when.

    Args:
        executor: The one that the engine runs on.
        coming: In the order in which they are due.
        now: A clock, in seconds.
        thread_now: The CPU time of this thread, in seconds.
        sleep: Waits so many seconds.

    Attributes:
        steps: Those made so far.
    """

    def __init__(
        self,
        engine: Engine,
        executor: Executor,
        coming: Iterable[Arrival],
        *,
        now: Callable[[], float] = time.perf_counter,
        thread_now: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.steps: list[Step] = []
        self._engine, self._executor = engine, executor
        self._coming = deque(coming)
        self._now, self._thread_now, self._sleep = now, thread_now, sleep
        self._answers: list[_Answer] = []
        self._open: dict[Sequence, _Answer] = {}
        self._began = 0.0

    @property
    def requests(self) -> tuple[Request, ...]:
        """Those that have come."""
        return tuple(answer.request() for answer in self._answers)

    def to_the_end(self) -> None:
        """Answer all requests. Raises what `Engine.step` does."""
        self._began = self._now()
        while self._coming or not self._engine.idle:
            self._submit_due()
            if self._engine.idle:
                self._sleep(max(0.0, self._coming[0].due_s - self._elapsed()))
            else:
                self._step()

    def _elapsed(self) -> float:
        return self._now() - self._began

    def _submit_due(self) -> None:
        while self._coming and self._coming[0].due_s <= self._elapsed():
            arrival = self._coming.popleft()
            sequence = self._engine.submit(arrival.prompt_ids, SamplingParams(), max_tokens=arrival.new_tokens)
            self._open[sequence] = _Answer(arrival, sequence)
            self._answers.append(self._open[sequence])

    def _step(self) -> None:
        waited = self._executor.counters().get("wait_s")
        began, thread_began = self._elapsed(), self._thread_now()
        outputs = self._engine.step()
        thread_s = self._thread_now() - thread_began
        ended = round(self._elapsed(), DIGITS)
        for output in outputs:
            self._open[output.sequence].token_s.append(ended)
            if output.finish_reason is not None:
                del self._open[output.sequence]
        seconds = ended - began
        host_s = self._host_s(seconds, waited)
        waiting = sum(sequence.status == "waiting" for sequence in self._open)
        self.steps.append(Step(ended, round(seconds, DIGITS), host_s, round(thread_s, DIGITS), waiting))

    def _host_s(self, seconds: float, waited: float | None) -> float | None:
        """A step's seconds without those that a device worked or was waited for."""
        away = self._executor.busy_s() if waited is None else self._executor.counters()["wait_s"] - waited
        return None if away is None else round(max(0.0, seconds - away), DIGITS)
