"""Features and classes of the training images of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from edge_agent.errors import DataError

from ..run_writer import read_photos
from .embeddings import Network, embed
from .feature_space import MAX_KNOWN, Floats, Indices


def training_images(network: Network, run: Path | None, console: Console, cache: Path | None) -> tuple[Floats, Indices]:
    """Return features and class indices of those training images of the run whose files still exist.

    Args:
        network: network that computes the features.
        run: the run; None returns empty arrays.
        console: console for progress and warnings.
        cache: folder of the embeddings cache; the default one if None.

    Returns:
        (m, f) float32 features and (m,) int class indices; m is at most MAX_KNOWN.
    """
    width = network.model.output_shape[0][-1]
    none = np.zeros((0, width), np.float32), np.zeros(0, np.intp)
    if run is None:
        return none
    try:
        root, photos = read_photos(run)
    except DataError as error:
        console.print(
            f"{error}; frames are not compared with the training images", markup=False, highlight=False, soft_wrap=True
        )
        return none
    learned = [photo for photo in photos if photo.split == "train" and photo.label in network.labels]
    existing = [photo for photo in learned if (root / photo.path).is_file()]
    if len(existing) > MAX_KNOWN:
        chosen = np.random.default_rng(0).choice(len(existing), MAX_KNOWN, replace=False)
        existing = [existing[index] for index in np.sort(chosen).tolist()]
    if not existing:
        console.print(f"{root}: the training images no longer exist; frames are not compared with them", markup=False)
        return none
    embeddings = embed(
        network,
        [(photo.sha256, root / photo.path) for photo in existing],
        description="Computing embeddings of the training images",
        console=console,
        cache=cache,
    )
    good = np.array([index not in embeddings.failed for index in range(len(existing))], np.bool_)
    truth = np.array([network.labels.index(photo.label) for photo in existing], np.intp)
    return embeddings.features[good], truth[good]
