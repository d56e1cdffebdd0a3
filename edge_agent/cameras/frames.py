"""What every camera gives, and the one made of a list."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, Self

from ..preprocess import Pixels


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture of a camera.

    Attributes:
        image: (H, W, 3) uint8, BGR. Belongs to the reader; no camera writes into it again.
        seq: how many frames this camera had delivered before this one since it was opened, so also
            the frame's number in a video file.
        captured_ns: wall-clock time of capture, nanoseconds since 1970, for messages.
        captured_s: monotonic time of capture, seconds, for durations: wall clocks jump.
    """

    image: Pixels
    seq: int
    captured_ns: int = field(default_factory=time.time_ns)
    captured_s: float = field(default_factory=time.monotonic)


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
            yield Frame(picture, seq)
            time.sleep(self._interval_s)
