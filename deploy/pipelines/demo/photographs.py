"""Makes the images of the demo: crops of real photographs from scikit-image.

Each photograph shows only one kind of object or surface, so that any part of it is an image of the same class. A
photograph is divided into areas for training, validation, testing and the video. The areas do not overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edge_agent.errors import MissingExtraError
from edge_agent.images import read_image
from edge_agent.preprocessing import Pixels

FRAME = (240, 320)
"""Height and width of every image and video frame, in pixels, as from a small camera."""


@dataclass(frozen=True)
class Source:
    """One photograph: its class, its file in scikit-image, and its author and licence."""

    label: str
    file: str
    credit: str


SOURCES = (
    Source("brick", "brick.png", "CC0Textures, CC0"),
    Source("coins", "coins.png", "Brooklyn Museum, no known copyright restrictions"),
    Source("grass", "grass.png", "Linolafett, CC0"),
    Source("gravel", "gravel.png", "CC0Textures, CC0"),
    Source("stars", "hubble_deep_field.jpg", "NASA, public domain"),
    Source("tissue", "ihc.png", "Center for Microscopy and Molecular Imaging, no known copyright restrictions"),
)
# Crop height as a share of the photograph's: a few bricks or coins, never most of the image.
SCALES = (0.16, 0.24)
PHOTOS = {"train": 40, "val": 10, "test": 30}


def load_areas() -> dict[str, dict[str, Pixels]]:
    """Divide every photograph into areas.

    The left half is for training and the lower right quarter for the video. The upper right quarter is divided between
    validation and testing.

    Returns:
        For each class a dictionary with the areas ``train``, ``val``, ``test`` and ``video``, (H, W, 3) uint8 BGR.

    Raises:
        MissingExtraError: scikit-image is not installed.
    """
    try:
        import skimage
    except ImportError as error:
        raise MissingExtraError("the demo", "demo", error.name) from error
    folder = Path(skimage.__file__).parent / "data"
    areas = {}
    for source in SOURCES:
        image = read_image(folder / source.file)
        height, width = image.shape[:2]
        middle, quarter, half = width // 2, height // 4, height // 2
        areas[source.label] = {
            "train": image[:, :middle],
            "val": image[:quarter, middle:],
            "test": image[quarter:half, middle:],
            "video": image[half:, middle:],
        }
    return areas


def view(area: Pixels, *, centre: tuple[float, float], height: float, angle: float) -> Pixels:
    """Render what a 4:3 camera sees when it looks at an area.

    Args:
        area: (H, W, 3) uint8.
        centre: vertical and horizontal position of the view's centre, as fractions of the area's height and width, 0 to
            1. It is moved inwards if the view, before rotation, would extend beyond the area.
        height: height of the view, in pixels of the area.
        angle: rotation, in degrees.

    Returns:
        The view, (*FRAME, 3) uint8. Rotation can turn corners of the view out of the area; they are filled with a
            mirror image of the area.
    """
    rows, columns = FRAME
    scale = height / rows
    limit_y, limit_x = height / 2, height * columns / rows / 2
    y = float(np.clip(centre[0] * area.shape[0], limit_y, max(limit_y, area.shape[0] - limit_y)))
    x = float(np.clip(centre[1] * area.shape[1], limit_x, max(limit_x, area.shape[1] - limit_x)))
    turn = np.deg2rad(angle)
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    offset = np.array([x, y]) - linear @ np.array([columns / 2, rows / 2])
    matrix = np.column_stack([linear, offset])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    frame: Pixels = np.asarray(
        cv2.warpAffine(area, matrix, (columns, rows), flags=flags, borderMode=cv2.BORDER_REFLECT_101), np.uint8
    )
    return frame


def light(image: Pixels, *, gain: float, noise: float, random: np.random.Generator) -> Pixels:
    """Change the light: multiply the levels by ``gain`` and add noise with a standard deviation of ``noise`` levels."""
    lit = image.astype(np.float32) * gain + random.normal(0, noise, image.shape).astype(np.float32)
    levels: Pixels = np.clip(lit, 0, 255).astype(np.uint8)
    return levels


def write_photos(
    folder: Path,
    areas: dict[str, dict[str, Pixels]],
    *,
    seed: int,
    progress: Callable[[list[tuple[str, str]]], Iterable[tuple[str, str]]],
) -> int:
    """Write images of the areas as ``folder/<split>/<class>/<number>.jpg``. Return how many images were written."""
    written = 0
    for split, label in progress([(split, label) for split in PHOTOS for label in areas]):
        area = areas[label][split]
        target = folder / split / label
        target.mkdir(parents=True)
        # One random stream per folder, so that adding a class changes no other.
        random = np.random.default_rng([seed, sorted(PHOTOS).index(split), *label.encode()])
        whole = next(iter(areas[label].values())).shape[0]
        for number in range(PHOTOS[split]):
            centre, share = (random.random(), random.random()), random.uniform(*SCALES)
            image = view(area, centre=centre, height=share * whole, angle=random.uniform(-15, 15))
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), random.uniform(0.1, 1.5)), np.uint8)
            image = light(image, gain=random.uniform(0.6, 1.3), noise=3, random=random)
            cv2.imwrite(str(target / f"{number:03d}.jpg"), image)
            written += 1
    return written
