"""Printing: errors and notes to standard error, tables and JSON to standard output."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, TextIO

import typer

EXIT_FILE = 74
"""The exit code after a file or disk failed."""


def print_error(message: str, hint: str = "") -> None:
    """`error: message` and, on a line of its own, what to do."""
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True, color=_colour())
    typer.echo(one_line(message), err=True)
    if hint:
        typer.echo(one_line(hint), err=True)


def note(text: str) -> None:
    """Print a remark that is not part of the answer."""
    typer.secho(one_line(text), dim=True, err=True, color=_colour())


def _colour() -> bool | None:
    """False where the user or the terminal wants no colours (no-color.org); else None: only on a terminal."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def one_line(text: str) -> str:
    """`text` without line breaks, control characters and lone surrogates, which a model's files may hold."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def print_json(value: Any, *, indent: int | None = None) -> None:
    """`value` as JSON, flushed; on one line unless `indent` is given."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False) + "\n")
    sys.stdout.flush()


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, file: TextIO | None = None) -> None:
    """Print columns under headers, with at least one row: numbers to the right, everything else to the left."""
    table = [list(headers), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    right = [all(map(_is_number, column)) for column in zip(*table[1:], strict=True)]
    for row in table:
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        print("  ".join(cells).rstrip(), file=file or sys.stdout)


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print a label and a value per line; a repeated label is left blank, and a terminal breaks lines between words."""
    width = max(len(label) for label, _ in pairs)
    room = shutil.get_terminal_size().columns - width - 2 if sys.stdout.isatty() else None
    before = ""
    for label, value in pairs:
        lines = [value] if room is None else textwrap.wrap(value, max(20, room), break_on_hyphens=False)
        for i, line in enumerate(lines or [""]):
            print(f"{label if i == 0 and label != before else '':<{width}}  {line}")
        before = label


def accept_any_bytes(stream: TextIO) -> None:
    """Make a standard stream replace what its encoding cannot hold instead of failing."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def _is_number(cell: str) -> bool:
    return cell == "-" or cell[:1].isdigit()
