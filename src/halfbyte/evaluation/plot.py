"""The plot of a table: perplexity over the original's against the window length, by matplotlib (`halfbyte[plot]`)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from halfbyte.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LIGHT = ("#1b1b1b", "#0b6e99", "#c4472c", "#3f7d3a", "#7b4fa3", "#b8860b", "#5a6570")
_DARK = ("#f0f0f0", "#58b7e0", "#f0826a", "#7bc275", "#b995dd", "#e3b341", "#9aa5b1")
"""Colours of the lines, on white and on black."""

_INKS = ("#333333", "#dddddd"), ("#767676", "#8b949e"), ("#d9d9d9", "#30363d")
"""Text and axes, the line at 1.0, the grid: each on white and on black."""
_PAPERS = ("#ffffff", "#0d1117")

_TICKS = 8
"""So many window lengths have room for a label."""


def check_plotting() -> None:
    """Refuse to plot where matplotlib is missing.

    Raises:
        UsageError: It is.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError.not_installed("A plot", "matplotlib", "plot") from error


def plot(
    names: Sequence[str],
    lines: Sequence[Sequence[float]],
    windows: Sequence[int],
    title: str,
    *,
    form: str = "svg",
    dark: bool = False,
) -> bytes:
    """A picture with a line per name. An SVG that is not `dark` becomes so where its reader's system is.

    Args:
        names: As the legend has them; the first is the original, whose line lies at 1.
        lines: For each name its ratios, one per window length.
        windows: Window lengths, ascending; the axis is logarithmic.
        form: Of the file: `svg`, `png` or `pdf`.
        dark: Whether it is for a dark page.

    Raises:
        UsageError: matplotlib is missing.
    """
    check_plotting()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "halfbyte"}):
        figure = Figure(figsize=(7.5, 4.5), dpi=160, facecolor=_PAPERS[dark])
        _draw(figure.subplots(), names, lines, windows, title, dark=dark)
        _colour(figure, dark=dark)
        out = io.BytesIO()
        dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(out, format=form, bbox_inches="tight", pad_inches=0.2, metadata=dated.get(form))
    return _following_the_reader(out.getvalue()) if form == "svg" and not dark else out.getvalue()


def _draw(
    axes: Axes,
    names: Sequence[str],
    lines: Sequence[Sequence[float]],
    windows: Sequence[int],
    title: str,
    *,
    dark: bool,
) -> None:
    colours = _DARK if dark else _LIGHT
    for i, (name, line) in enumerate(zip(names, lines, strict=True)):
        colour = colours[i % len(colours)]
        axes.plot(windows, line, color=colour, label=name, marker="o", markersize=4, linewidth=1.8, gid=f"line-{i}")
    axes.axhline(1.0, color=_INKS[1][dark], linestyle="--", linewidth=1, zorder=1, label="1.0: as the original")
    axes.set_xscale("log", base=2)
    axes.set_xticks(_powers(windows), [f"{power:,}" for power in _powers(windows)])
    axes.set_title(title, pad=12)
    axes.set_xlabel("window length (tokens)")
    axes.set_ylabel("perplexity / original's perplexity")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0, frameon=False)


def _powers(windows: Sequence[int]) -> list[int]:
    """Powers of two from the first window to the last; the windows themselves where none lies between."""
    powers = [2**i for i in range(1, 31) if windows[0] <= 2**i <= windows[-1]]
    step = -(-len(powers) // _TICKS)
    return powers[::-1][::step][::-1] or [*windows]


def _colour(figure: Figure, *, dark: bool) -> None:
    """Give text, axes and grid the colours of the page."""
    ink, _, grid = (pair[dark] for pair in _INKS)
    for axes in figure.axes:
        axes.set_facecolor(_PAPERS[dark])
        axes.grid(color=grid, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", color=ink, labelcolor=ink)
        for spine in axes.spines.values():
            spine.set_color(ink)
        legend = axes.get_legend()
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *(legend.get_texts() if legend else ())):
            text.set_color(ink)


def _following_the_reader(svg: bytes) -> bytes:
    """An SVG on white, with the colours of a dark page where the reader's system is dark."""
    pairs = [*zip(_LIGHT, _DARK, strict=True), *_INKS, _PAPERS]
    rules = " ".join(
        f'[style*="{kind}: {light}"] {{ {kind}: {dark} !important }}'
        for light, dark in pairs
        for kind in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark) {{ {rules} }}</style>\n"
    head, start, rest = svg.partition(b"<defs>")
    return head + style.encode() + start + rest
