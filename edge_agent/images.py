"""Decoding of image files; the trainer, the calibrator and `predict` all use this decoder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import cv2
import numpy as np

from .errors import ImageError
from .image_headers import read_header
from .preprocessing import Pixels

MAX_FILE_BYTES = 64 * 2**20
MAX_DECODING_BYTES = 192 * 2**20
"""Largest amount of memory for decoding an image: a third of the smallest device's."""
MIN_SIDE = 16
"""Smallest width and height in pixels. Frigate's maintainers name crops under 80 pixels as a cause of bad models; under
16 pixels, objects cannot be recognized at all."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


def read_image(path: str | os.PathLike[str]) -> Pixels:
    """Read a JPEG, PNG, WebP or BMP file.

    EXIF rotation is applied (for WebP only with OpenCV 5, not 4.11), 16-bit files keep their upper 8 bits,
    CMYK and grey are converted to BGR, transparency is dropped. A JPEG image is decoded at half its size if decoding it
    in full would take more than 192 MiB, which it does from 33 megapixels on.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        ImageError: the file does not exist, is not a regular file, is not an image, is truncated, has a side of less
            than 16 pixels, has more than 64 megapixels, is larger than 64 MiB, or decoding would take over 192 MiB.
    """
    return decode_image(read_bytes(path), path)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read the bytes of an image file. Refuse files that are too large or not regular: reading a pipe would block."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{path}: expected an image file, but this is not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(f"{path}: {status.st_size} bytes; an image may have at most {MAX_FILE_BYTES}")
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from error


def decode_image(data: bytes, name: str | os.PathLike[str]) -> Pixels:
    """Decode the bytes of an image file; see `read_image`. ``name`` is used in error messages."""
    try:
        header = read_header(data)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    if header.format == "PNG" and b"IEND" not in data[-64:]:
        # OpenCV would also detect this, but libpng would print a message to standard error.
        raise ImageError(f"{name}: the PNG file is truncated; copy it again")
    flags = cv2.IMREAD_COLOR
    if header.decoding_bytes() > MAX_DECODING_BYTES:
        if header.format != "JPEG" or header.decoding_bytes(2) > MAX_DECODING_BYTES:
            raise ImageError(
                f"{name}: {header.columns}x{header.rows} pixels; decoding would take "
                f"{header.decoding_bytes() >> 20} MiB, more than {MAX_DECODING_BYTES >> 20}; scale it down"
            )
        flags = cv2.IMREAD_REDUCED_COLOR_2
    try:
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"{name}: cannot be decoded; the file is damaged") from error
    if frame is None:
        raise ImageError(
            f"{name}: not a complete JPEG, PNG, WebP or BMP image; it is damaged, truncated or of another format"
        )
    height, width = frame.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{name}: {width}x{height} pixels; at least {MIN_SIDE}x{MIN_SIDE} are needed")
    return frame  # type: ignore[return-value]
