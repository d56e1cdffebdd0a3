"""Renders the HTML report of a retraining.

The report compares champion and challenger, and shows the images that only one of them classifies correctly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_agent.errors import ImageError
from edge_agent.images import read_image
from trainer.report.templating import environment
from trainer.report.thumbnails import data_uri

from .comparison import Comparison, PairedResults
from .dataset_version import Version

IMAGES = 36
"""Maximum number of images that are shown of each kind (lost and gained)."""


def render(name: str, version: Version, comparison: Comparison | None, refusals: Sequence[str]) -> str:
    """Render the report as a self-contained HTML page."""
    matches = []
    if comparison is not None:
        matches = [("The frozen test split", comparison.frozen)]
        if comparison.new is not None:
            matches.append(("New frames, not used for training", comparison.new))
    return (
        environment("deploy.pipelines.retrain", "trainer.report")
        .get_template("promotion.html.j2")
        .render(
            name=name,
            version=version,
            refusals=refusals,
            matches=[_shown(title, match, version.folder) for title, match in matches],
        )
    )


def _shown(title: str, match: PairedResults, folder: Path) -> dict[str, Any]:
    before, after, support = match.champion.recall(), match.challenger.recall(), match.champion.support()
    return {
        "title": title,
        "images": len(match.photos),
        "champion": match.champion.accuracy,
        "challenger": match.challenger.accuracy,
        "intervals": (match.champion.interval_95, match.challenger.interval_95),
        "classes": [
            {"label": label, "images": support[label], "champion": before[label], "challenger": after[label]}
            for label in before
        ],
        "kinds": [
            ("lost", "Correct before, now wrong", _cards(match, match.lost, folder), len(match.lost)),
            ("gained", "Wrong before, now correct", _cards(match, match.gained, folder), len(match.gained)),
        ],
    }


def _cards(match: PairedResults, places: Sequence[int], folder: Path) -> list[dict[str, str]]:
    cards = []
    for place in places[:IMAGES]:
        photo, labels = match.photos[place], match.challenger.labels
        try:
            image = data_uri(read_image(folder / photo.path), channels="bgr")
        except ImageError:
            continue
        cards.append(
            {
                "image": image,
                "path": photo.path,
                "label": photo.label,
                "champion": labels[match.champion.predicted[place]],
                "challenger": labels[match.challenger.predicted[place]],
            }
        )
    return cards
