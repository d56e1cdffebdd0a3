"""Writes `report.html`, which shows how accurate the model is, which mistakes it makes, and what to do next.

The report is a single file that a browser can open offline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.atomic_files import replacing
from trainer.data import SPLITS

from . import plots
from .activation_maps import activation_maps
from .advice import calibration_noise, percent, size_sentence
from .metrics import without_temperature
from .report_data import ReportData
from .summary import advice_for, doubtful_findings, doubts
from .templating import environment
from .thumbnails import data_uri, highlighted, matrix_uri

# Limits on the numbers of images, confused pairs and findings that a report shows. Together with
# `thumbnails.MAX_BYTES`, the limit on the size of an image, they keep every report smaller than 3 MB.
MISTAKES, NEAR_MISSES, TYPICAL = 18, 9, 24
PAIRS_LISTED = 12
FINDINGS, FINDINGS_WITH_IMAGES, FINDING_GROUPS, FINDING_IMAGES = 40, 12, 6, 2
BINS = 10
"""Number of bins of the reliability chart. With 15 bins, the chart of a few hundred images would mostly show noise."""
MATRIX_CLASSES = 25
"""Maximum number of classes for which the confusion matrix is a table. With more classes, it is shown as an image."""


def write_report(path: Path, report: ReportData) -> None:
    """Write the report.

    Args:
        path: HTML file to write. An existing file is replaced atomically.
        report: contents of the report.
    """
    html = render(report)
    with replacing(path) as file:
        file.write(html.encode("utf-8", "replace"))


def render(report: ReportData) -> str:
    """Return the report as an HTML page that needs no other files and no network."""
    from markupsafe import Markup

    pages = environment("trainer.report")
    pages.filters["percent"] = percent
    pages.filters["unbroken"] = lambda text: text.replace(" %", "\u00a0%")
    test = report.test
    charts = _charts(report)
    return pages.get_template("report.html.j2").render(
        report=report,
        test=test,
        counts=report.counts,
        splits=[split for split in SPLITS if split in report.counts],
        verdict=_verdict(report),
        doubts=doubts(report),
        advice=advice_for(report),
        confusion=_confusion(report),
        classes=_classes(report),
        charts={name: [Markup(svg) for svg in svgs] for name, svgs in charts.items()},  # noqa: S704  our own SVG without user text
        size_sentence=size_sentence(report.data_size, 1 - test.accuracy) if report.data_size else "",
        calibration=_calibration(report),
        findings=_findings(report),
        **_images(report),
    )


def _verdict(report: ReportData) -> dict[str, Any]:
    error = 1 - report.test.accuracy
    if error == 0:
        words = "None of them was misclassified."
    elif error > 0.5:
        words = "The model is wrong more often than right."
    else:
        words = f"The model is wrong about once in {1 / error:.0f} images."
    commonest = max(report.test.support().values())
    return {"words": words, "guess": commonest / len(report.test.truth)}


def _charts(report: ReportData) -> dict[str, list[str]]:
    charts: dict[str, list[str]] = {"learning": [], "size": []}
    if report.history:
        charts["learning"] = plots.learning_charts(report.history, report.kept)
    if report.data_size is not None and report.data_size.points:
        charts["size"] = [plots.data_size_chart(report.data_size)]
    before = without_temperature(report.test, report.temperature).reliability(BINS) if report.temperature else None
    charts["reliability"] = [plots.reliability_chart(report.test.reliability(BINS), before)]
    return charts


def _calibration(report: ReportData) -> dict[str, float | None]:
    before = without_temperature(report.test, report.temperature).calibration_error() if report.temperature else None
    return {
        "error": report.test.calibration_error(),
        "before": before,
        "noise": calibration_noise(report.test.reliability()),
    }


def _confusion(report: ReportData) -> dict[str, Any]:
    test, support = report.test, report.test.support()
    pairs = [
        {"label": label, "predicted": predicted, "count": count, "images": support[label]}
        for label, predicted, count in test.confused_pairs()[:PAIRS_LISTED]
    ]
    matrix = test.confusion()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    if len(report.labels) > MATRIX_CLASSES:
        return {"pairs": pairs, "rows": [], "image": matrix_uri(shares)}
    rows = [
        {
            "label": label,
            "images": int(matrix[i].sum()),
            "cells": [
                {"count": int(matrix[i, j]), "share": float(shares[i, j]), "column": column, "correct": i == j}
                for j, column in enumerate(report.labels)
            ],
        }
        for i, label in enumerate(report.labels)
    ]
    return {"pairs": pairs, "rows": rows, "image": ""}


def _classes(report: ReportData) -> list[dict[str, Any]]:
    """Return one row per class, the lowest recall first. Classes without test images come last."""
    recall, precision, f1 = report.test.recall(), report.test.precision(), report.test.f1()
    rows = [
        {
            "label": label,
            "counts": [report.counts[split][label] for split in SPLITS if split in report.counts],
            "recall": recall.get(label),
            "precision": precision.get(label),
            "f1": f1.get(label),
        }
        for label in report.labels
    ]
    return sorted(rows, key=lambda row: 2.0 if row["recall"] is None else row["recall"])


def _images(report: ReportData) -> dict[str, Any]:
    """Select the images that the report shows, and return the variables of the template for them.

    The images are the mistakes with the highest scores, near misses, and one typical image per class. Near misses are
    correctly classified images with the smallest difference between the two highest scores.
    """
    test = report.test
    top = np.sort(test.scores, axis=1)[:, -2:]
    second = np.argsort(-test.scores, axis=1, kind="stable")[:, 1]
    wrong, right = np.flatnonzero(~test.right), np.flatnonzero(test.right)
    mistakes = wrong[np.argsort(-top[wrong, -1], kind="stable")][:MISTAKES]
    margins = top[right, -1] - top[right, -2]
    near = right[np.argsort(margins, kind="stable")][:NEAR_MISSES]
    typical = _typical(report)
    positions = [*mistakes.tolist(), *near.tolist(), *typical]
    cards = _cards(report, positions)
    for position, card in zip(positions, cards, strict=True):
        card["rival"], card["rival_score"] = report.labels[second[position]], float(top[position, -2])
    first, then = len(mistakes), len(mistakes) + len(near)
    return {
        "mistakes": cards[:first],
        "mistakes_count": len(wrong),
        "near_misses": cards[first:then],
        "typical": cards[then:],
        "maps": any(card["map"] for card in cards),
    }


def _typical(report: ReportData) -> list[int]:
    """Return the positions of typical test images, at most one per class and `TYPICAL` in total.

    The typical image of a class is the correctly classified one with the median score. Classes with the lowest recall
    come first.
    """
    chosen = []
    weakest = sorted(report.test.recall().items(), key=lambda item: item[1])
    for label, share in weakest:
        if share:
            index = report.labels.index(label)
            own = np.flatnonzero(report.test.right & (report.test.truth == index))
            order = own[np.argsort(report.test.scores[own, index], kind="stable")]
            chosen.append(int(order[len(order) // 2]))
    return chosen[:TYPICAL]


def _cards(report: ReportData, positions: Sequence[int]) -> list[dict[str, Any]]:
    """Return what the report shows about the test images at ``positions``.

    For each image, the report shows a thumbnail, the activation map of the predicted class, the true and the predicted
    class, and the score.
    """
    pixels = [np.asarray(report.dataset.pixels[int(report.tested[position])]) for position in positions]
    channels = report.channels
    predicted = [int(report.test.predicted[position]) for position in positions]
    heats: Iterable[npt.NDArray[np.float32] | None] = [None] * len(positions)
    if report.model is not None:
        heats = activation_maps(report.model, pixels, predicted) or heats
    return [
        {
            "path": report.photo(position).path,
            "label": report.labels[report.test.truth[position]],
            "predicted": report.labels[index],
            "score": float(report.test.scores[position, index]),
            "image": data_uri(image, channels=channels),
            "map": "" if heat is None else data_uri(highlighted(image, heat, channels=channels), channels=channels),
        }
        for position, image, index, heat in zip(positions, pixels, predicted, heats, strict=True)
    ]


def _findings(report: ReportData) -> list[dict[str, Any]]:
    """Return the findings in the dataset, with example images. Findings that make the accuracy doubtful come first."""
    positions = {photo.path: i for i, photo in enumerate(report.dataset.photos)}
    shown: dict[str, str] = {}

    def image(path: str) -> dict[str, str]:
        position = positions.get(path)
        if position is None:  # copies and unreadable images were left out of the dataset
            return {"path": path, "uri": "", "split": "", "label": ""}
        if path not in shown:
            shown[path] = data_uri(np.asarray(report.dataset.pixels[position]), channels=report.channels, side=96)
        photo = report.dataset.photos[position]
        return {"path": path, "uri": shown[path], "split": photo.split, "label": photo.label}

    doubtful = doubtful_findings(report)
    findings = sorted(report.dataset.findings, key=lambda finding: finding not in doubtful)[:FINDINGS]
    return [
        {
            "message": finding.message,
            "doubtful": finding in doubtful,
            "groups": [
                [image(path) for path in group[:FINDING_IMAGES]]
                for group in (finding.images[:FINDING_GROUPS] if number < FINDINGS_WITH_IMAGES else ())
            ],
            "more": len(finding.images) > FINDING_GROUPS,
        }
        for number, finding in enumerate(findings)
    ]
