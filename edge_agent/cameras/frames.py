"""What every camera gives, and the camera made of a list."""

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
from ..preprocess import Pixels

JPEG_QUALITY = 95
"""Of images the camera did not encode itself: small losses, a fifth of the size of PNG."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Frame(ABC):
    """One image of a camera, decoded when it is looked at and only as large as it is needed.

    Attributes:
        seq: how many frames this camera had delivered before this one since it was opened, so also
            the frame's number in a video file.
        captured_ns: wall-clock time of capture, nanoseconds since 1970, for messages.
        captured_s: monotonic time of capture, seconds, for durations: wall clocks jump.
    """

    seq: int
    captured_ns: int = field(default_factory=time.time_ns)
    captured_s: float = field(default_factory=time.monotonic)

    @abstractmethod
    def full(self) -> Pixels:
        """The whole image as the camera took it: (H, W, 3) uint8, BGR. Not to be written into.

        Raises:
            ImageError: it cannot be decoded.
        """

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of `full`.

        Raises:
            ImageError: it cannot be told.
        """
        rows, columns = self.full().shape[:2]
        return rows, columns

    def at_least(self, height: int, width: int) -> Pixels:  # noqa: ARG002  for those that can do better
        """The same image, perhaps smaller: at least so many rows and columns where `full` has them.

        Raises:
            ImageError: it cannot be decoded.
        """
        return self.full()

    def fingerprint(self) -> int:
        """A number that is the same for exactly the same image, and hardly ever for another."""
        image = self.full()
        # Every eighth row: noise shows in any of them.
        return zlib.crc32(np.ascontiguousarray(image[::8]).tobytes(), image.shape[0])

    def jpeg(self) -> bytes:
        """The whole image as a JPEG file; the camera's own bytes where it sent such."""
        return encoded(self.full())


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ArrayFrame(Frame):
    """An image that came decoded. ``image``: (H, W, 3) uint8, BGR; no camera writes into it again."""

    image: Pixels

    def full(self) -> Pixels:
        """See `Frame`."""
        return self.image


def encoded(image: Pixels) -> bytes:
    """An image, (H, W, 3) uint8 BGR, as a JPEG file.

    Raises:
        ImageError: JPEG cannot hold it, such as one of 70,000 columns.
    """
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise ImageError(f"an image of {image.shape[1]}x{image.shape[0]} pixels cannot be written as JPEG")
    return np.asarray(data).tobytes()


class Camera(Protocol):
    """An opened camera; iterating waits for each next frame and ends when there will be no more."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def __iter__(self) -> Iterator[Frame]: ...


class ListCamera:
    """A camera that shows given images, for tests and examples.

    Args:
        images: (H, W, 3) uint8 BGR each.
        interval_s: seconds between them.
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
