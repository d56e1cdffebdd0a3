"""`report.html`: how good the model is, why, and what to do next, in one file a browser opens offline."""

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
from .thumbnails import data_uri, lit, matrix_uri

# What a report shows at most: with images of `thumbnails.MAX_BYTES`, it stays under 3 MB whatever the data.
MISTAKES, NEAR_MISSES, TYPICAL = 18, 9, 24
PAIRS_LISTED = 12
FINDINGS, FINDINGS_WITH_IMAGES, FINDING_GROUPS, FINDING_IMAGES = 40, 12, 6, 2
BINS = 10
"""Of the reliability chart: 15 small bins of a few hundred images are mostly noise."""
MATRIX_CLASSES = 25
"""Up to so many classes the confusion matrix is a table of numbers; above, an image and a list."""


def write_report(path: Path, story: ReportData) -> None:
    """Write the report.

    Args:
        path: the file; replaced in one step if it exists.
        story: what it is about.
    """
    html = render(story)
    with replacing(path) as file:
        file.write(html.encode("utf-8", "replace"))


def render(story: ReportData) -> str:
    """The report as HTML: it needs no other file and no network."""
    from markupsafe import Markup

    pages = environment("trainer.report")
    pages.filters["percent"] = percent
    pages.filters["unbroken"] = lambda text: text.replace(" %", "\u00a0%")
    test = story.test
    charts = _charts(story)
    return pages.get_template("report.html.j2").render(
        story=story,
        test=test,
        counts=story.counts,
        splits=[split for split in SPLITS if split in story.counts],
        verdict=_verdict(story),
        doubts=doubts(story),
        advice=advice_for(story),
        confusion=_confusion(story),
        classes=_classes(story),
        charts={name: [Markup(svg) for svg in svgs] for name, svgs in charts.items()},  # noqa: S704  our own SVG, free of user text
        size_sentence=size_sentence(story.data_size, 1 - test.accuracy) if story.data_size else "",
        calibration=_calibration(story),
        findings=_findings(story),
        **_images(story),
    )


def _verdict(story: ReportData) -> dict[str, Any]:
    error = 1 - story.test.accuracy
    if error == 0:
        words = "None of them was taken for something else."
    elif error > 0.5:
        words = "It is wrong more often than right."
    else:
        words = f"It is wrong about once in {1 / error:.0f} images."
    commonest = max(story.test.support().values())
    return {"words": words, "guess": commonest / len(story.test.truth)}


def _charts(story: ReportData) -> dict[str, list[str]]:
    charts: dict[str, list[str]] = {"learning": [], "size": []}
    if story.history:
        charts["learning"] = plots.learning_charts(story.history, story.kept)
    if story.data_size is not None and story.data_size.points:
        charts["size"] = [plots.data_size_chart(story.data_size)]
    before = without_temperature(story.test, story.temperature).reliability(BINS) if story.temperature else None
    charts["reliability"] = [plots.reliability_chart(story.test.reliability(BINS), before)]
    return charts


def _calibration(story: ReportData) -> dict[str, float | None]:
    before = without_temperature(story.test, story.temperature).calibration_error() if story.temperature else None
    return {
        "error": story.test.calibration_error(),
        "before": before,
        "noise": calibration_noise(story.test.reliability()),
    }


def _confusion(story: ReportData) -> dict[str, Any]:
    test, support = story.test, story.test.support()
    pairs = [
        {"label": label, "taken_for": taken_for, "count": count, "images": support[label]}
        for label, taken_for, count in test.confused_pairs()[:PAIRS_LISTED]
    ]
    matrix = test.confusion()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    if len(story.labels) > MATRIX_CLASSES:
        return {"pairs": pairs, "rows": [], "image": matrix_uri(shares)}
    rows = [
        {
            "label": label,
            "images": int(matrix[i].sum()),
            "cells": [
                {"count": int(matrix[i, j]), "share": float(shares[i, j]), "column": column, "right": i == j}
                for j, column in enumerate(story.labels)
            ],
        }
        for i, label in enumerate(story.labels)
    ]
    return {"pairs": pairs, "rows": rows, "image": ""}


