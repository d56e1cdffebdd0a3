"""A folder of images as a camera."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from ..config import CameraSettings
from ..errors import CameraError, ImageError
from ..images import SUFFIXES, read_image
from .frames import ArrayFrame, Frame

log = logging.getLogger(__name__)

DEFAULT_FPS = 1.0


class FolderCamera:
    """Plays the images of a folder in the order of their names. Damaged images are logged and skipped.

    Args:
        settings: Source, ``fps`` (default 1), and whether to restart at the end.

    Raises (when iterated):
        CameraError: The folder cannot be read or contains no image.
    """

    def __init__(self, settings: CameraSettings) -> None:
        self._folder = Path(str(settings.source))
        self._loop = settings.loop
        self._interval_s = 1.0 / (settings.fps or DEFAULT_FPS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def __iter__(self) -> Iterator[Frame]:
        start, seq = time.monotonic(), 0
        while True:
            before = seq
            for path in self._images():
                try:
                    image = read_image(path)
                except ImageError as error:
                    log.warning("%s", error)
                    continue
                time.sleep(max(0.0, start + seq * self._interval_s - time.monotonic()))
                yield ArrayFrame(image=image, seq=seq)
                seq += 1
            if seq == before:
                raise CameraError(f"{self._folder}: contains no readable image ({', '.join(sorted(SUFFIXES))})")
            if not self._loop:
                return

    def _images(self) -> list[Path]:
        try:
            return sorted(path for path in self._folder.iterdir() if path.suffix.lower() in SUFFIXES)
        except OSError as error:
            raise CameraError(f"{self._folder}: cannot be read: {error.strerror or error}") from error
