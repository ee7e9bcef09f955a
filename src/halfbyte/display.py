"""How objects show themselves: on a line, and in notebooks as HTML, in which every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LONGEST = 60
"""Characters of a text that a line shows."""


def given(value: DataclassInstance) -> str:
    """A dataclass as it could be written: without the fields that have their default."""
    parts = []
    for field in fields(value):
        found = getattr(value, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if found != default:
            parts.append(f"{field.name}={found!r}")
    return f"{type(value).__name__}({', '.join(parts)})"


def shortened(text: str) -> str:
    """The beginning of a text, in quotation marks."""
    return repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")


def passage(text: str, *, caption: str) -> str:
    """A text with its line breaks and, below, what there is to say about it."""
    return f"<div style='white-space: pre-wrap'>{_escaped(text)}</div><small>{_escaped(caption)}</small>"


def table(rows: Iterable[Sequence[str]], *, head: Sequence[str] = (), caption: str = "") -> str:
    """A table. Under headings, columns after the first stand to the right, as figures do.

    Args:
        head: Headings of the columns, if they have any.
        caption: What stands above the table; a line break in it is one on the page.
    """
    side = "right" if head else "left"
    above = f"<caption style='text-align: left; white-space: pre-line'>{_escaped(caption)}</caption>" if caption else ""
    first = f"<thead>{_row('th', head, side)}</thead>" if head else ""
    return f"<table>{above}{first}<tbody>{''.join(_row('td', row, side) for row in rows)}</tbody></table>"


def _row(tag: str, cells: Sequence[str], side: str) -> str:
    sides = ["left", *[side] * (len(cells) - 1)]
    made = (
        f"<{tag} style='text-align: {side}'>{_escaped(cell)}</{tag}>" for side, cell in zip(sides, cells, strict=True)
    )
    return f"<tr>{''.join(made)}</tr>"


def _escaped(text: str) -> str:
    from html import escape

    return escape(text)
