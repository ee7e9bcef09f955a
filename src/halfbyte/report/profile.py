"""Where the time of one answer goes: every step of every batch, as the device timed it, and what the host did between.

An answer is generated several times, with and without watching, so that the cost of watching is known; the last
watched one is kept. Bytes and operations are those that `halfbyte plan` shows, for the batch that was really run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median

from halfbyte.executors import Limits, factory
from halfbyte.model import Model
from halfbyte.plan import Plan
from halfbyte.plan.batch import Timing
from halfbyte.report.timeline import HOST, PHASES, TOKENS, Phase, Span, Turn, Watched
from halfbyte.report.watch import Watcher

ROUNDS = 3
"""Answers of each kind, watched and not, that the cost of watching is judged by."""
BEFORE_STEPS = ("state", "start")
"""Work of a processor in a batch before its first step."""
AROUND = ("schedule", *BEFORE_STEPS, "sample")
"""Work beside the steps; it has rows of its own."""


@dataclass(frozen=True)
class Line:
    """Spans of one name in one phase.

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
        overhead: Time that watching adds to an answer, as a part of its time; below `noise` it means nothing.
        timing: How the device's steps were timed.
        noise: Half the range of the answers that were not watched, as a part of their time.
        prompt_tokens: Tokens of the prompt.
    """

    plan: Plan
    answer: Watched
    overhead: float
    noise: float
    limits: Limits
    timing: Timing
    prompt_tokens: int

    @property
    def spans(self) -> tuple[Span, ...]:
        """All that happened."""
        return self.answer.spans

    def of(self, phase: Phase) -> list[Turn]:
        """The tokens of a phase."""
        return [turn for turn in self.answer.turns if turn.phase == phase]

    def tokens(self, phase: Phase) -> int:
        """How many were read or generated in a phase."""
        return self.prompt_tokens if phase == "prefill" else len(self.of(phase))

    def seconds(self, phase: Phase) -> float:
        """Time of a phase, the host's included."""
        return sum(turn.seconds for turn in self.of(phase))

    def covered(self, phase: Phase) -> float:
        """The operations' sum as a part of a phase: of the processor's batches, or of all the time beside a GPU."""
        whole, outside = self.seconds(phase), set(AROUND) - set(BEFORE_STEPS)
        if self.timing == "steps":
            whole = sum(run.end_s - run.start_s for turn in self.of(phase) for run in turn.runs)
        return sum(line.seconds for line in self.lines if line.phase == phase and line.name not in outside) / whole

    @cached_property
    def parts(self) -> tuple[Line, ...]:
        """Operations by the part of a layer that they belong to."""
        return self._lines(lambda span: span.name)

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """Operations by their kind."""
        return self._lines(lambda span: span.operation)

    @cached_property
    def host(self) -> tuple[Line, ...]:
        """What the host did meanwhile."""
        return _lines([span for span in self.spans if span.lane == HOST], lambda span: span.name)

    def _lines(self, key: Callable[[Span], str]) -> tuple[Line, ...]:
        around = AROUND if self.timing == "steps" else ()
        wanted = [s for s in self.spans if s.lane not in (HOST, TOKENS) or (s.lane == HOST and s.name in around)]
        return _lines(wanted, key)


def _lines(spans: Sequence[Span], key: Callable[[Span], str]) -> tuple[Line, ...]:
    """Spans of one name added up, by phase; the longest first."""
    found: dict[tuple[Phase, str], Line] = {}
    for span in spans:
        if span.phase in PHASES:
            line = found.get((span.phase, key(span)), Line(span.phase, key(span), 0, 0.0))
            found[span.phase, key(span)] = replace(
                line, calls=line.calls + 1, seconds=line.seconds + span.seconds, nbytes=line.nbytes + span.nbytes,
                flops=line.flops + span.flops,
            )  # fmt: skip
    return tuple(sorted(found.values(), key=lambda line: (PHASES.index(line.phase), -line.seconds)))


def profile(model: Model, prompt_ids: Sequence[int], *, max_tokens: int) -> Profile:
    """Answer a prompt greedily and measure the time of each step.

    Raises:
        UsageError: The device does not tell the time of steps.
        ContextFullError: The prompt does not fit the context.
    """
    watcher = Watcher(model, prompt_ids, max_tokens)
    watcher.plain()
    plain, watched = [], []
    for _ in range(ROUNDS):
        plain.append(watcher.plain().seconds)
        answer = watcher.watched()
        watched.append(answer.seconds)
    return Profile(
        plan=model.plan, answer=answer, overhead=median(watched) / median(plain) - 1,
        noise=(max(plain) - min(plain)) / 2 / median(plain),
        limits=factory(model.device).limits(model.executor), timing=watcher.timing,
        prompt_tokens=len(prompt_ids),
    )  # fmt: skip
