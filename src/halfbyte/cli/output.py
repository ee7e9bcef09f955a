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

from halfbyte.columns import fitting


def print_error(message: str, hint: str = "") -> None:
    """`error: message` and, on a line of its own, what to do."""
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True, color=_colour())
    typer.echo(_fitted(message, indent=len("error: ")), err=True)
    if hint:
        typer.echo(_fitted(hint), err=True)


def note(text: str) -> None:
    """Print a remark that is not part of the answer."""
    typer.secho(_fitted(text), dim=True, err=True, color=_colour())


def _fitted(text: str, indent: int = 0) -> str:
    """`text` on one line, which a terminal breaks between words; `indent` is what stands before it."""
    line = one_line(text)
    if not sys.stderr.isatty():
        return line
    width = shutil.get_terminal_size().columns
    lines = textwrap.wrap(" " * indent + line, width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)[indent:]


def _colour() -> bool | None:
    """False where the user or the terminal wants no colours (no-color.org); else None: only on a terminal."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def styled(stream: TextIO) -> bool:
    """Whether a stream is a terminal on which colours are wanted."""
    return stream.isatty() and _colour() is None


def one_line(text: str) -> str:
    """`text` without line breaks, control characters and lone surrogates, which a model's files may hold."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def print_json(value: Any, *, indent: int | None = None) -> None:
    """`value` as JSON, flushed; on one line unless `indent` is given."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False) + "\n")
    sys.stdout.flush()


def print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    least_important: Sequence[str] = (),
    file: TextIO | None = None,
) -> None:
    """Print columns under headers, with at least one row: numbers to the right, everything else to the left.

    Args:
        least_important: Headers of columns that a narrow terminal may lack, the first one first.
    """
    table = fitting([headers, *rows], least_important, terminal_width(file))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    right = [all(map(_is_number, column)) for column in zip(*table[1:], strict=True)]
    for row in table:
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        print("  ".join(cells).rstrip(), file=file or sys.stdout)


def terminal_width(file: TextIO | None = None) -> int | None:
    """The columns of the terminal that a stream writes to (standard output by default); None if it is none."""
    return shutil.get_terminal_size().columns if (file or sys.stdout).isatty() else None


def print_pairs(pairs: Sequence[tuple[str, str]], *, file: TextIO | None = None) -> None:
    """Print a label and a value per line; a repeated label is left blank, and a terminal breaks lines between words.

    What is longer than a line, such as a path, stays whole, to be copied.
    """
    file = file or sys.stdout
    width = max(len(label) for label, _ in pairs)
    columns = terminal_width(file)
    room = None if columns is None else columns - width - 2
    before = ""
    for label, value in pairs:
        lines = (
            [value]
            if room is None
            else textwrap.wrap(value, max(20, room), break_long_words=False, break_on_hyphens=False)
        )
        for i, line in enumerate(lines or [""]):
            print(f"{label if i == 0 and label != before else '':<{width}}  {line}", file=file)
        before = label


def accept_any_bytes(stream: TextIO) -> None:
    """Make a standard stream replace what its encoding cannot hold instead of failing."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors != "replace":
        stream.reconfigure(errors="replace")


def _is_number(cell: str) -> bool:
    return cell == "-" or cell[:1].isdigit()
