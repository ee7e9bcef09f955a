"""A profile as events on one clock: for the page, and for Perfetto as Chrome's trace JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from halfbyte.report.parts import parts
from halfbyte.report.profile import Profile, Turn


@dataclass(frozen=True)
class Event:
    """Something that took time.

    Attributes:
        lane: `tokens`, `host`, or the device.
        start_us, us: Microseconds, from the beginning of the answer.
    """

    lane: str
    name: str
    phase: str
    start_us: float
    us: float
    detail: str = ""


def events(profile: Profile) -> list[Event]:
    """Everything that happened, in the order of its beginning within each lane."""
    begin = profile.turns[0].start_s
    texts, names = iter(profile.texts), parts(profile.plan)
    found: list[Event] = []
    for turn in profile.turns:
        at = (turn.start_s - begin) * 1e6
        if turn.token_id is not None:
            found.append(Event("tokens", next(texts), turn.run.phase, at, (turn.end_s - turn.start_s) * 1e6))
        found += _host(turn, begin)
        found += _device(profile, turn, begin, names)
    return found


def _host(turn: Turn, begin: float) -> Iterator[Event]:
    run = turn.run
    steps_s = float(run.step_ns.sum()) * 1e-9
    marks = (turn.start_s, run.start_s, run.end_s - steps_s, run.end_s, turn.end_s)
    for name, start, end in zip(("schedule", "fill state", "wait", "sample"), marks, marks[1:], strict=False):
        detail = f"{run.tokens} tokens" if name == "schedule" else ""
        yield Event("host", name, run.phase, (start - begin) * 1e6, max(0.0, end - start) * 1e6, detail)


def _device(profile: Profile, turn: Turn, begin: float, names: Sequence[str]) -> Iterator[Event]:
    """The steps, laid end to end so that the last one ends with the run."""
    run = turn.run
    at = (run.end_s - begin) * 1e6 - float(run.step_ns.sum()) * 1e-3
    for step, name, nanoseconds in zip(profile.plan.steps, names, run.step_ns, strict=True):
        us = float(nanoseconds) * 1e-3
        if us:
            yield Event(profile.device, name, run.phase, at, us, f"{type(step).__name__} → {step.outputs[0]}")
        at += us


def chrome_trace(found: Sequence[Event]) -> dict[str, Any]:
    """The events for Perfetto or chrome://tracing: complete events (`X`), a thread a lane, times in microseconds."""
    lanes = list(dict.fromkeys(event.lane for event in found))
    named = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": i, "args": {"name": lane}} for i, lane in enumerate(lanes)
    ]
    complete = [
        {
            "ph": "X", "name": event.name, "cat": event.phase, "pid": 1, "tid": lanes.index(event.lane),
            "ts": round(event.start_us, 3), "dur": round(event.us, 3), "args": {"detail": event.detail},
        }
        for event in found
    ]  # fmt: skip
    return {"displayTimeUnit": "ms", "traceEvents": named + complete}


def counts(found: Sequence[Event]) -> Counter[tuple[str, str, str]]:
    """How many events of each (lane, phase, name) there are."""
    return Counter((event.lane, event.phase, event.name) for event in found)
