"""The interfaces `Camera` and `Frame`, and a camera that plays a list of images."""

from __future__ import annotations

import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, Self

import cv2
import numpy as np

from ..errors import ImageError
from ..preprocessing import Pixels

JPEG_QUALITY = 95
"""Quality of images that the camera did not encode itself: little loss, a fifth of the size of PNG."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Frame(ABC):
    """One image of a camera. It is decoded on demand, and only at the size that is needed.

    Attributes:
        seq: Number of frames that the camera delivered before this one since it was opened. For a video file, this is
            the index of the frame.
        captured_ns: Wall-clock time of capture, in nanoseconds since 1970, for messages.
        captured_s: Monotonic time of capture, in seconds, for durations, because wall clocks may jump.
    """

    seq: int
    captured_ns: int = field(default_factory=time.time_ns)
    captured_s: float = field(default_factory=time.monotonic)

    @abstractmethod
    def full(self) -> Pixels:
        """The image at full size: (H, W, 3) uint8, BGR. Do not modify it.

        Raises:
            ImageError: The image cannot be decoded.
        """

    @property
    def size(self) -> tuple[int, int]:
        """Number of rows and columns of `full`.

        Raises:
            ImageError: The size cannot be determined.
        """
        rows, columns = self.full().shape[:2]
        return rows, columns

    def at_least(self, height: int, width: int) -> Pixels:  # noqa: ARG002  subclasses use them
        """The image, possibly scaled down, with at least ``height`` rows and ``width`` columns.

        If the full image is smaller than that, it is returned unchanged.

        Raises:
            ImageError: The image cannot be decoded.
        """
        return self.full()

    def fingerprint(self) -> int:
        """A checksum that is equal for identical images, and very rarely for different ones."""
        image = self.full()
        # Every eighth row is enough, as noise changes all rows.
        return zlib.crc32(np.ascontiguousarray(image[::8]).tobytes(), image.shape[0])

    def jpeg(self) -> bytes:
        """The image at full size as a JPEG file: the camera's original bytes if it sent JPEG."""
        return encoded(self.full())


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ArrayFrame(Frame):
    """A decoded image. ``image``: (H, W, 3) uint8, BGR; the camera does not modify it any more."""

    image: Pixels

    def full(self) -> Pixels:
        """See `Frame`."""
        return self.image


def encoded(image: Pixels) -> bytes:
    """Encode an image, (H, W, 3) uint8 BGR, as a JPEG file.

    Raises:
        ImageError: The image is too large for JPEG, for example 70,000 columns wide.
    """
    success, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not success:
        raise ImageError(f"an image of {image.shape[1]}x{image.shape[0]} pixels cannot be encoded as JPEG")
    return np.asarray(data).tobytes()


class Camera(Protocol):
    """An opened camera. Iterating waits for the next frame, and stops when there are no more frames."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def __iter__(self) -> Iterator[Frame]: ...


class ListCamera:
    """A camera that plays the given images, for tests and examples.

    Args:
        images: Images, each (H, W, 3) uint8 BGR.
        interval_s: Seconds between two images.
    """

    def __init__(self, images: Iterable[Pixels], *, interval_s: float = 0.0) -> None:
        self._images = images
        self._interval_s = interval_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def __iter__(self) -> Iterator[Frame]:
        for seq, image in enumerate(self._images):
            yield ArrayFrame(image=image, seq=seq)
            time.sleep(self._interval_s)
