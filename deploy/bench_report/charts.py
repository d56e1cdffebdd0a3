"""Draws the charts of the latency report as SVG. Letters identify the rows of the table in the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_agent.bench.report import Steady, Sustained
from trainer.report.svg import BLUE, GRID, INK, ORANGE, WIDE, as_svg, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_CURVES = 6
_LINES = ("solid", (0, (5, 2)), (0, (1, 1.5)))


def ranges(letters: Sequence[str], rows: Sequence[Steady]) -> str:
    """Draw the median, p90 and p99 latency of each row."""
    with style():
        figure, axes = new_figure((WIDE[0], 0.9 + 0.32 * len(rows)))
        for place, row in enumerate(rows):
            spread = row.invoke
            axes.plot([spread.p50, spread.p99], [place, place], color=GRID, linewidth=7)
            axes.plot([spread.p50, spread.p90], [place, place], color=BLUE, linewidth=7, alpha=0.35)
            axes.plot(spread.p50, place, "|", color=BLUE, markersize=13, markeredgewidth=3)
            axes.annotate(
                f"{spread.p50:.2f}",
                (spread.p50, place),
                (-6, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=9,
            )
        highest = max(row.invoke.p99 for row in rows)
        axes.set(
            xlabel="ms: median, up to p90 (blue), up to p99 (grey)",
            ylim=(len(rows) - 0.5, -0.5),
            xlim=(0, highest * 1.05),
        )
        axes.set_yticks(range(len(rows)), list(letters))
        axes.tick_params(axis="y", labelcolor=INK)
        axes.grid(visible=False, axis="y")
        return as_svg(figure, "Latency of each row")


def distributions(letters: Sequence[str], rows: Sequence[Steady]) -> str:
    """Draw the cumulative distribution of the latencies of each row."""
    with style():
        figure, axes = new_figure(WIDE)
        for place, (letter, row) in enumerate(zip(letters, rows, strict=True)):
            times = np.sort(np.asarray(row.times_ms))
            share = 100 * np.arange(1, len(times) + 1) / len(times)
            axes.step(times, share, where="post", label=letter, **_style(place))
        axes.set_xscale("log")
        lowest = min(min(row.times_ms) for row in rows)
        highest = max(float(np.percentile(row.times_ms, 99.5)) for row in rows)
        axes.set(xlabel="latency up to, ms", ylabel="inferences, %", xlim=(lowest * 0.95, highest * 1.1))
        _plain_ticks(axes, lowest, highest)
        axes.legend(loc="lower right")
        return as_svg(figure, "Distribution of latency")


def threads(letters: Sequence[str], groups: Sequence[Sequence[Steady]]) -> str:
    """Draw the median and p95 latency for each number of threads. A group is one bundle on one machine."""
    with style():
        figure, axes = new_figure(WIDE)
        for place, (letter, group) in enumerate(zip(letters, groups, strict=True)):
            counts = [row.threads for row in group]
            line = _style(place)
            axes.plot(counts, [row.invoke.p50 for row in group], marker="o", markersize=4.5, label=letter, **line)
            low, high = [row.invoke.p50 for row in group], [row.invoke.p95 for row in group]
            axes.fill_between(counts, low, high, color=line["color"], alpha=0.15, linewidth=0)
        counts = sorted({row.threads for group in groups for row in group})
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set(xlabel="threads", ylabel="ms: median, up to p95", ylim=(0, None))
        axes.legend(loc="best")
        return as_svg(figure, "Latency by number of threads")


def over_time(one: Sustained) -> str:
    """Draw the latency and the temperature in each second of sustained load."""
    at = [second.at_s for second in one.seconds]
    with style():
        figure, axes = new_figure(WIDE)
        p50, p99 = [second.p50_ms for second in one.seconds], [second.p99_ms for second in one.seconds]
        axes.fill_between(at, p50, p99, color=BLUE, alpha=0.18, linewidth=0)
        axes.plot(at, p50, color=BLUE)
        axes.set(xlabel="s", ylabel="ms: median, up to p99 (blue)", ylim=(0, max(p99) * 1.1))
        throttled = [second.at_s for second in one.seconds if second.throttled]
        if throttled:
            axes.plot(throttled, [0] * len(throttled), "|", color=INK, markersize=9)
        heat = [(second.at_s, second.temperature_c) for second in one.seconds if second.temperature_c is not None]
        if heat:
            other = axes.twinx()
            other.plot(*zip(*heat, strict=True), color=ORANGE)
            other.set_ylabel("degrees Celsius (orange)")
            other.grid(visible=False)
        return as_svg(figure, "Latency and temperature over time")


def accuracies(letters: Sequence[str], points: Sequence[tuple[float, float]]) -> str:
    """Draw accuracy against latency. The best points are at the top left.

    Args:
        letters: letter of each point.
        points: median latency in milliseconds and accuracy from 0 to 1.
    """
    with style():
        figure, axes = new_figure(WIDE)
        for letter, (ms, accuracy) in zip(letters, points, strict=True):
            axes.plot(ms, 100 * accuracy, "o", color=BLUE, markersize=6)
            axes.annotate(letter, (ms, 100 * accuracy), (6, 4), textcoords="offset points", fontsize=10.5)
        axes.set(xlabel="ms, median", ylabel="accuracy, %", xlim=(0, max(ms for ms, _ in points) * 1.15))
        lowest = min(accuracy for _, accuracy in points)
        axes.set_ylim(max(0.0, 100 * lowest - 5), 101)
        return as_svg(figure, "Accuracy against latency")


def _style(place: int) -> dict[str, Any]:
    """Return the line style of a curve. Two colours and three dash patterns make six curves distinguishable."""
    return {"color": (BLUE, ORANGE)[place % 2], "linestyle": _LINES[place // 2 % len(_LINES)]}


def _plain_ticks(axes: Axes, lowest: float, highest: float) -> None:
    """Label a logarithmic axis with round numbers."""
    steps = [base * 10.0**power for power in range(-3, 5) for base in (1, 2, 5)]
    ticks = [step for step in steps if 0.9 * lowest <= step <= 1.1 * highest] or [lowest, highest]
    axes.set_xticks(ticks, [f"{tick:g}" if tick in steps else f"{tick:.2g}" for tick in ticks])
    axes.minorticks_off()