def _classes(story: ReportData) -> list[dict[str, Any]]:
    """A row a class, worst recall first; classes without test images last."""
    recall, precision, f1 = story.test.recall(), story.test.precision(), story.test.f1()
    rows = [
        {
            "label": label,
            "counts": [story.counts[split][label] for split in SPLITS if split in story.counts],
            "recall": recall.get(label),
            "precision": precision.get(label),
            "f1": f1.get(label),
        }
        for label in story.labels
    ]
    return sorted(rows, key=lambda row: 2.0 if row["recall"] is None else row["recall"])


def _images(story: ReportData) -> dict[str, Any]:
    """Mistakes, near misses and typical right images, each with where the model looked."""
    test = story.test
    top = np.sort(test.scores, axis=1)[:, -2:]
    second = np.argsort(-test.scores, axis=1, kind="stable")[:, 1]
    wrong, right = np.flatnonzero(~test.right), np.flatnonzero(test.right)
    mistakes = wrong[np.argsort(-top[wrong, -1], kind="stable")][:MISTAKES]
    margins = top[right, -1] - top[right, -2]
    near = right[np.argsort(margins, kind="stable")][:NEAR_MISSES]
    typical = _typical(story)
    places = [*mistakes.tolist(), *near.tolist(), *typical]
    cards = _cards(story, places)
    for place, card in zip(places, cards, strict=True):
        card["rival"], card["rival_score"] = story.labels[second[place]], float(top[place, -2])
    first, then = len(mistakes), len(mistakes) + len(near)
    return {
        "mistakes": cards[:first],
        "mistakes_count": len(wrong),
        "near_misses": cards[first:then],
        "typical": cards[then:],
        "maps": any(card["map"] for card in cards),
    }


def _typical(story: ReportData) -> list[int]:
    """For each class, weakest first, the recognised test image whose score is the middle one."""
    chosen = []
    weakest = sorted(story.test.recall().items(), key=lambda item: item[1])
    for label, share in weakest:
        if share:
            index = story.labels.index(label)
            own = np.flatnonzero(story.test.right & (story.test.truth == index))
            order = own[np.argsort(story.test.scores[own, index], kind="stable")]
            chosen.append(int(order[len(order) // 2]))
    return chosen[:TYPICAL]


def _cards(story: ReportData, places: Sequence[int]) -> list[dict[str, Any]]:
    """What to show of test images: the image as the model sees it, and its map for the class it named."""
    pixels = [np.asarray(story.dataset.pixels[int(story.tested[place])]) for place in places]
    named = [int(story.test.predicted[place]) for place in places]
    heats: Iterable[npt.NDArray[np.float32] | None] = [None] * len(places)
    if story.model is not None:
        heats = activation_maps(story.model, pixels, named) or heats
    return [
        {
            "path": story.photo(place).path,
            "label": story.labels[story.test.truth[place]],
            "taken_for": story.labels[name],
            "score": float(story.test.scores[place, name]),
            "image": data_uri(image, channels=story.channels),
            "map": "" if heat is None else data_uri(lit(image, heat, channels=story.channels), channels=story.channels),
        }
        for place, image, name, heat in zip(places, pixels, named, heats, strict=True)
    ]


def _findings(story: ReportData) -> list[dict[str, Any]]:
    """What was found in the data, with the images that show it."""
    places = {photo.path: i for i, photo in enumerate(story.dataset.photos)}
    shown: dict[str, str] = {}

    def image(path: str) -> dict[str, str]:
        place = places.get(path)
        if place is None:  # left out of the data, as copies and unreadable images are
            return {"path": path, "uri": "", "split": "", "label": ""}
        if path not in shown:
            shown[path] = data_uri(np.asarray(story.dataset.pixels[place]), channels=story.channels, side=96)
        photo = story.dataset.photos[place]
        return {"path": path, "uri": shown[path], "split": photo.split, "label": photo.label}

    doubtful = doubtful_findings(story)
    findings = sorted(story.dataset.findings, key=lambda finding: finding not in doubtful)[:FINDINGS]
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
