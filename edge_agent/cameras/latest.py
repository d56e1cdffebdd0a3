"""The slot between capture and inference: one frame a camera, the newest, never a queue."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from .frames import Frame


class LatestFrames:
    """Newest frame of each camera. Capture threads put, one inference thread takes; neither waits for the other.

    A frame not taken in time is replaced, and counted; a frame is taken once. Of several cameras
    with a new frame, the one served longest ago comes first, so none is starved.

    Args:
        cameras: their names.
    """

    def __init__(self, cameras: Iterable[str]) -> None:
        self._changed = threading.Condition()
        # In order of service: a camera that is served moves to the end.
        self._slots: dict[str, Frame | None] = dict.fromkeys(cameras)
        self._open = set(self._slots)
        self.replaced = dict.fromkeys(self._slots, 0)

    def put(self, camera: str, frame: Frame) -> None:
        """Make this the newest frame of a camera."""
        with self._changed:
            self.replaced[camera] += self._slots[camera] is not None
            self._slots[camera] = frame
            self._changed.notify()

    def close(self, camera: str) -> None:
        """This camera will give no more frames; the one in its slot is still taken."""
        with self._changed:
            self._open.discard(camera)
            self._changed.notify()

    def take(self, timeout_s: float) -> tuple[str, Frame] | None:
        """The next frame to classify; None when there is none within the time, or all cameras are closed."""
        with self._changed:
            if self._next() is None and self._open:
                self._changed.wait(timeout_s)
            camera = self._next()
            if camera is None:
                return None
            frame = self._slots.pop(camera)
            self._slots[camera] = None
            assert frame is not None  # noqa: S101  _next found it, under the same lock
            return camera, frame

    @property
    def finished(self) -> bool:
        """All cameras are closed and every last frame was taken."""
        with self._changed:
            return not self._open and self._next() is None

    def _next(self) -> str | None:
        return next((camera for camera, frame in self._slots.items() if frame is not None), None)
