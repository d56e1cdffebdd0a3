"""Image files to frames: the one decoder of the trainer, the calibrator and `predict`."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import cv2
import numpy as np

from .errors import ImageError
from .preprocess import Pixels

MAX_FILE_BYTES = 64 * 2**20
MIN_SIDE = 16
"""Pixels. Frigate's maintainers name crops under 80 as a cause of bad models; under 16 there is nothing to see."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


def read_image(path: str | os.PathLike[str]) -> Pixels:
    """Read a JPEG, PNG, WebP or BMP file as a frame.

    EXIF rotation is applied (to WebP by OpenCV 5, not by 4.11), 16-bit files keep their upper 8 bits,
    CMYK and grey are converted to BGR, transparency is dropped.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        ImageError: no such file, not a regular file, not an image, truncated, under 16 pixels
            a side, over 64 megapixels (a gigapixel in scripts that import cv2 before edge_agent) or over 64 MiB.
    """
    return decode_image(read_bytes(path), path)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file, refusing at once what is too large or no regular file (a pipe would block)."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path}: expected an image file, found something else; name a file")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(f"{path}: {status.st_size} bytes; an image may have {MAX_FILE_BYTES} at most")
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error


def decode_image(data: bytes, name: str | os.PathLike[str]) -> Pixels:
    """Decode the bytes of an image file; see `read_image`. ``name`` is for the message."""
    if data.startswith(b"\x89PNG") and b"IEND" not in data[-64:]:
        # OpenCV would find this too, but libpng prints a line of its own on the way.
        raise ImageError(f"{name}: a PNG file that ends too early; copy it again")
    frame = None
    try:
        if data:
            frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        if "MAX_IMAGE_PIXELS" in str(error):
            raise ImageError(f"{name}: claims more than 64 megapixels; scale it down") from error
        raise ImageError(f"{name}: cannot be decoded; the file is damaged") from error
    if frame is None:
        raise ImageError(
            f"{name}: not a whole JPEG, PNG, WebP or BMP image; it is damaged, cut short or of another kind"
        )
    height, width = frame.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{name}: {width}x{height} pixels; at least {MIN_SIDE}x{MIN_SIDE} are needed to see anything")
    return frame  # type: ignore[return-value]
