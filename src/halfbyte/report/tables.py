"""Records as figures, and figures as a table for the terminal, Markdown or CSV.

A figure that a device does not measure is shown as a dash, never as zero.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from textwrap import fill
from typing import Any, Protocol

from halfbyte.columns import aligned, fitting
from halfbyte.report.schema import Record, Sample
from halfbyte.units import quantity, size

NONE = "–"


class Measured(Protocol):
    """What records of every kind say of the model, and of where it ran."""

    @property
    def check(self) -> Mapping[str, Any]: ...

    @property
    def machine(self) -> Mapping[str, Any]: ...

    @property
    def model(self) -> Mapping[str, Any]: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Figure:
    """A median, and half the range between the lowest and the highest repetition."""

    value: float
    half_range: float = 0.0

    @property
    def spread(self) -> float:
        """Half the range as a part of the value."""
        return self.half_range / self.value if self.value else 0.0


@dataclass(frozen=True)
class Column:
    """One figure of a record: its heading, how it is found, and its digits."""

    name: str
    figure: Callable[[Record], Figure | None]
    digits: int
    spread: bool = False

    def cell(self, record: Record) -> str:
        """What the table shows."""
        found = self.figure(record)
        if found is None:
            return NONE
        known = self.spread and len(record.samples) > 1
        return f"{found.value:,.{self.digits}f}" + (f" ±{found.spread:.1%}" if known else "")


def _over(samples: Sequence[Sample], value: Callable[[Sample], float | None]) -> Figure | None:
    """The median over repetitions; None if one has no value."""
    found = [value(sample) for sample in samples]
    known = [x for x in found if x is not None]
    if len(known) < len(found):
        return None
    return Figure(median(known), (max(known) - min(known)) / 2)


def prefill_ms(record: Record) -> Figure | None:
    """Milliseconds to read the prompt and choose the first token."""
    return _over(record.samples, lambda s: None if s.prefill_s is None else 1000 * s.prefill_s)


def prefill_tokens_per_s(record: Record) -> Figure | None:
    """Tokens per second of reading the prompts of all sequences."""
    tokens = record.case.batch * record.case.prompt_tokens
    return _over(record.samples, lambda s: None if s.prefill_s is None else tokens / s.prefill_s)


def tokens_per_s(record: Record) -> Figure | None:
    """Tokens per second of decoding, of all sequences; the first tokens belong to the prefill."""
    return _over(record.samples, lambda s: record.case.batch * len(s.step_s) / sum(s.step_s) if s.step_s else None)


def bandwidth_share(record: Record) -> Figure | None:
    """Bytes per second that decoding reads, in per cent of the bandwidth measured in the same run."""
    speed = tokens_per_s(record)
    if speed is None or not record.read_bandwidth:
        return None
    return Figure(100 * record.bytes_per_token * speed.value / median(record.read_bandwidth))


def percentile_ms(percent: float) -> Callable[[Record], Figure | None]:
    """A percentile of all decoding steps of all repetitions, in milliseconds."""

    def found(record: Record) -> Figure | None:
        steps = [1000 * s for sample in record.samples for s in sample.step_s]
        return Figure(percentile(steps, percent)) if steps else None

    return found


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values (one at least) that so many per cent of them do not exceed."""
    rank = -(-len(values) * percent // 100)
    return sorted(values)[max(0, int(rank) - 1)]


def _counted(name: str) -> Callable[[Record], Figure | None]:
    """What a device counted while decoding, per token."""

    def of(sample: Sample, batch: int) -> float | None:
        return sample.counters[name] / (batch * len(sample.step_s)) if name in sample.counters else None

    def found(record: Record) -> Figure | None:
        return _over(record.samples, lambda s: of(s, record.case.batch) if s.step_s else None)

    return found


def _gpu_ms(record: Record) -> Figure | None:
    return None if record.gpu_s is None else Figure(1000 * record.gpu_s / record.case.batch)


def _host_ms(record: Record) -> Figure | None:
    return _over(record.samples, lambda s: None if s.host_s is None else 1000 * s.host_s / len(s.step_s))


def _megabytes(nbytes: int | None) -> Figure | None:
    return None if nbytes is None else Figure(nbytes / 1e6)


COLUMNS = (
    Column("prompt tokens", lambda r: Figure(r.case.prompt_tokens), 0),
    Column("new tokens", lambda r: Figure(r.case.new_tokens), 0),
    Column("depth", lambda r: Figure(r.case.depth), 0),
    Column("batch", lambda r: Figure(r.case.batch), 0),
    Column("prefill tokens/s", prefill_tokens_per_s, 1, spread=True),
    Column("tokens/s", tokens_per_s, 1, spread=True),
    Column("total s", lambda r: _over(r.samples, lambda s: s.total_s), 3),
    Column("prefill ms", prefill_ms, 1, spread=True),
    Column("first token ms", lambda r: _over(r.samples, lambda s: 1000 * s.first_token_s), 1),
    Column("ms/token p50", percentile_ms(50), 3),
    Column("p95", percentile_ms(95), 3),
    Column("p99", percentile_ms(99), 3),
    Column("load s", lambda r: Figure(r.load_s), 2),
    Column("MB/token", lambda r: Figure(r.bytes_per_token / 1e6), 1),
    Column("% of read bandwidth", bandwidth_share, 0),
    Column("dispatches/token", _counted("dispatches"), 1),
    Column("submits/token", _counted("submits"), 2),
    Column("host ms/token", _host_ms, 3),
    Column("GPU ms/token", _gpu_ms, 3),
    Column("host MB", lambda r: _megabytes(r.peak_bytes), 0),
    Column("device MB", lambda r: _megabytes(r.device_bytes), 0),
)


_CASE = ("prompt tokens", "new tokens", "depth", "batch")
"""Columns that only repeat what a case's label says."""


def terminal(records: Sequence[Record], width: int | None = None) -> str:
    """A heading; a line per test, as llama-bench has them; then a row per figure and a column per case.

    Rows without a value are left out.

    Args:
        width: Of the terminal; None for no limit.
    """
    rows = [[column.name, *(column.cell(record) for record in records)] for column in COLUMNS]
    known = [row for row in rows if row[0] not in _CASE and any(cell != NONE for cell in row[1:])]
    head = _heading(records)
    if width is not None:
        head = "\n".join(fill(line, width, break_long_words=False, break_on_hyphens=False) for line in head.split("\n"))
    tests = aligned(fitting(_tests(records), ("device", "params", "size"), width))
    return f"{head}\n\n{tests}\n\n{aligned([['', *map(label, records)], *known], width=width)}\n"


def _tests(records: Sequence[Record]) -> list[list[str]]:
    """Prefill (`pp512`) and decoding (`tg128`) of each case in lines of their own; `@ d` is what the cache holds."""
    rows = [["model", "size", "params", "device", "test", "tokens/s"]]
    for record in records:
        case = record.case
        filled = case.depth + case.prompt_tokens
        for test, found in (
            (_test("pp", case.prompt_tokens, case.depth, case.batch), prefill_tokens_per_s(record)),
            (_test("tg", case.new_tokens, filled, case.batch), tokens_per_s(record)),
        ):
            if found is not None:
                spread = f" ± {found.half_range:,.1f}" * (len(record.samples) > 1)
                rows.append([*_subject(record), test, f"{found.value:,.1f}{spread}"])
    return rows


def _test(kind: str, tokens: int, filled: int, batch: int) -> str:
    return f"{kind}{tokens}{f' @ d{filled}' * (filled > 0)}{f' ×{batch}' * (batch > 1)}"


def _subject(record: Record) -> list[str]:
    model, settings = record.model, record.settings
    name = " ".join([model["name"], settings.get("variant", "")]).strip()
    parameters = quantity(model["parameters"], "") if "parameters" in model else NONE
    device = (
        record.machine.get("gpu") if settings["device"] == "gpu" else f"{settings['device']} ×{settings['threads']}"
    )
    return [name, size(model["nbytes"]), parameters, str(device)]


def markdown(records: Sequence[Record]) -> str:
    """A heading and a pipe table with a line per case."""
    head = ["", *(column.name for column in COLUMNS)]
    lines = [head, ["---", *["---:"] * len(COLUMNS)]]
    lines += [[label(record), *(column.cell(record) for column in COLUMNS)] for record in records]
    return _heading(records) + "\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv_text(records: Sequence[Record]) -> str:
    """A line per case; spreads have their own columns, unknown figures are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "variant", *(name for column in COLUMNS for name in _csv_names(column))])
    for record in records:
        names = [record.model["name"], record.settings.get("variant", "")]
        writer.writerow([*names, *(cell for column in COLUMNS for cell in _csv_cells(column, record))])
    return out.getvalue()


def _csv_names(column: Column) -> list[str]:
    return [column.name, f"{column.name} spread"] if column.spread else [column.name]


def _csv_cells(column: Column, record: Record) -> list[float | str]:
    found = column.figure(record)
    spread: float | str = found.spread if found and len(record.samples) > 1 else ""
    cells: list[float | str] = ["", ""] if found is None else [found.value, spread]
    return cells if column.spread else cells[:1]


def label(record: Record) -> str:
    """The case, and which variant it was measured with."""
    return " ".join([record.settings.get("variant", ""), record.case.label]).strip()


def _heading(records: Sequence[Record]) -> str:
    """The heading of the first record, and what was checked of each other variant."""
    checks = dict.fromkeys(map(checked, records))
    return "\n".join([heading(records[0]), *list(checks)[1:]])


def heading(record: Record) -> str:
    """Model, machine and settings in a line, then the size and the correctness check in another."""
    rates = f", {median(record.read_bandwidth) / 1e9:.1f} GB/s readable" if record.read_bandwidth else ""
    each = ", each token read back" * bool(record.settings.get("each_token"))
    return f"{where(record)}{each}{rates}; {_repetitions(record)}.\n{checked(record)}"


def where(record: Measured) -> str:
    """The model and what it ran on."""
    settings = record.settings
    what = " (random weights)" if record.model["synthetic"] else ""
    threads = f"{settings['threads']} {'thread' if settings['threads'] == 1 else 'threads'}, "
    place = record.machine.get("gpu") or threads + record.machine["processor"]
    return f"{record.model['name']}{what} on {settings['device']}, {place}"


def _repetitions(record: Record) -> str:
    count = len(record.samples)
    return f"medians of {count} repetitions" if count > 1 else "one repetition"


def checked(record: Measured) -> str:
    """The size of the model, and how it agreed with the reference."""
    check, variant = record.check, record.settings.get("variant", "")
    part = "" if check["layers"] == check["all_layers"] else f", on {check['layers']} of {check['all_layers']} layers"
    return (
        f"{f'{variant}: ' * bool(variant)}{size(record.model['nbytes'])}; correctness check passed: {check['same']} of "
        f"{check['tokens']} tokens match the reference (KL {check['kl']:.2g} nats{part})."
    )
