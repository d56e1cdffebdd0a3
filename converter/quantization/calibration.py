"""The representative dataset: the images whose activations set the integer ranges, as many as it takes."""

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
from edge_agent.preprocess import Pixels, PreprocessSpec, preprocess

from ..run_reader import Run, RunImage
from ..tflite.graph import Graph
from .observers import Ranges, activations, extremes, widest

SEED = 0
SPLIT = "train"
FIRST = 64
"""Images looked at before the first look at whether their ranges have settled."""
MOST = 512
"""EfficientNet-Lite0's ranges settle at 128 images; Google's guides take 100 to 500."""
SETTLED = 0.02
"""Doubling the images widens the ranges by less than this share of their width, on average over the tensors."""
ALIKE = 4.0
"""Levels of 255 by which images differ from their mean, on average; a fixed camera's noise is 1 to 3."""


Frame: TypeAlias = tuple[Pixels, str, str]
"""An image to calibrate on: (H, W, 3) uint8 BGR, its class or "", and the sha256 of its file."""


@dataclass(frozen=True, eq=False)
class Representative:
    """What the ranges were measured on, and the ranges.

    Attributes:
        pixels: (images + 2, height, width, 3) uint8 in the model's channel order. The first two are all black and all
            white: a night and a lamp, which every camera sees some day.
        ranges: lowest and highest value of each of the float model's activations over all of them.
        record: what the bundle says about them.
        spread: mean difference of the images from their mean, levels of 255.
    """

    pixels: Pixels
    ranges: Ranges
    record: Calibration
    spread: float


def choose(photos: Iterable[RunImage], count: int, seed: int) -> list[RunImage]:
    """Draw up to ``count`` images, as many of each class as possible; so does every beginning of the list.

    The same seed draws the same ones.
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
    """Images of the run's training split, balanced over the classes."""
    for frame, photo in run.read(choose(run.split(SPLIT), MOST, SEED)):
        yield frame, photo.label, photo.sha256


def of_folder(folder: Path, say: Callable[[str], object]) -> Generator[Frame, None, None]:
    """Images anywhere in a folder, such as frames of the very camera, in random order.

    Files of other kinds are passed over; images that cannot be read are named and left out.

    Raises:
        DataError: there are none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise DataError(f"{folder}: no images in there to calibrate on; give a folder with a few dozen or more")
    random.Random(SEED).shuffle(paths)  # noqa: S311
    return _readable(paths[:MOST], say)


def _readable(paths: Iterable[Path], say: Callable[[str], object]) -> Generator[Frame, None, None]:
    for path in paths:
        try:
            data = read_bytes(path)
            frame = decode_image(data, path)
        except ImageError as error:
            say(f"not calibrated on: {one_line(error)}")
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
    """Measure ranges on more and more images until they have settled or there are no more.

    Args:
        model: the float32 ``.tflite``.
        spec: how frames become its input.
        frames: images, balanced from the first on.
        source: what the record says they are.
        advance: called after each.

    Raises:
        DataError: not one image could be read.
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

    seen: list[list[tuple[float, float]]] = []
    goal, growth = FIRST, 1.0
    for values in activations(model, names, prepared()):
        seen.append(extremes(values))
        if len(hashes) == goal:
            growth, goal = _growth(np.array(seen)), 2 * goal
            if growth <= SETTLED:
                break
    if not hashes:
        raise DataError("not one of the images to calibrate on can be read; what is wrong with each stands above")
    record = Calibration(
        images=len(hashes),
        per_class=dict(sorted(Counter(filter(None, labels)).items())),
        seed=SEED,
        source=source,
        growth=round(_growth(np.array(seen)), 4),
        fingerprint=hashlib.sha256("".join(hashes).encode()).hexdigest(),
    )
    stack = np.stack(pixels)
    return Representative(stack, widest(names, seen), record, _spread(stack[2:]))


def _growth(extremes: npt.NDArray[np.float64]) -> float:
    """How much wider ranges are than on the first half of the images, as a share of their width, mean of the tensors.

    Args:
        extremes: (images, tensors, 2), lowest and highest value.
    """

    def widths(some: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        widths: npt.NDArray[np.float64] = some[..., 1].max(axis=0) - some[..., 0].min(axis=0)
        return widths

    half, whole = widths(extremes[: (len(extremes) + 1) // 2]), widths(extremes)
    return float(np.mean(1 - half[whole > 0] / whole[whole > 0]))


def _spread(pixels: Pixels) -> float:
    mean = pixels.mean(axis=0, dtype=np.float32)
    return float(np.mean([np.abs(image - mean).mean() for image in pixels]))
