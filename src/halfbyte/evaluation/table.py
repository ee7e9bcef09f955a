"""Many models in a table: perplexities at window lengths, divergence, answers; as text, Markdown, CSV, JSON, a plot."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass

from halfbyte.columns import aligned
from halfbyte.evaluation.answers import Answers
from halfbyte.evaluation.divergence import Divergence
from halfbyte.evaluation.plot import plot


@dataclass(frozen=True)
class Row:
    """A model's perplexities, one per window length, and how it differs from the first row's model.

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

    def terminal(self, width: int | None = None) -> str:
        """Two tables of plain text: perplexities, and how each model differs from the first.

        Args:
            width: Of the terminal; columns that have no room follow below. None for no limit.
        """
        return "\n\n".join(aligned(rows, width=width) for rows in self._tables()) + "\n"

    def markdown(self) -> str:
        """The same as two pipe tables."""
        return "\n".join(map(_pipes, self._tables()))

    def _tables(self) -> tuple[list[list[str]], list[list[str]]]:
        """Both tables, each with its headings first."""
        head = ["perplexity at windows of", "bits per weight", *map(str, self.windows)]
        lines = [[row.name, f"{row.bits_per_weight:.3f}", *(f"{p:.3f}" for p in row.ppl)] for row in self.rows]
        asked = any(row.answers for row in self.rows)
        head_2 = [f"windows of {self.windows[-1]}", "bits per weight", "KL mean", "KL p99", "top-1", "perplexity ratio"]
        lines_2 = [_differences(row, asked) for row in self.rows]
        return [head, *lines], [[*head_2, *(["right", "kept"] if asked else [])], *lines_2]

    def csv(self) -> str:
        """A line per model."""
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

    def plot(self, form: str = "svg", *, dark: bool = False) -> bytes:
        """A picture: each model's perplexity over that of the first, against the window length.

        Args:
            form: Of the file: `svg`, `png` or `pdf`.
            dark: Whether it is for a dark page.

        Raises:
            UsageError: matplotlib is missing.
        """
        base = self.rows[0]
        return plot(
            [f"{row.name}, {row.bits_per_weight:.2f} bits" for row in self.rows],
            [[p / b for p, b in zip(row.ppl, base.ppl, strict=True)] for row in self.rows],
            self.windows,
            f"Perplexity relative to {base.name}, on {self.tokens:,} tokens",
            form=form,
            dark=dark,
        )


def _pipes(rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (rows[0], rule, *rows[1:]))


def _differences(row: Row, asked: bool) -> list[str]:
    d, a = row.divergence, row.answers
    moved = [f"{d.kl_mean:.4f}", f"{d.kl_p99:.3f}", f"{d.top1:.1%}", f"{d.ppl_ratio:.4f}"] if d else ["", "", "", ""]
    right = [str(a.right) if a else "", f"{a.kept} of {a.base_right}" if a and a.kept is not None else ""]
    return [row.name, f"{row.bits_per_weight:.3f}", *moved, *(right if asked else [])]
