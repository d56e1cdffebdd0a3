"""The buffer between capture and inference: only the newest frame of each camera, no queue."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from .frames import Frame


class LatestFrames:
    """The newest frame of each camera. Capture threads put frames, and one thread takes them.

    A frame that is not taken in time is replaced by a newer one, and counted in ``replaced``. Each frame is taken at
    most once. Cameras with new frames are served in rounds, the newest frame first and each camera once per round, so
    that no camera starves.

    Args:
        cameras: Names of the cameras.
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
        """Mark a camera as ended. Its last frame can still be taken."""
        with self._changed:
            self._open.discard(camera)
            self._changed.notify()

    def take(self, timeout_s: float) -> tuple[str, Frame] | None:
        """Take the next frame to classify; None if there is none within ``timeout_s`` or all cameras have ended."""
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
        """Whether all cameras have ended and all their frames have been taken."""
        with self._changed:
            return not self._open and not self._waiting()

    def _waiting(self) -> dict[str, Frame]:
        return {camera: frame for camera, frame in self._slots.items() if frame is not None}
