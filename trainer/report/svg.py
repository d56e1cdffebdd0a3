"""Charts as SVG to stand inside a page: its letters, and its colours, which follow its light and dark mode.

No text of a user's ever gets here: matplotlib would read `$` as mathematics and stumble over scripts its font lacks.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, SQUARE = (4.5, 2.9), (3.4, 3.3)
"""Inches of 72 CSS pixels: they fit a phone's width without becoming unreadable."""

# Stand-ins no chart uses otherwise; `as_svg` puts the page's variables in their place.
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
    """A context in which matplotlib draws as the page does."""
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def new_figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    """A figure of so many inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_axisbelow(True)
    return figure, axes


def as_svg(figure: Figure, alternative: str) -> str:
    """The figure as an ``svg`` element: no XML prologue, addresses, fonts, or colours of its own."""
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
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    return svg
