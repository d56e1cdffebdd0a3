"""The part of a frame that the model classifies: decoded at the smallest sufficient size, cropped to the region."""

from __future__ import annotations

from math import ceil, floor

from ..preprocessing import Pixels, PreprocessSpec, scaled_size
from . import Frame

Region = tuple[float, float, float, float]
"""Left, top, right, bottom, each a fraction of the image's width or height."""
WHOLE: Region = (0.0, 0.0, 1.0, 1.0)


def view(frame: Frame, spec: PreprocessSpec, region: Region = WHOLE) -> Pixels:
    """The part of a frame to pass to `preprocess`: (H, W, 3) uint8, BGR. Do not modify it.

    Raises:
        ImageError: The frame cannot be decoded.
    """
    rows, columns = frame.size
    left, top, right, bottom = region
    of_region = (max(1, round(rows * (bottom - top))), max(1, round(columns * (right - left))))
    height, width = scaled_size(*of_region, spec)
    image = frame.at_least(ceil(height / (bottom - top)), ceil(width / (right - left)))
    return crop(image, region)


def crop(image: Pixels, region: Region) -> Pixels:
    """A region of an image, as a NumPy view; at least one pixel."""
    if region == WHOLE:
        return image
    rows, columns = image.shape[:2]
    left, top, right, bottom = region
    first_row, first_column = min(floor(rows * top), rows - 1), min(floor(columns * left), columns - 1)
    last_row, last_column = max(first_row + 1, ceil(rows * bottom)), max(first_column + 1, ceil(columns * right))
    return image[first_row:last_row, first_column:last_column]
