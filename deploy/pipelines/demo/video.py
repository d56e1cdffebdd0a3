"""Makes the video of the demo: a camera moves over areas of the photographs that were not used for training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from edge_agent.preprocessing import Pixels

from .photographs import FRAME, SCALES, light, view

FRAMES_PER_S = 15
SCENE_S = 2.5
SCENES_PER_CLASS = 2


def write_video(
    path: Path,
    areas: dict[str, dict[str, Pixels]],
    *,
    seed: int,
    progress: Callable[[Iterable[int], int], Iterable[int]],
) -> list[str]:
    """Write a Motion-JPEG video with `SCENES_PER_CLASS` scenes of each class in random order.

    Within a scene, the camera pans, rotates and zooms, and its focus changes. The light changes over the whole video.
    Fast movement is blurred.

    Args:
        path: the ``.avi`` file to write.
        areas: see `load_areas`; the video shows only the areas ``video``.
        seed: random seed for order and movement.
        progress: takes the frame numbers and their total, and returns an iterator over the frame numbers that shows the
            progress.

    Returns:
        The class of every frame.
    """
    random = np.random.default_rng([seed, 77])
    labels = _scenes(sorted(areas), random)
    per_scene = round(FRAMES_PER_S * SCENE_S)
    truth = [label for label in labels for _ in range(per_scene)]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), FRAMES_PER_S, FRAME[::-1])
    paths = [_Path(random) for _ in labels]
    for number in progress(range(len(truth)), len(truth)):
        scene, moment = divmod(number, per_scene)
        writer.write(_frame(areas[labels[scene]], paths[scene], moment / per_scene, number / len(truth), random))
    writer.release()
    return truth


class _Path:
    """Random movement of the camera within a scene."""

    def __init__(self, random: np.random.Generator) -> None:
        self.start, self.end = random.random(2), random.random(2)
        self.scales = random.uniform(*SCALES, 2)
        self.angles = random.uniform(-15, 15, 2)
        self.defocus = random.uniform(0.3, 2.0)


def _frame(areas: dict[str, Pixels], path: _Path, moment: float, whole: float, random: np.random.Generator) -> Pixels:
    area, height = areas["video"], areas["train"].shape[0]
    exposed = []
    # The mean of four instants of one exposure gives motion blur.
    for instant in moment + np.arange(4) * 0.006:
        eased = 0.5 - 0.5 * np.cos(np.pi * instant)
        y, x = path.start + (path.end - path.start) * eased
        scale = path.scales[0] + (path.scales[1] - path.scales[0]) * eased
        angle = path.angles[0] + (path.angles[1] - path.angles[0]) * eased
        exposed.append(view(area, centre=(float(y), float(x)), height=scale * height, angle=float(angle)))
    image = np.mean(exposed, axis=0).astype(np.uint8)
    focus = path.defocus * abs(np.sin(2 * np.pi * moment))
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.1 + focus), np.uint8)
    # Light drifts from dusk to glare and back, three times in the video.
    return light(image, gain=float(0.85 + 0.4 * np.sin(6 * np.pi * whole)), noise=4, random=random)


def _scenes(labels: list[str], random: np.random.Generator) -> list[str]:
    """Return the classes in random order: each class `SCENES_PER_CLASS` times, but never twice in a row."""
    while True:
        order = [str(label) for label in random.permutation(labels * SCENES_PER_CLASS)]
        if all(one != other for one, other in pairwise(order)):
            return order
