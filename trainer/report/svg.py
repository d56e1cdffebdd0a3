"""Matplotlib charts as inline SVG that use the page's font and colours and follow its light and dark mode.

User text must not be passed to these charts: matplotlib would read `$` as mathematics, and its font lacks some scripts.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, SQUARE = (4.5, 2.9), (3.4, 3.3)
"""Figure sizes in inches of 72 CSS pixels, narrow enough to stay readable on a phone."""

# Placeholder colours that no chart uses otherwise; `as_svg` replaces them with the page's CSS variables.
INK, MUTED, GRID, BLUE, ORANGE = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", BLUE: "blue", ORANGE: "orange"}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "edgeloop",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


def style() -> Any:
    """Return a context manager in which matplotlib uses the page's style."""
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def new_figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    """Create a figure with one pair of axes, ``size`` inches wide and high."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_axisbelow(True)
    return figure, axes


def as_svg(figure: Figure, alternative: str) -> str:
    """Render a figure as an ``svg`` element without XML prologue, URLs, fonts and fixed colours.

    Args:
        figure: the figure.
        alternative: text for screen readers.
    """
    file = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue().decode()
    width, height = (round(72 * side) for side in figure.get_size_inches())
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r"<svg[^>]*>", f'<svg role="img" aria-label="{alternative}" viewBox="0 0 {width} {height}">', svg, count=1
    )
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r' id="(?:figure|axes|patch|text|line2d|xtick|ytick|matplotlib|legend|PathColl|FillB)[^"]*"', "", svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, f"var(--{variable})")
    return svg
