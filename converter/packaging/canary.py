"""Canary images: test images that travel with the model, for the device to prove it with."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from edge_agent.bundle.manifest import CanaryImage
from edge_agent.images import decode_image
from edge_agent.inference.classifier import Classifier
from edge_agent.inference.evaluation import Evaluation
from edge_agent.preprocess import halve

from ..run_reader import Run

CLEAR = 24
"""Images decided by a clear margin: what a sound device gets right, whatever its arithmetic."""
CLOSE = 6
"""Images near the border between two classes: where a slightly different arithmetic shows first."""
CLEAR_MARGIN = 0.3
"""Between the two highest scores. The same int8 file differed by up to 0.08 between x86-64 and aarch64."""
JPEG_QUALITY = 95


def choose(scored: Evaluation) -> list[int]:
    """Places of the images to take: right and clear ones, as many of each class as possible, then the closest calls.

    A class without a clear image is stood for by its best ones, and one without a right image by a wrong one, so
    that all classes are there. The same evaluation chooses the same images.

    Args:
        scored: of the model in the bundle, on the test split.
    """
    ordered = np.sort(scored.scores, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    sure = np.where(scored.right, margins, margins - 2)
    classes = np.unique(scored.truth)
    share = -(-CLEAR // len(classes))
    queues = [_clear_first(np.flatnonzero(scored.truth == label), sure, share) for label in classes]
    chosen: list[int] = []
    for turn in range(max(len(queue) for queue in queues)):
        # Beyond one image a class, only clear ones: there is nothing to prove with the others.
        chosen += [
            queue[turn] for queue in queues if len(queue) > turn and (turn == 0 or sure[queue[turn]] >= CLEAR_MARGIN)
        ]
        if len(chosen) >= CLEAR:
            break
    chosen = chosen[: max(CLEAR, len(classes))]
    closest = [int(place) for place in np.argsort(margins, kind="stable") if place not in chosen]
    return chosen + closest[:CLOSE]


def _clear_first(places: npt.NDArray[np.intp], sure: npt.NDArray[np.float32], share: int) -> list[int]:
    """A class's images: ``share`` of them evenly from the clearest to the least clear, then the rest by clearness."""
    ranked = places[np.argsort(-sure[places], kind="stable")]
    clear = int((sure[ranked] >= CLEAR_MARGIN).sum())
    spread = np.linspace(0, clear - 1, min(clear, share)).round().astype(int) if clear else np.empty(0, int)
    first = dict.fromkeys(ranked[spread].tolist())
    return [*first, *(place for place in ranked.tolist() if place not in first)]


def canaries(run: Run, places: Sequence[int], classifier: Classifier) -> tuple[dict[str, bytes], list[CanaryImage]]:
    """The images as files, and the scores this model gives them here.

    Images much larger than the input are halved first, by the device's own code: the bundle stays
    small, and the scores are those of the very file that travels.

    Args:
        run: whose test split they are from.
        places: of the images in that split.
        classifier: the model in the bundle.
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
