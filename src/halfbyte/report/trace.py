"""A profile as events on one clock: for the page, and for Perfetto as Chrome's trace JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from halfbyte.report.profile import Profile
from halfbyte.report.timeline import HOST, TOKENS


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
    """Everything that happened, in the order of its beginning within each lane: tokens, the host, the device."""
    begin = profile.answer.turns[0].start_s
    lanes = {TOKENS: 0, HOST: 1}
    ordered = sorted(profile.spans, key=lambda span: (lanes.get(span.lane, 2), span.start_s))
    return [Event(s.lane, s.name, s.phase, (s.start_s - begin) * 1e6, s.seconds * 1e6, s.detail) for s in ordered]


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
