"""What happens in the course of an answer: spans of time in lanes, on the host's clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["prefill", "decode", "dropped"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")
"""What tables show; `dropped` is what a device computed ahead beyond the end of an answer."""
TOKENS, HOST = "tokens", "host"
"""Lanes beside the device's."""
SHORTEST_S = 1e-7
"""Gaps below this are no events."""


@dataclass(frozen=True)
class Span:
    """Something that took time.

    Attributes:
        lane: `tokens`, `host`, or the device.
        name: A token's text, what the host does, or the part of a layer.
        operation: What the device runs; the name again for the others.
        start_s, seconds: On the host's clock.
        nbytes, flops: What it moves and computes, by the plan.
        detail: More, for those who point at it.
    """

    lane: str
    phase: Phase
    name: str
    operation: str
    start_s: float
    seconds: float
    nbytes: float = 0.0
    flops: float = 0.0
    detail: str = ""

    @property
    def end_s(self) -> float:
        """When it was over."""
        return self.start_s + self.seconds


@dataclass(frozen=True)
class Run:
    """A batch that the engine had run by its executor, from the call to the logits.

    Attributes:
        rows: Rows of logits that were wanted.
        last: The position of its last token.
    """

    start_s: float
    end_s: float
    tokens: int
    rows: int
    last: int


@dataclass(frozen=True)
class Turn:
    """All that came before a token, and the token."""

    phase: Phase
    start_s: float
    end_s: float
    token_id: int
    runs: tuple[Run, ...]

    @property
    def seconds(self) -> float:
        """From the wish for the token to the token."""
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Watched:
    """One answer.

    Attributes:
        spans: In the order of their beginning within each lane; empty if nobody watched.
        notes: Where the times come from.
    """

    turns: tuple[Turn, ...]
    spans: tuple[Span, ...]
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """From the first wish to the last token."""
        return self.turns[-1].end_s - self.turns[0].start_s


def filled(found: list[Span], turn: Turn, before: str, between: str, after: str) -> list[Span]:
    """A turn's spans of the host, in order, with spans of these names in the gaps."""
    marks = [turn.start_s, *(mark for span in found for mark in (span.start_s, span.end_s)), turn.end_s]
    names = [before, *[between] * (len(found) - 1), after]
    gaps = [
        Span(HOST, turn.phase, name, name, start, end - start)
        for name, start, end in zip(names, marks[::2], marks[1::2], strict=False)
        if end - start > SHORTEST_S
    ]
    return sorted([*found, *gaps], key=lambda span: span.start_s)
