"""Whether two measurements differ: paired ratios with a confidence interval.

Pairs are whole runs where both files have at least five of a case, appended in turn (A, B, A, B, …): then whatever
drifts on the machine counts as noise. With fewer, repetitions within a run are paired, and a drift between the two
runs cannot be told from a difference.

A run is judged by the time that a quarter of its steps, or of its prefills, do not exceed: what disturbs only adds
time, and the lower quartile moves least. Of ten or more pairs a tenth is trimmed at each end, and the interval is
Yuen's for trimmed means, so that one disturbed run does not hide a difference; of fewer, Student's. All lines of a
comparison together are right with the confidence asked for, by Bonferroni's rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, quantiles, stdev
from typing import Literal

from halfbyte.errors import UsageError
from halfbyte.report.schema import Case, Record
from halfbyte.report.tables import Figure, percentile_ms

FEWEST_PAIRS = 5
TRIMMED_PAIRS = 10
"""Pairs of which one at each end is left out: a tenth."""
CONFIDENCE = 0.95

Verdict = Literal["no difference", "B is faster", "B is slower"]
Measure = Callable[[Record], Figure | None]


def prefill_quartile_ms(record: Record) -> Figure | None:
    """Milliseconds that a quarter of the prefills do not exceed; None if one has no value."""
    known = [1000 * sample.prefill_s for sample in record.samples if sample.prefill_s is not None]
    if len(known) < len(record.samples):
        return None
    return Figure(quantiles(known, n=4, method="inclusive")[0] if len(known) > 1 else known[0])


MEASURES: dict[str, Measure] = {"prefill": prefill_quartile_ms, "decode": percentile_ms(25)}


@dataclass(frozen=True)
class Comparison:
    """How long B takes of the time that A takes.

    Attributes:
        low, high: The interval that holds the true ratio with the confidence asked for.
        runs: Whether pairs are whole runs rather than repetitions of one.
    """

    model: str
    case: Case
    measure: str
    pairs: int
    ratio: float
    low: float
    high: float
    runs: bool

    @property
    def verdict(self) -> Verdict:
        """What the interval says."""
        if self.low <= 1 <= self.high:
            return "no difference"
        return "B is faster" if self.high < 1 else "B is slower"

    def __str__(self) -> str:
        kind = "runs" if self.runs else "repetitions"
        return (
            f"{self.model} {self.case.label}, {self.measure}: {self.verdict} "
            f"(time × {self.ratio:.3f}, {self.low:.3f} to {self.high:.3f}, {self.pairs} pairs of {kind})"
        )


def compare(a: Sequence[Record], b: Sequence[Record], *, confidence: float = CONFIDENCE) -> list[Comparison]:
    """A comparison for each case that both have, of prefill and decode.

    Raises:
        UsageError: They have no case in common, or too few repetitions.
    """
    left, right = _by_case(a), _by_case(b)
    found = {
        (*key, name): _paired(left[key], right[key], measure)
        for key in left
        if key in right
        for name, measure in MEASURES.items()
    }
    known = {key: pairs for key, pairs in found.items() if pairs is not None}
    if not known:
        raise UsageError("the two files have no case of the same model in common.", "Measure the same cases twice.")
    certainty = 1 - (1 - confidence) / len(known)
    return [
        Comparison(model, case, name, len(pairs.a), *ratio_interval(pairs.a, pairs.b, certainty), pairs.runs)
        for (model, case, name), pairs in known.items()
    ]


def ratio_interval(a: Sequence[float], b: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """The mean ratio b : a of pairs (geometric, trimmed), and the ends of its confidence interval.

    Source: K. K. Yuen, The two-sample trimmed t for unequal population variances, Biometrika 61 (1974).

    Raises:
        UsageError: There are fewer than five pairs.
    """
    if len(a) < FEWEST_PAIRS:
        raise UsageError(
            f"{len(a)} pairs are too few to tell noise from a difference.",
            f"Measure with --repeat {FEWEST_PAIRS} or more.",
        )
    logs = sorted(math.log(y / x) for x, y in zip(a, b, strict=True))
    cut = len(logs) // TRIMMED_PAIRS
    kept = logs[cut : len(logs) - cut]
    winsorized = stdev([kept[0]] * cut + kept + [kept[-1]] * cut)
    error = winsorized * math.sqrt((len(logs) - 1) / (len(kept) * (len(kept) - 1)))
    middle, reach = fmean(kept), student_quantile((1 + confidence) / 2, len(kept) - 1) * error
    return math.exp(middle), math.exp(middle - reach), math.exp(middle + reach)


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t, for a probability above one half, found by bisection."""
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def student_cdf(t: float, freedom: int) -> float:
    """Student's distribution function for t ≥ 0, by its finite series (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term = total = 0.0
    if freedom > 1:
        term = total = cosine if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    between = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return (1 + between) / 2


@dataclass(frozen=True)
class _Pairs:
    a: list[float]
    b: list[float]
    runs: bool


def _by_case(records: Sequence[Record]) -> dict[tuple[str, Case], list[Record]]:
    cases: dict[tuple[str, Case], list[Record]] = {}
    for record in records:
        name = " ".join([record.model["name"], record.settings.get("variant", "")]).strip()
        cases.setdefault((name, record.case), []).append(record)
    return cases


def _paired(a: list[Record], b: list[Record], measure: Measure) -> _Pairs | None:
    """Whole runs if both have enough of them, else all repetitions in their order; None if one has no value."""
    runs = min(len(a), len(b)) >= FEWEST_PAIRS
    left, right = (_values(side if runs else _repetitions(side), measure) for side in (a, b))
    if left is None or right is None:
        return None
    count = min(len(left), len(right))
    return _Pairs(left[:count], right[:count], runs)


def _repetitions(records: list[Record]) -> list[Record]:
    """Each repetition as a record of its own."""
    return [replace(record, samples=(sample,)) for record in records for sample in record.samples]


def _values(records: list[Record], measure: Measure) -> list[float] | None:
    figures = [measure(record) for record in records]
    return None if None in figures else [figure.value for figure in figures if figure is not None]
