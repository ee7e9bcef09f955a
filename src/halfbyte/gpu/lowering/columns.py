"""Which counts of tokens and rows have programs of their own."""

from __future__ import annotations

COLUMNS = (1, 2, 4, 8)
"""Token counts with matrix × vector kernels of their own; beyond, matrix × matrix."""
ROW_TILE = 64
"""Rows of x that a matrix × matrix tile may touch: capacities are rounded up to it."""


def columns_for(count: int) -> int:
    """The fewest columns of a kernel that hold `count`; 0 where matrix × matrix begins."""
    return next((columns for columns in COLUMNS if count <= columns), 0)


def capacity(columns: int, most: int) -> int:
    """Rows that activations have room for, where a batch has at most `most`."""
    return columns or -(-most // ROW_TILE) * ROW_TILE
