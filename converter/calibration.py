"""The representative dataset: the pictures whose activations set the integer ranges."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from edge_agent.manifest import Calibration
from edge_agent.preprocess import Pixels, preprocess

from .run import Photo, Run

PICTURES = 100
SEED = 0
SPLIT = "train"


@dataclass(frozen=True, eq=False)
class Representative:
    """Pictures to calibrate on.

    Attributes:
        pixels: (pictures + 2, height, width, 3) uint8 in the model's channel order. The last two
            are all black and all white: with both ends seen, the input scale is exactly 1, and a
            stored input value is a pixel level.
        record: what the bundle says about them.
    """

    pixels: Pixels
    record: Calibration


def choose(photos: Iterable[Photo], count: int, seed: int) -> list[Photo]:
    """Draw up to ``count`` pictures, as many of each class as possible; the same seed draws the same ones."""
    by_class = defaultdict(list)
    for photo in sorted(photos, key=lambda photo: photo.sha256):
        by_class[photo.label].append(photo)
    queues = [by_class[label] for label in sorted(by_class)]
    shuffle = random.Random(seed)  # noqa: S311  a reproducible draw, not a secret
    for queue in queues:
        shuffle.shuffle(queue)
    chosen: list[Photo] = []
    while len(chosen) < count and any(queues):
        chosen += [queue.pop() for queue in queues if queue]
    return chosen[:count]


def representative(
    run: Run, *, progress: Callable[[list[Photo]], Iterable[Photo]] = lambda photos: photos
) -> Representative:
    """Read the pictures to calibrate on from the run's training split, through the device's preprocessing."""
    photos = choose(run.split(SPLIT), PICTURES, SEED)
    pixels = np.empty((len(photos) + 2, *run.spec.shape), np.uint8)
    for place, (frame, _) in enumerate(run.read(progress(photos))):
        preprocess(frame, run.spec, pixels[place])
    pixels[-2], pixels[-1] = 0, 255
    counts = Counter(photo.label for photo in photos)
    return Representative(pixels, Calibration(len(photos), dict(sorted(counts.items())), SEED, SPLIT))
