"""Chooses the representative dataset and measures the activation ranges on it.

The representative dataset is the set of images whose activations determine the integer ranges.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from edge_agent.bundle.manifest import Calibration
from edge_agent.errors import DataError, ImageError, one_line
from edge_agent.images import SUFFIXES, decode_image, read_bytes
from edge_agent.preprocessing import Pixels, PreprocessSpec, preprocess

from ..run_reader import Run, RunImage
from ..tflite.graph import Graph
from .observers import Ranges, activations, extremes, widest

SEED = 0
SPLIT = "train"
FIRST_CHECK = 64
"""Number of images before the first check whether the ranges have converged."""
MAX_IMAGES = 512
"""Maximum number of images. EfficientNet-Lite0's ranges converge at 128 images; Google's guides use 100 to 500."""
MAX_GROWTH = 0.02
"""Largest growth of ranges that count as converged.

The growth is measured by doubling the number of images. It is the part of the new width of a range that was added by
the second half of the images (0.02 = 2 %), averaged over the tensors.
"""
MIN_SPREAD = 4.0
"""If the spread of the images is smaller than this, they count as nearly the same.

The spread is the mean absolute difference between the images and their mean image, in pixel levels from 0 to 255. The
noise of a fixed camera causes a spread of 1 to 3.
"""


Frame: TypeAlias = tuple[Pixels, str, str]
"""An image for the calibration: its pixels, (H, W, 3) uint8 BGR, its class or "", and the SHA-256 of its file."""


@dataclass(frozen=True, eq=False)
class Representative:
    """The calibration images and the ranges measured on them.

    Attributes:
        pixels: (images + 2, height, width, 3) uint8 in the model's channel order. The first two images are completely
            black and completely white, because every camera sees darkness and glare at some time.
        ranges: lowest and highest value of each activation of the float model over all of `pixels`.
        record: description of the images for the manifest.
        spread: mean absolute difference between the images (without the black and the white one) and their mean image,
            in pixel levels from 0 to 255.
    """

    pixels: Pixels
    ranges: Ranges
    record: Calibration
    spread: float


def choose(photos: Iterable[RunImage], count: int, seed: int) -> list[RunImage]:
    """Draw up to ``count`` images at random, the same number from each class until a class runs out of images.

    The classes take turns in the returned list, so that its first k images are balanced in the same way for every k.
    The same seed gives the same list.
    """
    by_class = defaultdict(list)
    for photo in sorted(photos, key=lambda photo: photo.sha256):
        by_class[photo.label].append(photo)
    queues = [by_class[label] for label in sorted(by_class)]
    shuffle = random.Random(seed)  # noqa: S311  a reproducible draw, not a secret
    for queue in queues:
        shuffle.shuffle(queue)
    chosen: list[RunImage] = []
    while len(chosen) < count and any(queues):
        chosen += [queue.pop() for queue in queues if queue]
    return chosen[:count]


def of_run(run: Run) -> Generator[Frame, None, None]:
    """Yield up to `MAX_IMAGES` images of the run's training split, balanced over the classes."""
    for frame, photo in run.read(choose(run.split(SPLIT), MAX_IMAGES, SEED)):
        yield frame, photo.label, photo.sha256


def of_folder(folder: Path, say: Callable[[str], object]) -> Generator[Frame, None, None]:
    """Yield up to `MAX_IMAGES` images of a folder and its subfolders in random order.

    The images may be, for example, frames from the deployed camera. Files that are not images are ignored. Images that
    cannot be read are skipped, and each is reported with a call of ``say``.

    Raises:
        DataError: the folder contains no images.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise DataError(f"{folder}: no images to calibrate on; give a folder with a few dozen or more")
    random.Random(SEED).shuffle(paths)  # noqa: S311
    return _readable(paths[:MAX_IMAGES], say)


def _readable(paths: Iterable[Path], say: Callable[[str], object]) -> Generator[Frame, None, None]:
    for path in paths:
        try:
            data = read_bytes(path)
            frame = decode_image(data, path)
        except ImageError as error:
            say(f"skipped for calibration: {one_line(error)}")
        else:
            yield frame, "", hashlib.sha256(data).hexdigest()


def calibrate(
    model: bytes,
    spec: PreprocessSpec,
    frames: Iterable[Frame],
    *,
    source: str = SPLIT,
    advance: Callable[[], object] = lambda: None,
) -> Representative:
    """Measure the activation ranges on more and more images until the ranges converge or no images are left.

    Args:
        model: the float32 ``.tflite``.
        spec: preprocessing of the frames.
        frames: images in an order such that the first k of them are balanced over the classes, for every k.
        source: where the images come from, as written to the record.
        advance: called after each image.

    Raises:
        DataError: none of the images could be read.
    """
    names = Graph(model).activations
    pixels = [np.full(spec.shape, level, np.uint8) for level in (0, 255)]
    labels, hashes = [], []

    def prepared() -> Iterator[Pixels]:
        yield from tuple(pixels)
        for frame, label, sha256 in frames:
            labels.append(label)
            hashes.append(sha256)
            pixels.append(preprocess(frame, spec, np.empty(spec.shape, np.uint8)))
            yield pixels[-1]
            advance()

    measured: list[list[tuple[float, float]]] = []
    goal, growth = FIRST_CHECK, 1.0
    for values in activations(model, names, prepared()):
        measured.append(extremes(values))
        if len(hashes) == goal:
            growth, goal = _growth(np.array(measured)), 2 * goal
            if growth <= MAX_GROWTH:
                break
    if not hashes:
        raise DataError("none of the calibration images can be read; the reason for each is printed above")
    record = Calibration(
        images=len(hashes),
        per_class=dict(sorted(Counter(filter(None, labels)).items())),
        seed=SEED,
        source=source,
        growth=round(_growth(np.array(measured)), 4),
        fingerprint=hashlib.sha256("".join(hashes).encode()).hexdigest(),
    )
    stack = np.stack(pixels)
    return Representative(stack, widest(names, measured), record, _spread(stack[2:]))


def _growth(extremes: npt.NDArray[np.float64]) -> float:
    """Return how much the second half of the images widens the ranges, averaged over the tensors.

    The growth of one range is the added width divided by the width over all images, 0 to 1.

    Args:
        extremes: (images, tensors, 2), lowest and highest value of each tensor for each image.
    """

    def widths(some: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        widths: npt.NDArray[np.float64] = some[..., 1].max(axis=0) - some[..., 0].min(axis=0)
        return widths

    half, whole = widths(extremes[: (len(extremes) + 1) // 2]), widths(extremes)
    return float(np.mean(1 - half[whole > 0] / whole[whole > 0]))


def _spread(pixels: Pixels) -> float:
    mean = pixels.mean(axis=0, dtype=np.float32)
    return float(np.mean([np.abs(image - mean).mean() for image in pixels]))
