"""Renders Matplotlib charts as inline SVG.

The charts use the font and the colours of the page, also in dark mode. Do not put text from the user, such as class
names, into a chart. Matplotlib would interpret `$` as the beginning of a formula, and Matplotlib's font does not
support all scripts.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, SQUARE = (4.5, 2.9), (3.4, 3.3)
"""Widths and heights of the two sizes of figures, in inches. One inch is 72 CSS pixels.

Both sizes are narrow enough to be readable on a phone.
"""

# Placeholders for the colours of the page. `as_svg` replaces them with CSS variables.
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
    """Return a context manager in which Matplotlib uses the style of the page."""
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def new_figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    """Create a figure with one pair of axes. ``size`` is the width and height in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_axisbelow(True)
    return figure, axes


def as_svg(figure: Figure, alternative: str) -> str:
    """Render a figure as an ``svg`` element, without an XML prologue, URLs, fonts or fixed colours.

    Args:
        figure: the figure.
        alternative: text that screen readers read instead of the figure.
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
