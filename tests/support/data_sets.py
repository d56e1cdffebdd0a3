"""Data sets of made-up photographs, and what was found in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from edge_agent.preprocessing import Pixels, PreprocessSpec
from trainer.data import SPLITS, Dataset, Finding, Photo

SPEC = PreprocessSpec((32, 32))
Load = Callable[..., Dataset]


Refusal = Callable[..., str]


def scene(seed: int, size: tuple[int, int] = (90, 120)) -> Pixels:
    """An image unlike any with another seed: soft blobs, as of a photograph out of focus, under fine grain."""
    random = np.random.default_rng(seed)
    soft = cv2.resize(random.integers(0, 256, (7, 9, 3)).astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
    grained: Pixels = np.clip(soft + random.normal(0, 6, soft.shape), 0, 255).astype(np.uint8)
    return grained


def write(path: Path, image: Pixels, quality: int = 92) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())


def make_data(root: Path, *, classes: tuple[str, ...] = ("a", "b"), each: int = 8) -> Path:
    """A folder per class of images that are all different."""
    for place, label in enumerate(classes):
        for number in range(each):
            write(root / label / f"{number:03d}.jpg", scene(1000 * place + number))
    return root


def finding(dataset: Dataset, kind: str) -> Finding:
    found = [finding for finding in dataset.findings if finding.kind == kind]
    assert found, f"no finding {kind!r} in {dataset.findings}"
    assert all("\n" not in one.message for one in found)
    return found[0]


def by_path(dataset: Dataset) -> dict[str, Photo]:
    return {photo.path: photo for photo in dataset.photos}


def given_splits(root: Path) -> Path:
    for place, split in enumerate(SPLITS):
        make_data(root / split, each=6)
        for number in range(6):
            for label in "ab":
                seed = 10_000 * (place + 1) + 1000 * (label == "b") + number
                write(root / split / label / f"{number:03d}.jpg", scene(seed))
    return root


Listing = Callable[..., Path]
ROWS = [f"p/{i}.jpg,{'ab'[i % 2]}" for i in range(20)]
