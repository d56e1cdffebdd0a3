"""The slot between capture and inference: one frame a camera, the newest, never a queue."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from .frames import Frame


class LatestFrames:
    """Newest frame of each camera. Capture threads put, one thread takes; neither waits for the other.

    A frame not taken in time is replaced, and counted; a frame is taken once. Several cameras
    with a new frame are served in rounds, the freshest first and each once, so that none is starved.

    Args:
        cameras: their names.
    """

    def __init__(self, cameras: Iterable[str]) -> None:
        self._changed = threading.Condition()
        self._slots: dict[str, Frame | None] = dict.fromkeys(cameras)
        self._open = set(self._slots)
        self._served: set[str] = set()
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
            if not self._waiting() and self._open:
                self._changed.wait(timeout_s)
            waiting = self._waiting()
            if not waiting:
                return None
            if self._served.issuperset(waiting):
                self._served.clear()
            camera = max(waiting.keys() - self._served, key=lambda name: waiting[name].captured_s)
            self._served.add(camera)
            self._slots[camera] = None
            return camera, waiting[camera]

    @property
    def finished(self) -> bool:
        """All cameras are closed and every last frame was taken."""
        with self._changed:
            return not self._open and not self._waiting()

    def _waiting(self) -> dict[str, Frame]:
        return {camera: frame for camera, frame in self._slots.items() if frame is not None}
