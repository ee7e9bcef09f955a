"""Which counts of tokens and rows have programs of their own."""

from __future__ import annotations

COLUMNS = (1, 2, 4, 8, 16, 32, 64)
"""Rows that have programs of their own; beyond, there is one for many."""
MOST_VECTORS = 8
"""Rows up to which products are matrix × vector: from the next ones on, matrix × matrix."""
ROW_TILE = 64
"""Rows of x that a matrix × matrix tile may touch: capacities are rounded up to it."""


def columns_for(count: int) -> int:
    """The fewest rows with a program of their own that hold `count`; 0 where there are more."""
    return next((columns for columns in COLUMNS if count <= columns), 0)


def capacity(columns: int, most: int) -> int:
    """Rows that activations have room for, where a batch has at most `most`."""
    return columns or -(-most // ROW_TILE) * ROW_TILE
