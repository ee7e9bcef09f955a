"""What was measured, for people (a table) and for later (JSON lines)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.catalog import HALFBYTE, PEERS
from benchmarks.peers.measure import Measurement

SCHEMA = 1
"""The version of the JSON lines; raised when a field changes its meaning or goes."""

_HEAD = ("", "tok/s", "lowest – highest", "MB a token", "GB/s", "of bandwidth", "× Halfbyte", "KL, nats")


def speeds(row: Measurement) -> list[float]:
    """Tokens a second of each repetition."""
    return [row.task.tokens / seconds for seconds in row.seconds]


def share(row: Measurement) -> float | None:
    """Bytes read a second, of those that the machine could read; None except for decode."""
    if row.bytes_read is None or not row.seconds:
        return None
    return row.bytes_read * median(speeds(row)) / median(row.bandwidth)


def table(rows: Sequence[Measurement]) -> str:
    """A section per task and place with a line per engine; at the end, why engines are missing."""
    parts = []
    for (title, place), group in groupby(rows, key=lambda row: (row.task.title, _place(row))):
        section = [row for row in group if row.seconds]
        halfbyte = next((median(speeds(row)) for row in section if row.peer == HALFBYTE), None)
        rates = [rate for row in section for rate in row.bandwidth]
        limit = f", {median(rates) / 1e9:.1f} GB/s readable" if rates else ""
        parts.append(f"{title}, {place}{limit}")
        parts.append(_aligned([_HEAD, *(_cells(row, halfbyte) for row in section)]) + "\n")
    missing = (f"{PEERS[row.peer].title}, {_place(row)}: {row.error}" for row in rows if row.error)
    return "\n".join([*parts, *dict.fromkeys(missing)])


def _place(row: Measurement) -> str:
    if row.device == "gpu":
        return "GPU"
    return f"{row.threads} thread" if row.threads == 1 else f"{row.threads} threads"


def _cells(row: Measurement, halfbyte: float | None) -> tuple[str, ...]:
    rates = speeds(row)
    speed, part = median(rates), share(row)
    bandwidth = ("", "", "")
    if row.bytes_read is not None and part is not None:
        bandwidth = (f"{row.bytes_read / 1e6:,.0f}", f"{row.bytes_read * speed / 1e9:.1f}", f"{part:.0%}")
    ratio = f"{speed / halfbyte:.2f}" if halfbyte else ""
    kl = f"{row.agreement.kl:.1e}" if row.agreement and row.peer != HALFBYTE else ""
    return (PEERS[row.peer].title, f"{speed:.1f}", f"{min(rates):.1f} – {max(rates):.1f}", *bandwidth, ratio, kl)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    )


def records(
    rows: Sequence[Measurement],
    *,
    time: str,
    machine: Mapping[str, Any],
    model: Mapping[str, Any],
    about: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """A JSON object a measurement; `about` has versions and settings by peer."""
    return [
        {
            "schema": SCHEMA, "benchmark": "peers", "time": time, "machine": dict(machine), "model": dict(model),
            "peer": row.peer, "about": dict(about.get(row.peer, {})), "device": row.device,
            "threads": row.threads,
            "task": {**asdict(row.task), "prompt": row.task.prompt}, "seconds": row.seconds,
            "tokens_per_s": median(speeds(row)) if row.seconds else None, "bytes_read": row.bytes_read,
            "bandwidth": row.bandwidth, "share": share(row),
            "agreement": asdict(row.agreement) if row.agreement else None, "error": row.error,
        }
        for row in rows
    ]  # fmt: skip


def append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Add JSON lines to a file, made with its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
