"""What a run learned from: features and classes of its training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from edge_agent.errors import DataError

from ..run_writer import read_photos
from .embeddings import Network, embed
from .feature_space import MOST_KNOWN, Floats, Places


def training_images(network: Network, run: Path | None, console: Console, cache: Path | None) -> tuple[Floats, Places]:
    """Features and classes of what the run learned from, where the images are still there."""
    width = network.model.output_shape[0][-1]
    none = np.zeros((0, width), np.float32), np.zeros(0, np.intp)
    if run is None:
        return none
    try:
        root, photos = read_photos(run)
    except DataError as error:
        console.print(
            f"{error}; frames are not compared with what it learned from", markup=False, highlight=False, soft_wrap=True
        )
        return none
    learned = [photo for photo in photos if photo.split == "train" and photo.label in network.labels]
    there = [photo for photo in learned if (root / photo.path).is_file()]
    if len(there) > MOST_KNOWN:
        chosen = np.random.default_rng(0).choice(len(there), MOST_KNOWN, replace=False)
        there = [there[place] for place in np.sort(chosen).tolist()]
    if not there:
        console.print(f"{root}: the training images are gone; frames are not compared with them", markup=False)
        return none
    seen = embed(
        network,
        [(photo.sha256, root / photo.path) for photo in there],
        what="Looking at the training images",
        console=console,
        cache=cache,
    )
    good = np.array([place not in seen.failed for place in range(len(there))], np.bool_)
    truth = np.array([network.labels.index(photo.label) for photo in there], np.intp)
    return seen.features[good], truth[good]
