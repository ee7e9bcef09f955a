"""The plot of a table: perplexity over the original's against the window length, as SVG for light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

_HEIGHT = 420
_LEFT, _TOP, _BOTTOM = 76, 44, 360
"""Edges of the plot. The legend stands to its right, so that it covers no curve."""
_RIGHT = 560
_LABEL_WIDTH = 30
_LETTER = 7.5

_COLOURS = ("#1b1b1b", "#0b6e99", "#c4472c", "#3f7d3a", "#7b4fa3", "#b8860b", "#5a6570")
_DARK_COLOURS = ("#f0f0f0", "#58b7e0", "#f0826a", "#7bc275", "#b995dd", "#e3b341", "#9aa5b1")


def plot(names: Sequence[str], lines: Sequence[Sequence[float]], windows: Sequence[int], title: str) -> str:
    """An SVG with a line per name.

    Args:
        names: As the legend has them; the first is the original, whose line lies at 1.
        lines: For each name its ratios, one per window length.
        windows: Window lengths, ascending; the axis is logarithmic.
    """
    ticks = _ticks([1.0, *(value for line in lines for value in line)])
    parts = [_text((_LEFT + _RIGHT) / 2, 24, title, "middle")]
    for value in ticks:
        parts.append(f'<path class="grid" d="M{_LEFT} {_y(value, ticks):.1f}H{_RIGHT}"/>')
        parts.append(_text(_LEFT - 8, _y(value, ticks) + 4, f"{value:.{_digits(ticks)}f}", "end"))
    parts += _window_axis(windows)
    parts.append(_text(0, 0, "perplexity / original's", "middle", f'transform="translate(18 {_middle()}) rotate(-90)"'))
    parts.append(f'<path class="one" d="M{_LEFT} {_y(1.0, ticks):.1f}H{_RIGHT}"/>')
    for i, line in enumerate(lines):
        points = " ".join(f"{_x(w, windows):.1f},{_y(v, ticks):.1f}" for w, v in zip(windows, line, strict=True))
        parts.append(f'<polyline class="c{i % len(_COLOURS)}" points="{points}"/>')
    parts += _legend(names)
    width = _RIGHT + 66 + _LETTER * max(20, *map(len, names))
    size = f'width="{width:.0f}" height="{_HEIGHT}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="13">\n<style>{_style()}</style>\n'
        f'<rect class="paper" {size}/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _style() -> str:
    """Colours, others where the reader's system is dark."""

    def colours(text: str, grid: str, one: str, paper: str, lines: Sequence[str]) -> str:
        drawn = " ".join(f".c{i} {{ stroke: {colour} }}" for i, colour in enumerate(lines))
        ground = f"text {{ fill: {text} }} .grid {{ stroke: {grid} }} .one {{ stroke: {one} }}"
        return f"{ground} .paper {{ fill: {paper} }} {drawn}"

    light = colours("#333", "#ddd", "#777", "#fff", _COLOURS)
    dark = colours("#ddd", "#30363d", "#999", "#0d1117", _DARK_COLOURS)
    shapes = "polyline { fill: none } polyline, .key { stroke-width: 2 } .one { stroke-dasharray: 5 4 }"
    return f"{shapes} {light} @media (prefers-color-scheme: dark) {{ {dark} }}"


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers at equal distances, from below the least value to above the greatest."""
    low, high = min(values), max(values)
    rough = max(high - low, 1e-3) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [step * i for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _digits(ticks: Sequence[float]) -> int:
    return max(1, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))


def _y(value: float, ticks: Sequence[float]) -> float:
    return _BOTTOM - (value - ticks[0]) / (ticks[-1] - ticks[0]) * (_BOTTOM - _TOP)


def _x(window: int, windows: Sequence[int]) -> float:
    if len(windows) == 1:
        return (_LEFT + _RIGHT) / 2
    return _LEFT + math.log(window / windows[0]) / math.log(windows[-1] / windows[0]) * (_RIGHT - _LEFT)


def _middle() -> float:
    return (_TOP + _BOTTOM) / 2


def _window_axis(windows: Sequence[int]) -> list[str]:
    """A tick per window length, labelled where there is room, and the axis title."""
    parts = []
    free = _x(windows[-1], windows) - _LABEL_WIDTH
    before = -math.inf
    for window in windows:
        at = _x(window, windows)
        parts.append(f'<path class="one" stroke-dasharray="none" d="M{at:.1f} {_BOTTOM}v5"/>')
        if window == windows[-1] or before + _LABEL_WIDTH <= at <= free:
            parts.append(_text(at, _BOTTOM + 22, str(window), "middle"))
            before = at
    return [*parts, _text((_LEFT + _RIGHT) / 2, _BOTTOM + 46, "window, in tokens (logarithmic)", "middle")]


def _legend(names: Sequence[str]) -> list[str]:
    entries = [(f"c{i % len(_COLOURS)}", name) for i, name in enumerate(names)] + [("one", "1.0: as the original")]
    parts = []
    for i, (style, name) in enumerate(entries):
        y = _TOP + 12 + 22 * i
        parts.append(f'<path class="key {style}" d="M{_RIGHT + 16} {y}h22"/>')
        parts.append(_text(_RIGHT + 46, y + 4, name, "start"))
    return parts


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    place = more or f'x="{x:.1f}" y="{y:.1f}"'
    return f'<text {place} text-anchor="{anchor}">{escape(text)}</text>'
