"""Figures of a throughput record, and a table of them for the terminal.

A figure that a device does not measure is shown as a dash, never as zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from halfbyte.columns import aligned
from halfbyte.report.tables import NONE, checked, percentile, where
from halfbyte.report.throughput_schema import Request, ThroughputRecord

PERCENTS = (50, 95, 99)


def total_s(record: ThroughputRecord) -> float:
    """Seconds from the first request to the end of the last step."""
    return record.steps[-1].ended_s


def requests_per_s(record: ThroughputRecord) -> float:
    """Requests per second whose whole answer came."""
    return sum(request.finished for request in record.requests) / total_s(record)


def tokens_per_s(record: ThroughputRecord) -> float:
    """Tokens per second of all answers together."""
    return sum(len(request.token_s) for request in record.requests) / total_s(record)


def prompt_tokens_per_s(record: ThroughputRecord) -> float:
    """Tokens per second of prompts that have been read or found in the cache, because their first token came."""
    return sum(request.prompt_tokens for request in _begun(record)) / total_s(record)


def cached_share(record: ThroughputRecord) -> float | None:
    """The part of those prompt tokens that was in the cache; None if no first token came."""
    begun = _begun(record)
    return sum(r.cached_tokens for r in begun) / sum(r.prompt_tokens for r in begun) if begun else None


def longest_queue(record: ThroughputRecord) -> int:
    """The most requests that waited at the end of a step."""
    return max(step.waiting for step in record.steps)


def preemptions(record: ThroughputRecord) -> int:
    """How often a running request gave up its part of the cache, to be computed again."""
    return sum(request.preemptions for request in record.requests)


def first_token_s(record: ThroughputRecord) -> list[float]:
    """Seconds from when each request was due to its first token."""
    return [request.token_s[0] - request.due_s for request in _begun(record)]


def between_tokens_s(record: ThroughputRecord) -> list[float]:
    """Seconds between a token and the next of the same answer, of all answers.

    Tokens that came out of one step share the time since the token before them.
    """
    return [pause for request in record.requests for pause in _pauses(request.token_s)]


def _pauses(token_s: Sequence[float]) -> list[float]:
    found: list[float] = []
    before = token_s[0] if token_s else 0.0
    for came, group in groupby(token_s[1:]):
        count = len(list(group))
        found += [(came - before) / count] * count
        before = came
    return found


def _begun(record: ThroughputRecord) -> list[Request]:
    return [request for request in record.requests if request.token_s]


def terminal(record: ThroughputRecord) -> str:
    """What was measured on which model, then the figures, and then those that have percentiles."""
    load = record.workload
    when = "all at once" if load.rate is None else f"{load.rate:g} per second on average"
    prefix = f", after {load.shared_prefix:,} that all share" * bool(load.shared_prefix)
    heading = (
        f"{where(record)}; at most {record.settings['sequences']} requests at once.\n{checked(record)}\n"
        f"{load.requests:,} requests, {when}: prompts of {_span(load.prompt_tokens)} tokens{prefix}, "
        f"answers of {_span(load.new_tokens)}."
    )
    spread = [["ms", *(f"p{percent}" for percent in PERCENTS)], *_spread(record)]
    return f"{heading}\n\n{aligned(_single(record))}\n\n{aligned(spread)}\n"


def _span(tokens: tuple[int, int]) -> str:
    return f"{tokens[0]:,}" if tokens[0] == tokens[1] else f"{tokens[0]:,} to {tokens[1]:,}"


def _single(record: ThroughputRecord) -> list[list[str]]:
    finished, share = sum(request.finished for request in record.requests), cached_share(record)
    return [
        ["requests finished", f"{finished:,} of {record.workload.requests:,}"],
        ["total s", f"{total_s(record):,.3f}"],
        ["requests/s", f"{requests_per_s(record):,.2f}"],
        ["tokens/s", f"{tokens_per_s(record):,.1f}"],
        ["prompt tokens/s", f"{prompt_tokens_per_s(record):,.1f}"],
        ["prompt tokens in the cache", NONE if share is None else f"{share:.1%}"],
        ["longest queue", f"{longest_queue(record):,}"],
        ["preemptions", f"{preemptions(record):,}"],
        ["steps", f"{len(record.steps):,}"],
    ]


def _spread(record: ThroughputRecord) -> list[list[str]]:
    host = [step.host_s for step in record.steps if step.host_s is not None]
    return [
        ["first token", *_cells(first_token_s(record), 1)],
        ["between tokens", *_cells(between_tokens_s(record), 3)],
        ["step", *_cells([step.seconds for step in record.steps], 3)],
        ["host per step", *_cells(host, 3)],
        ["thread's CPU time per step", *_cells([step.thread_s for step in record.steps], 3)],
    ]


def _cells(seconds: Sequence[float], digits: int) -> list[str]:
    """Percentiles in milliseconds."""
    if not seconds:
        return [NONE] * len(PERCENTS)
    return [f"{1000 * percentile(seconds, percent):,.{digits}f}" for percent in PERCENTS]
