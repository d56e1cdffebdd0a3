"""`report.html`: how good the model is, in one file a browser opens offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from edge_agent.evaluation import Evaluation
from trainer.data import SPLITS, Dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISTAKES_SHOWN = 12


def write_report(
    path: Path,
    dataset: Dataset,
    history: Mapping[str, Sequence[float]],
    tested: Sequence[int],
    test: Evaluation,
) -> None:
    """Write the report of one training.

    Args:
        path: the file to write.
        dataset: the pictures.
        history: loss and accuracy by epoch, as Keras names them.
        tested: places of the test pictures in the dataset.
        test: what the model said of them.
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    predicted, confusion = test.predicted, test.confusion()
    wrong = np.flatnonzero(predicted != test.truth)
    worst = wrong[np.argsort(-test.scores[wrong, predicted[wrong]], kind="stable")][:MISTAKES_SHOWN]
    low, high = wilson_interval(test.accuracy, len(tested))
    template = Environment(
        loader=PackageLoader("trainer.report"), autoescape=select_autoescape(default=True)
    ).get_template("report.html.j2")
    html = template.render(
        accuracy=test.accuracy,
        low=low,
        high=high,
        tested=len(tested),
        classes=[
            {
                "label": label,
                "recall": confusion[i, i] / confusion[i].sum(),
                **{
                    split: sum(photo.label == label and photo.split == split for photo in dataset.photos)
                    for split in SPLITS
                },
            }
            for i, label in enumerate(dataset.labels)
        ],
        confusion=_png_of(_confusion_plot(confusion, dataset.labels)),
        curves=_png_of(_learning_plot(history)),
        mistakes=[
            {
                "path": dataset.photos[tested[i]].path,
                "label": dataset.labels[test.truth[i]],
                "taken_for": dataset.labels[predicted[i]],
                "score": float(test.scores[i, predicted[i]]),
                # Pixels are in the model's order, RGB; OpenCV writes BGR.
                "png": _base64(cv2.imencode(".png", dataset.pixels[tested[i]][..., ::-1])[1].tobytes()),
            }
            for i in worst
        ],
    )
    path.write_text(html, encoding="utf-8")


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a share observed in ``count`` trials (Wilson 1927), both 0 to 1."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def _confusion_plot(confusion: npt.NDArray[np.int64], labels: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure

    side = min(12.0, 2.5 + 0.5 * len(labels))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(confusion / confusion.sum(axis=1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="taken for", ylabel="is")
    for row, column in zip(*np.nonzero(confusion), strict=True):
        dark = confusion[row, column] > confusion[row].sum() / 2
        axes.text(
            column, row, str(confusion[row, column]), ha="center", va="center", color="white" if dark else "black"
        )
    return figure


def _learning_plot(history: Mapping[str, Sequence[float]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        epochs = range(1, len(history[name]) + 1)
        axes.plot(epochs, history[name], label="train")
        axes.plot(epochs, history[f"val_{name}"], label="validation")
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _png_of(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return _base64(file.getvalue())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
