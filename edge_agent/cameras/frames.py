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

from ..errors import PictureError
from ..preprocess import Pixels

JPEG_QUALITY = 95
"""Of pictures the camera did not encode itself: small losses, a fifth of the size of PNG."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Frame(ABC):
    """One picture of a camera, decoded when it is looked at and only as large as it is needed.

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
        """The whole picture as the camera took it: (H, W, 3) uint8, BGR. Not to be written into.

        Raises:
            PictureError: it cannot be decoded.
        """

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of `full`.

        Raises:
            PictureError: it cannot be told.
        """
        rows, columns = self.full().shape[:2]
        return rows, columns

    def at_least(self, height: int, width: int) -> Pixels:  # noqa: ARG002  for those that can do better
        """The same picture, perhaps smaller: at least so many rows and columns where `full` has them.

        Raises:
            PictureError: it cannot be decoded.
        """
        return self.full()

    def fingerprint(self) -> int:
        """A number that is the same for exactly the same picture, and hardly ever for another."""
        picture = self.full()
        # Every eighth row: noise shows in any of them.
        return zlib.crc32(np.ascontiguousarray(picture[::8]).tobytes(), picture.shape[0])

    def jpeg(self) -> bytes:
        """The whole picture as a JPEG file; the camera's own bytes where it sent such."""
        return encoded(self.full())


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ArrayFrame(Frame):
    """A picture that came decoded. ``image``: (H, W, 3) uint8, BGR; no camera writes into it again."""

    image: Pixels

    def full(self) -> Pixels:
        """See `Frame`."""
        return self.image


def encoded(picture: Pixels) -> bytes:
    """A picture, (H, W, 3) uint8 BGR, as a JPEG file.

    Raises:
        PictureError: JPEG cannot hold it, such as one of 70,000 columns.
    """
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise PictureError(f"a picture of {picture.shape[1]}x{picture.shape[0]} pixels cannot be written as JPEG")
    return np.asarray(data).tobytes()


class Camera(Protocol):
    """An opened camera; iterating waits for each next frame and ends when there will be no more."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def __iter__(self) -> Iterator[Frame]: ...


class ListCamera:
    """A camera that shows given pictures, for tests and examples.

    Args:
        pictures: (H, W, 3) uint8 BGR each.
        interval_s: seconds between them.
    """

    def __init__(self, pictures: Iterable[Pixels], *, interval_s: float = 0.0) -> None:
        self._pictures = pictures
        self._interval_s = interval_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def __iter__(self) -> Iterator[Frame]:
        for seq, picture in enumerate(self._pictures):
            yield ArrayFrame(image=picture, seq=seq)
            time.sleep(self._interval_s)
