"""Canary images: test images in the bundle, on which each device runs the canary test of the model."""

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
"""Number of images classified with a clear margin: every working device gets them right, whatever its arithmetic."""
CLOSE = 6
"""Number of images near the border between two classes, where small differences in arithmetic show first."""
CLEAR_MARGIN = 0.3
"""Minimum difference between the two highest scores of a clear image. Scores of the same int8 file differed by up to
0.08 between x86-64 and aarch64."""
JPEG_QUALITY = 95


def choose(scored: Evaluation) -> list[int]:
    """Choose the canary images: clear and correct ones balanced over the classes, then those with the smallest margin.

    A class without a clear image is represented by its best one, and a class without a correct image by a wrong one,
    so that all classes are present. The choice is deterministic.

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
    """Order a class's images: ``share`` evenly spaced ones from clearest to least clear, then the rest by margin."""
    ranked = places[np.argsort(-sure[places], kind="stable")]
    clear = int((sure[ranked] >= CLEAR_MARGIN).sum())
    spread = np.linspace(0, clear - 1, min(clear, share)).round().astype(int) if clear else np.empty(0, int)
    first = dict.fromkeys(ranked[spread].tolist())
    return [*first, *(place for place in ranked.tolist() if place not in first)]


def canaries(run: Run, places: Sequence[int], classifier: Classifier) -> tuple[dict[str, bytes], list[CanaryImage]]:
    """Encode the canary images and compute their expected scores on this machine.

    Images much larger than the input are first halved with the device's code, which keeps the bundle small. The scores
    are those of the encoded file.

    Args:
        run: run with the test split.
        places: indices of the images in the test split.
        classifier: classifier with the bundle's model.

    Returns:
        JPEG files by their names in the bundle, and the expected scores of each.
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
