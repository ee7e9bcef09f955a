"""One table of many models: perplexities at window lengths, divergence, answers; as Markdown, CSV, JSON or a plot."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass
from xml.sax.saxutils import escape

from halfbyte.evaluate.answers import Answers
from halfbyte.evaluate.divergence import Divergence

_WIDTH, _HEIGHT, _MARGIN = 720, 420, 56
_COLOURS = ("#1b1b1b", "#0b6e99", "#c4472c", "#3f7d3a", "#7b4fa3", "#b8860b", "#5a6570")


@dataclass(frozen=True)
class Row:
    """A model's perplexities, one a window length; and what sets it apart from the first row's model.

    Attributes:
        divergence: From the first row's model, at the longest window; None for that model itself.
        answers: How many questions it answers right, where some were asked.
    """

    name: str
    bits_per_weight: float
    ppl: tuple[float, ...]
    stderr: tuple[float | None, ...]
    divergence: Divergence | None = None
    answers: Answers | None = None


@dataclass(frozen=True)
class Table:
    """Perplexity of models at several window lengths, all on the same tokens; the first is the original."""

    windows: tuple[int, ...]
    rows: tuple[Row, ...]
    text: str
    tokens: int

    def markdown(self) -> str:
        """Two pipe tables: perplexities, and what each model differs in from the first."""
        head = ["perplexity at windows of", "bits a weight", *map(str, self.windows)]
        lines = [[row.name, f"{row.bits_per_weight:.3f}", *(f"{p:.3f}" for p in row.ppl)] for row in self.rows]
        asked = any(row.answers for row in self.rows)
        head_2 = [f"windows of {self.windows[-1]}", "bits a weight", "KL mean", "KL p99", "top-1", "perplexity ratio"]
        lines_2 = [_differences(row, asked) for row in self.rows]
        return _pipes(head, lines) + "\n" + _pipes([*head_2, *(["right", "kept"] if asked else [])], lines_2)

    def csv(self) -> str:
        """A line a model."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        figures = ("kl_mean", "kl_stderr", "kl_p99", "kl_max", "top1", "ppl_ratio")
        windows = [f"{kind}_{window}" for window in self.windows for kind in ("ppl", "stderr")]
        writer.writerow(["model", "bits_per_weight", *windows, *figures, "right", "total", "kept", "base_right"])
        for row in self.rows:
            each = [value for pair in zip(row.ppl, row.stderr, strict=True) for value in pair]
            moved = asdict(row.divergence) if row.divergence else {}
            given = asdict(row.answers) if row.answers else {}
            answers = [given.get(name) for name in ("right", "total", "kept", "base_right")]
            writer.writerow([row.name, row.bits_per_weight, *each, *(moved.get(name) for name in figures), *answers])
        return out.getvalue()

    def json(self) -> str:
        """The whole table as an object."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def svg(self) -> str:
        """A plot: each model's perplexity over that of the first, against the window length."""
        return _plot(self)


def _pipes(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *lines))


def _differences(row: Row, asked: bool) -> list[str]:
    d, a = row.divergence, row.answers
    moved = [f"{d.kl_mean:.4f}", f"{d.kl_p99:.3f}", f"{d.top1:.1%}", f"{d.ppl_ratio:.4f}"] if d else ["", "", "", ""]
    right = [str(a.right) if a else "", f"{a.kept} of {a.base_right}" if a and a.kept is not None else ""]
    return [row.name, f"{row.bits_per_weight:.3f}", *moved, *(right if asked else [])]


def _plot(table: Table) -> str:
    base = table.rows[0].ppl
    lines = [[p / b for p, b in zip(row.ppl, base, strict=True)] for row in table.rows]
    low, high = min(min(line) for line in lines), max(max(line) for line in lines)
    span = max(high - low, 1e-3)
    step = (_WIDTH - 2 * _MARGIN) / max(len(table.windows) - 1, 1)

    def x(i: int) -> float:
        return _MARGIN + i * step

    def y(value: float) -> float:
        return _HEIGHT - _MARGIN - (value - low) / span * (_HEIGHT - 2 * _MARGIN)

    parts = [_text(_WIDTH / 2, 24, f"Perplexity over that of {table.rows[0].name}, {table.tokens:,} tokens", "middle")]
    parts += [_text(x(i), _HEIGHT - _MARGIN + 22, str(w), "middle") for i, w in enumerate(table.windows)]
    for value in (low, low + span / 2, high):
        parts.append(f'<path d="M{_MARGIN} {y(value):.1f}H{_WIDTH - _MARGIN}" stroke="#ddd"/>')
        parts.append(_text(_MARGIN - 6, y(value) + 4, f"{value:.3f}", "end"))
    for i, (row, line) in enumerate(zip(table.rows, lines, strict=True)):
        colour = _COLOURS[i % len(_COLOURS)]
        points = " ".join(f"{x(k):.1f},{y(value):.1f}" for k, value in enumerate(line))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(_MARGIN + 10, 48 + 18 * i, f"{row.name}, {row.bits_per_weight:.2f} bits", "start", colour))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="13">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
