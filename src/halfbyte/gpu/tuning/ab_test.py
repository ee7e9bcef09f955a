"""The usual way against others: another one wins only if it is right, and faster by more than the noise.

Everything is timed in turns with the usual way, so that a drift of the clocks meets both. A first round finds the few
that look fastest; being picked from many flatters them, so they are timed again, in pairs, before one is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Generic, TypeVar

T = TypeVar("T")
Timed = Callable[[], float]

LOOKS = 2
"""Times that each is looked at in the first round."""
FINALISTS = 3
PAIRS = 15
"""Timings of a finalist beside the usual way."""
LEAST_GAIN = 0.01
"""Less than this is not worth another kernel."""
STANDARD_ERRORS = 4.0
"""By which a gain must exceed zero: with fifteen pairs, one in some thousand equals would."""


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """How a contest ended.

    Attributes:
        winner: None where the usual way stays.
        usual_s: Median seconds of the usual way, beside the winner's `winner_s`; both of the usual way without one.
        tried: How many were timed; `wrong` how many of the fastest computed something else.
    """

    winner: T | None
    usual_s: float
    winner_s: float
    tried: int
    wrong: int


def ab_test(
    others: Sequence[T],
    *,
    usual: Callable[[T], float],
    other: Callable[[T], float],
    right: Callable[[T], bool],
    enough: Callable[[], bool] = lambda: False,
) -> Outcome[T]:
    """Find which of the others is faster than the usual way.

    Args:
        usual: Times the usual way in the place of another one.
        other: Times another one; infinite where it cannot run.
        right: Whether one computes what it should; asked of those that may win.
        enough: Whether no more should be looked at.
    """
    looked_at: list[tuple[float, T]] = []
    usual_s: list[float] = []
    for each in others:
        if enough() and usual_s:
            break
        before, after = in_turns(partial(usual, each), partial(other, each), LOOKS)
        usual_s += before
        if min(after) < (1 - LEAST_GAIN) * min(before):
            looked_at.append((min(after) - min(before), each))
    wrong, tried = 0, len(usual_s) // LOOKS
    for _, each in sorted(looked_at, key=lambda pair: pair[0])[:FINALISTS]:
        if not right(each):
            wrong += 1
            continue
        before, after = in_turns(partial(usual, each), partial(other, each), PAIRS)
        if faster(before, after, least=LEAST_GAIN):
            return Outcome(each, median(before), median(after), tried, wrong)
    return Outcome(None, median(usual_s), median(usual_s), tried, wrong)


def in_turns(before: Timed, after: Timed, pairs: int) -> tuple[list[float], list[float]]:
    """Times of both, taken in pairs whose order changes from one to the next."""
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 else (1, 0):
            times[which].append((before, after)[which]())
    return times


def faster(before: Sequence[float], after: Sequence[float], *, least: float = 0.0) -> bool:
    """Whether `after` is shorter by more than the noise of the pairs, and by at least a part of `before`.

    The median of log ratios must lie below zero by four of its standard errors, which the median absolute deviation
    gives (1.4826 MAD is a normal distribution's deviation, 1.2533 the median's efficiency); four pairs in five agree.
    """
    ratios = [math.log(b / a) for a, b in zip(before, after, strict=True)]
    middle = median(ratios)
    deviation = 1.4826 * median(abs(ratio - middle) for ratio in ratios)
    error = 1.2533 * deviation / math.sqrt(len(ratios))
    agreeing = sum(ratio < 0 for ratio in ratios)
    return middle < min(-STANDARD_ERRORS * error, math.log1p(-least)) and 5 * agreeing >= 4 * len(ratios)
