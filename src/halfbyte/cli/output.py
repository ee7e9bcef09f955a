"""Printing: errors and notes to standard error, tables and JSON to standard output."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import typer


def print_error(message: str, hint: str = "") -> None:
    """`error: message` and, on a line of its own, what to do."""
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(one_line(message), err=True)
    if hint:
        typer.echo(one_line(hint), err=True)


def note(text: str) -> None:
    """A remark that is no part of the answer."""
    typer.secho(one_line(text), dim=True, err=True)


def one_line(text: str) -> str:
    """`text` without line breaks, control characters and lone surrogates, which a model's files may hold."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def print_json(value: Any, *, indent: int | None = None) -> None:
    """`value` as JSON, flushed; on one line unless `indent` is given."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False) + "\n")
    sys.stdout.flush()


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, file: TextIO | None = None) -> None:
    """Columns under headers, at least one row: numbers to the right, everything else to the left."""
    table = [list(headers), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    right = [all(map(_is_number, column)) for column in zip(*table[1:], strict=True)]
    for row in table:
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        print("  ".join(cells).rstrip(), file=file or sys.stdout)


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """A label and a value a line; a repeated label is left blank."""
    width = max(len(label) for label, _ in pairs)
    before = ""
    for label, value in pairs:
        print(f"{'' if label == before else label:<{width}}  {value}")
        before = label


def accept_any_bytes(stream: TextIO) -> None:
    """Make a standard stream replace what its encoding cannot hold instead of failing."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def _is_number(cell: str) -> bool:
    return cell == "-" or cell[:1].isdigit()


def size(nbytes: float) -> str:
    """Bytes in decimal units, three digits: `17.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"
