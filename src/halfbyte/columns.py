"""Tables of plain text, as wide as there is room: by columns that may go, or in several parts."""

from __future__ import annotations

from collections.abc import Sequence

GAP = "  "


def aligned(rows: Sequence[Sequence[str]], *, width: int | None = None) -> str:
    """Columns: the first to the left, all others to the right.

    Args:
        width: How wide lines may be; columns that have no room follow below, beside the first column again.
    """
    widths = _widths(rows)
    parts, used = [[0]], widths[0]
    for i in range(1, len(widths)):
        if width is not None and len(parts[-1]) > 1 and used + len(GAP) + widths[i] > width:
            parts.append([0])
            used = widths[0]
        parts[-1].append(i)
        used += len(GAP) + widths[i]
    return "\n\n".join(_part([[row[i] for i in part] for row in rows]) for part in parts)


def fitting(rows: Sequence[Sequence[str]], least_important: Sequence[str], width: int | None) -> list[list[str]]:
    """The rows, the first of which has the headings, without columns for which lines of `width` have no room.

    Args:
        least_important: Headings of columns that may go, the first one first.
    """
    kept = [list(row) for row in rows]
    for name in least_important:
        widths = _widths(kept)
        if width is None or sum(widths) + len(GAP) * (len(widths) - 1) <= width:
            break
        at = kept[0].index(name)
        kept = [row[:at] + row[at + 1 :] for row in kept]
    return kept


def _part(rows: Sequence[Sequence[str]]) -> str:
    widths = _widths(rows)
    return "\n".join(
        GAP.join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    )


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]
