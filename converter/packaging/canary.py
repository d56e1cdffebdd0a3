"""Chooses the canary images: test images in the bundle, on which each device checks the model (the canary test)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from edge_agent.bundle.manifest import CanaryImage
from edge_agent.images import decode_image
from edge_agent.inference.classifier import Classifier
from edge_agent.inference.evaluation import Evaluation
from edge_agent.preprocessing import halve

from ..run_reader import Run

CLEAR = 24
"""Number of images that the model classifies with a clear margin.

Every working device classifies them correctly, even if its arithmetic differs slightly.
"""
CLOSE = 6
"""Number of images near the border between two classes, which show small differences in arithmetic first."""
CLEAR_MARGIN = 0.3
"""Minimum difference between the two highest scores of an image that counts as clear.

The scores of the same int8 file differed by up to 0.08 between x86-64 and aarch64.
"""
JPEG_QUALITY = 95


def choose(scored: Evaluation) -> list[int]:
    """Choose the canary images.

    The first images are classified correctly and clearly, and are balanced over the classes. Then follow the images
    with the smallest margin, which is the difference between the two highest scores.

    Every class is represented: a class without a clear image by its correct image with the largest margin, and a class
    without a correct image by a misclassified one. The choice is deterministic.

    Args:
        scored: evaluation of the bundle's model on the test split.

    Returns:
        Indices of the images in the test split.
    """
    ordered = np.sort(scored.scores, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    sure = np.where(scored.right, margins, margins - 2)
    classes = np.unique(scored.truth)
    share = -(-CLEAR // len(classes))
    queues = [_clear_first(np.flatnonzero(scored.truth == label), sure, share) for label in classes]
    chosen: list[int] = []
    for turn in range(max(len(queue) for queue in queues)):
        # After the first image of a class take only clear ones: the others test nothing.
        chosen += [
            queue[turn] for queue in queues if len(queue) > turn and (turn == 0 or sure[queue[turn]] >= CLEAR_MARGIN)
        ]
        if len(chosen) >= CLEAR:
            break
    chosen = chosen[: max(CLEAR, len(classes))]
    closest = [int(place) for place in np.argsort(margins, kind="stable") if place not in chosen]
    return chosen + closest[:CLOSE]


def _clear_first(places: npt.NDArray[np.intp], sure: npt.NDArray[np.float32], share: int) -> list[int]:
    """Order the images of a class.

    Up to ``share`` clear images come first, spread evenly from the clearest to the least clear one. The remaining
    images follow, sorted by margin, largest first.
    """
    ranked = places[np.argsort(-sure[places], kind="stable")]
    clear = int((sure[ranked] >= CLEAR_MARGIN).sum())
    spread = np.linspace(0, clear - 1, min(clear, share)).round().astype(int) if clear else np.empty(0, int)
    first = dict.fromkeys(ranked[spread].tolist())
    return [*first, *(place for place in ranked.tolist() if place not in first)]


def canaries(run: Run, places: Sequence[int], classifier: Classifier) -> tuple[dict[str, bytes], list[CanaryImage]]:
    """Encode the canary images and compute their expected scores on this machine.

    Images at least four times as large as the model's input are first halved, once or several times, with the code
    that the devices use. This keeps the bundle small. The expected scores are computed from the encoded files.

    Args:
        run: run that contains the test split.
        places: indices of the images in the test split.
        classifier: classifier that runs the bundle's model.

    Returns:
        The contents of the JPEG files by their names in the bundle, and the expected scores of each file.
    """
    test = run.split("test")
    files, expected = {}, []
    height, width = run.spec.size
    for number, (frame, photo) in enumerate(run.read([test[place] for place in places])):
        name = f"canary/{number:03d}.jpg"
        small = halve(frame, 2 * height, 2 * width)
        data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
        scores = classifier.classify(decode_image(data, name)).scores
        files[name] = data
        expected.append(CanaryImage(name, photo.label, tuple(round(float(score), 6) for score in scores)))
    return files, expected
