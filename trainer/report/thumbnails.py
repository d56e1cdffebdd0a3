"""Encodes images as data URIs of limited size, so that the report can contain them."""

from __future__ import annotations

import base64
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from edge_agent.preprocessing import Pixels

SIDE = 176
"""Maximum length of the longer side of an image, in pixels.

The report shows images at about two thirds of this size, so that they are sharp on screens with a high pixel density.
"""
MAX_BYTES = 12_000
"""Maximum number of bytes of an image with the side `SIDE`.

For a smaller side, the limit is smaller in proportion to the area. Noisy images are encoded with a lower JPEG quality
to stay below the limit.
"""
QUALITIES = (82, 65, 45, 25, 10)
BLUE, ORANGE = (201, 107, 42), (13, 115, 217)
"""Colours of the confusion matrix, in BGR order. They are the same as in report.css."""


def data_uri(pixels: Pixels, *, channels: Literal["rgb", "bgr"] = "rgb", side: int = SIDE) -> str:
    """Scale an image down to ``side`` pixels, and return it as a ``data:`` URI of a JPEG.

    Args:
        pixels: (h, w, 3) uint8, in the channel order ``channels``.
        channels: channel order of ``pixels``.
        side: maximum length of the longer side of the result, in pixels.
    """
    scale = side / max(pixels.shape[:2])
    if scale < 1:
        size = [max(1, round(length * scale)) for length in pixels.shape[1::-1]]
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    bgr = pixels[..., ::-1] if channels == "rgb" else pixels
    for quality in QUALITIES:
        data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(data) <= MAX_BYTES * (side / SIDE) ** 2:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def highlighted(pixels: Pixels, heat: npt.NDArray[np.float32], *, channels: Literal["rgb", "bgr"] = "rgb") -> Pixels:
    """Return the image with the areas of high ``heat`` in bright and warm colours, and the rest in dark grey.

    Args:
        pixels: (h, w, 3) uint8.
        heat: (rows, columns) float32, 0 to 1. It is scaled to the size of the image.
        channels: channel order of ``pixels`` and of the result.

    Returns:
        (h, w, 3) uint8.
    """
    height, width = pixels.shape[:2]
    smooth = np.clip(cv2.resize(heat, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)[..., None] ** 1.3
    grey = pixels.mean(axis=2, keepdims=True)
    warm = np.array((255, 176, 0) if channels == "rgb" else (0, 176, 255), np.float32)
    shown = smooth * pixels + (1 - smooth) * 0.35 * grey
    shown += 0.2 * smooth * (warm - shown)
    result: Pixels = np.clip(shown, 0, 255).astype(np.uint8)
    return result


def matrix_uri(shares: npt.NDArray[np.float64]) -> str:
    """Return a confusion matrix as a ``data:`` URI of a PNG.

    Each cell of the matrix is one pixel. Correct answers are blue, mistakes are orange.

    Args:
        shares: (classes, classes) shares of the images of each class, 0 to 1.
    """
    cells = np.empty((*shares.shape, 4), np.uint8)
    cells[..., :3] = ORANGE
    np.einsum("iij->ij", cells)[:, :3] = BLUE
    # The square root makes even one mistake in a hundred images visible.
    cells[..., 3] = np.round(np.sqrt(np.clip(shares, 0, 1)) * 255)
    data = cv2.imencode(".png", cells)[1].tobytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
