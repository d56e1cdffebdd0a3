"""A camera that is kept: opened again when it is lost, hangs or freezes."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import CameraError
from ..messages import CameraState
from .frames import Camera, Frame

RETRY_S = (1.0, 60.0)
"""First and longest pause before a camera is opened again; each is twice the one before."""
_SETTLED_S = 10.0
"""A camera that delivered for so long starts again with the first pause."""
_FINGERPRINTS_PER_S = 2


class ReconnectingCamera:
    """Reads a camera for as long as it takes.

    Reading happens in a thread that is left to itself when it hangs, as drivers do: nothing it reads later is
    delivered, and it dies with the process.

    Args:
        open_camera: a new, unopened camera.
        live: one that stops is opened again; another has ended.
        timeout_s: seconds without a frame, also while it is being opened, after which a live one counts as lost.
        frozen_s: seconds of exactly the same image after which a live one counts as frozen; 0 never. A living sensor
            has noise.
        deliver: called with each frame; must not block.
        report: called with each change of state and its reason.
    """

    def __init__(
        self,
        open_camera: Callable[[], Camera],
        *,
        live: bool,
        timeout_s: float,
        frozen_s: float,
        deliver: Callable[[Frame], None],
        report: Callable[[CameraState, str], None],
    ) -> None:
        self.reopened = 0
        """How often it was opened again."""
        self._open_camera = open_camera
        self._live = live
        self._timeout_s = timeout_s
        self._frozen_s = frozen_s
        self._deliver = deliver
        self._report = report
        self._still = _Still()
        self._state: CameraState | None = None

    def run(self, stopping: threading.Event) -> None:
        """Deliver frames until a file ends or ``stopping`` is set.

        Raises:
            CameraError: of a file; of a live camera only when opening it again could not help.
        """
        pause_s = RETRY_S[0]
        while not stopping.is_set():
            opened_at = time.monotonic()
            reading = _Reading(self._open_camera)
            state, reason = self._follow(reading, stopping)
            reading.abandoned.set()
            if stopping.is_set():
                return
            self._tell(state, reason)
            if state == "ended":
                return
            if time.monotonic() - opened_at > _SETTLED_S + self._timeout_s:
                pause_s = RETRY_S[0]
            # Jitter: cameras behind one switch come back together, and should not be asked together.
            stopping.wait(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
            pause_s = min(2 * pause_s, RETRY_S[1])
            self.reopened += 1

    def _follow(self, reading: _Reading, stopping: threading.Event) -> tuple[CameraState, str]:
        """Deliver what is read, until it must be opened again; what it is then, and why."""
        threading.Thread(target=reading.run, name="camera reader", daemon=True).start()
        last_frame_s = time.monotonic()
        while not stopping.is_set():
            try:
                item = reading.items.get(timeout=0.1)
            except queue.Empty:
                if self._live and time.monotonic() - last_frame_s > self._timeout_s:
                    return "lost", f"no frame for {self._timeout_s:g} s"
                continue
            if isinstance(item, Frame):
                last_frame_s = time.monotonic()
                if self._live and self._frozen_s and self._still.seconds(item) >= self._frozen_s:
                    return "frozen", f"exactly the same image for {self._frozen_s:g} s"
                self._tell("online", "delivers frames")
                self._deliver(item)
            elif item is None:
                return ("lost", "stopped delivering frames") if self._live else ("ended", "has ended")
            elif self._live and isinstance(item, CameraError):
                return "lost", str(item)
            else:
                raise item
        return "lost", "stopped"

    def _tell(self, state: CameraState, reason: str) -> None:
        if state != self._state:
            self._state = state
            self._report(state, reason)


@dataclass
class _Reading:
    """One opening of a camera, read in a thread of its own into ``items``: frames, then None or an error."""

    open_camera: Callable[[], Camera]
    items: queue.Queue[Frame | Exception | None] = field(default_factory=lambda: queue.Queue(2))
    abandoned: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        end: Exception | None = None
        try:
            with self.open_camera() as camera:
                for frame in camera:
                    if not self._put(frame):
                        return
        except Exception as error:  # noqa: BLE001  handed over
            end = error
        self._put(end)

    def _put(self, item: Frame | Exception | None) -> bool:
        """Hand over; False when nobody wants it any more."""
        while not self.abandoned.is_set():
            try:
                self.items.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


class _Still:
    """How long the image has been exactly the same, also from one opening of the camera to the next."""

    def __init__(self) -> None:
        self._fingerprint: int | None = None
        self._since = self._looked_at = float("-inf")

    def seconds(self, frame: Frame) -> float:
        now = frame.captured_s
        if now - self._looked_at >= 1 / _FINGERPRINTS_PER_S:
            self._looked_at = now
            fingerprint = frame.fingerprint()
            if fingerprint != self._fingerprint:
                self._fingerprint, self._since = fingerprint, now
        return now - self._since
