"""Figures for people: three digits and a decimal prefix."""

from __future__ import annotations

import math


def quantity(value: float, unit: str) -> str:
    """A figure with a decimal prefix: 1230000, "B" → "1.23 MB"; 4.28e12, "B/s" → "4.28 TB/s".

    Raises:
        ValueError: It is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a finite figure")
    prefixes = iter(("", "k", "M", "G", "T"))
    prefix = next(prefixes)
    while abs(value) >= 999.5 and (larger := next(prefixes, None)):
        value, prefix = value / 1000, larger
    return f"{value:.3g} {prefix}{unit}".rstrip()


def size(nbytes: float) -> str:
    """Bytes in decimal units, three digits: `17.4 MB`."""
    return quantity(nbytes, "B")
