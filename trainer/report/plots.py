"""Draws the charts of the report as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from edge_agent.inference.evaluation import Reliability, wilson_interval

from .learning_curve import DataSize
from .svg import BLUE, MUTED, ORANGE, SQUARE, WIDE, as_svg, new_figure, style


def learning_charts(history: Sequence[Mapping[str, Any]], kept: int | None) -> list[str]:
    """Draw two charts: the loss and the accuracy by epoch, for the training and the validation images.

    Args:
        history: one row per epoch; see `ReportData`.
        kept: index of the row of the epoch whose weights the model has; None if unknown.
    """
    from matplotlib.ticker import MaxNLocator

    epochs = np.arange(1, len(history) + 1)
    starts = [i for i in range(1, len(history)) if history[i].get("phase") != history[i - 1].get("phase")]
    charts = []
    for title, columns in (
        ("Loss", {"loss": ("training", MUTED), "val_loss": ("validation", BLUE)}),
        ("Accuracy, %", {"accuracy": ("training", MUTED), "val_accuracy": ("validation", BLUE)}),
    ):
        with style():
            figure, axes = new_figure(WIDE)
            for column, (name, colour) in columns.items():
                values = np.array([row.get(column, np.nan) for row in history], float)
                if title != "Loss":
                    values = 100 * values
                if np.isfinite(values).any():
                    axes.plot(epochs, values, color=colour, label=name, marker="o" if len(epochs) == 1 else "")
                    if kept is not None and column.startswith("val"):
                        axes.plot(epochs[kept], values[kept], "o", color=ORANGE, label="kept", markersize=6)
            for start, end in pairwise([*starts, len(history)]):
                axes.axvspan(start + 0.5, end + 0.5, color=BLUE, alpha=0.08, linewidth=0, label=history[start]["phase"])
            axes.set_title(title, loc="left")
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.legend(loc="best")
            charts.append(as_svg(figure, f"{title} by epoch"))
    return charts


def reliability_chart(after: Reliability, before: Reliability | None) -> str:
    """Draw the share of correct answers by score, with 95 % intervals.

    Args:
        after: reliability of the model's scores. If the model has temperature scaling, they include it.
        before: reliability of the scores without temperature scaling; None to leave it out.
    """
    with style():
        figure, axes = new_figure(SQUARE)
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        for found, colour, name in ((before, MUTED, "before calibration"), (after, BLUE, "as shipped")):
            if found is None:
                continue
            used = found.images > 0
            score, right, images = 100 * found.score[used], 100 * found.accuracy[used], found.images[used]
            sizes = 14 + 150 * images / images.sum()
            axes.scatter(score, right, s=sizes, color=colour, linewidths=0, alpha=0.9)
            # The legend shows this empty plot, so that all its dots have the same size.
            axes.scatter([], [], s=30, color=colour, linewidths=0, label=name)
            if found is after:
                limits = [wilson_interval(share / 100, count) for share, count in zip(right, images, strict=True)]
                low, high = 100 * np.array(limits).T
                axes.vlines(score, low, high, color=colour, linewidth=1, alpha=0.6)
        axes.set(xlabel="score, %", ylabel="correct, %", xlim=(-3, 103), ylim=(-3, 103))
        axes.set_xticks(range(0, 101, 25))
        axes.set_yticks(range(0, 101, 25))
        axes.legend(loc="best", handletextpad=0.2)
        return as_svg(figure, "Share of correct answers by score")


def data_size_chart(found: DataSize) -> str:
    """Draw the learning curve, which is the accuracy of simple heads by the number of training images.

    The forecast is drawn only if the last point of the curve uses all training images.
    """
    sizes = np.array([point.train_images for point in found.points])
    accuracies = 100 * np.array([point.accuracy for point in found.points])
    spreads = 100 * np.array([point.std for point in found.points])
    with style():
        figure, axes = new_figure(WIDE)
        axes.fill_between(sizes, accuracies - spreads, accuracies + spreads, color=BLUE, alpha=0.18, linewidth=0)
        axes.plot(sizes, accuracies, color=BLUE, marker="o", markersize=4.5, label="measured")
        if found.forecasts and sizes[-1] == found.train_images:
            now, error = found.train_images, 100 - accuracies[-1]
            at = np.array([now, *(forecast.times * now for forecast in found.forecasts)])
            middle, low, high = (
                accuracies[-1] + error * np.array([0, *(getattr(forecast, name) for forecast in found.forecasts)])
                for name in ("avoided", "low", "high")
            )
            axes.fill_between(at, low, high, color=ORANGE, alpha=0.18, linewidth=0)
            axes.plot(at, middle, color=ORANGE, linestyle=(0, (4, 2)), marker="o", markersize=4.5, label="forecast")
        axes.set_xscale("log")
        forecast_sizes = [forecast.times * found.train_images for forecast in found.forecasts]
        ticks = [*sizes[::-2][::-1].tolist(), *(forecast_sizes if sizes[-1] == found.train_images else [])]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel="training images", ylabel="accuracy, %")
        axes.legend(loc="lower right")
        return as_svg(figure, "Accuracy by number of training images")
