"""Reconnection: a camera is reopened when it is lost, hangs or freezes."""

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
"""First and longest pause, in seconds, before a camera is reopened. The pause doubles each time."""
_SETTLED_S = 10.0
"""After a camera has delivered frames for this many seconds, the pause is reset to the first one."""
_FINGERPRINTS_PER_S = 2
_MAX_HANGING = 2
_POLL_S = 0.1
_STOP_S = 1.0
"""Time for the camera to be closed when the agent stops."""
READER = "camera reader"
"""Name of the threads that read cameras."""


class ReconnectingCamera:
    """Delivers the frames of a camera, and reopens the camera whenever it fails.

    The camera is read in a separate thread, because camera drivers can hang. A thread that hangs is abandoned: its
    later frames are discarded. While `_MAX_HANGING` abandoned threads have not ended, the camera is not opened again.

    A camera with the attribute ``first_frame_s`` may take that long for opening and its first frame together.

    Args:
        open_camera: Function that returns a new, unopened camera.
        live: Whether the camera is reopened when it stops. A file is not: it has ended.
        timeout_s: Seconds without a frame, including the time to open it, after which a live camera counts as lost.
        frozen_s: Seconds of exactly the same image after which a live camera counts as frozen; 0 disables the check.
            The noise of a working sensor changes every image.
        deliver: Called with each frame; must not block.
        report: Called with each new state and its reason.
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
        """Number of times the camera was reopened."""
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
            CameraError: A file failed. A live camera is reopened instead.
            ConfigError: A camera can never be opened, for example because Picamera2 is not installed.
        """
        pause_s = RETRY_S[0]
        abandoned: list[threading.Thread] = []
        while not stopping.is_set():
            opened_at = time.monotonic()
            reading = _Reading(self._open_camera)
            thread = threading.Thread(target=reading.run, name=READER, daemon=True)
            thread.start()
            state, reason = self._follow(reading, stopping)
            reading.abandoned.set()
            if stopping.is_set():
                thread.join(_STOP_S)
                return
            self._set_state(state, reason)
            if state == "ended":
                return
            if time.monotonic() - opened_at > _SETTLED_S + self._timeout_s:
                pause_s = RETRY_S[0]
            # Random jitter, so that cameras that return at the same time are not all opened at the same time.
            stopping.wait(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
            pause_s = min(2 * pause_s, RETRY_S[1])
            abandoned = [one for one in (*abandoned, thread) if one.is_alive()]
            while len(abandoned) >= _MAX_HANGING and not stopping.is_set():
                time.sleep(_POLL_S)
                abandoned = [one for one in abandoned if one.is_alive()]
            self.reopened += 1

    def _follow(self, reading: _Reading, stopping: threading.Event) -> tuple[CameraState, str]:
        """Deliver frames until the camera fails or ends. Returns its state then, and the reason."""
        start_s = time.monotonic()
        last_frame_s: float | None = None
        while not stopping.is_set():
            try:
                item = reading.items.get(timeout=_POLL_S)
            except queue.Empty:
                since_s = start_s if last_frame_s is None else last_frame_s
                limit_s = self._timeout_s
                if last_frame_s is None:
                    limit_s = max(limit_s, reading.first_frame_s)
                if self._live and time.monotonic() - since_s > limit_s:
                    return "lost", f"no frame for {limit_s:g} s"
                continue
            if isinstance(item, Frame):
                last_frame_s = time.monotonic()
                if self._live and self._frozen_s and self._still.seconds(item) >= self._frozen_s:
                    return "frozen", (
                        f"exactly the same image for {self._frozen_s:g} s; if the source renews its image less often, "
                        "increase frozen_s, or set it to 0"
                    )
                self._set_state("online", "delivers frames")
                self._deliver(item)
            elif item is None:
                return ("lost", "stopped delivering frames") if self._live else ("ended", "has ended")
            elif self._live and isinstance(item, CameraError):
                return "lost", str(item)
            else:
                raise item
        return "lost", "stopped"

    def _set_state(self, state: CameraState, reason: str) -> None:
        if state != self._state:
            self._state = state
            self._report(state, reason)


@dataclass
class _Reading:
    """One session with a camera. Its thread puts frames into ``items``, and at the end None or an error.

    ``first_frame_s``: seconds that the camera itself claims for opening and for its first frame.
    """

    open_camera: Callable[[], Camera]
    items: queue.Queue[Frame | Exception | None] = field(default_factory=lambda: queue.Queue(2))
    abandoned: threading.Event = field(default_factory=threading.Event)
    first_frame_s: float = 0.0

    def run(self) -> None:
        end: Exception | None = None
        try:
            camera = self.open_camera()
            self.first_frame_s = getattr(camera, "first_frame_s", 0.0)
            with camera:
                for frame in camera:
                    if not self._put(frame):
                        return
        except Exception as error:  # noqa: BLE001  passed on to the other thread
            end = error
        self._put(end)

    def _put(self, item: Frame | Exception | None) -> bool:
        """Put an item into the queue. Returns False if the session was abandoned."""
        while not self.abandoned.is_set():
            try:
                self.items.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False


class _Still:
    """Measures how long the image has been exactly the same, even if the camera is reopened in between."""

    def __init__(self) -> None:
        self._fingerprint: int | None = None
        self._since = self._checked_at = float("-inf")

    def seconds(self, frame: Frame) -> float:
        now = frame.captured_s
        if now - self._checked_at >= 1 / _FINGERPRINTS_PER_S:
            self._checked_at = now
            fingerprint = frame.fingerprint()
            if fingerprint != self._fingerprint:
                self._fingerprint, self._since = fingerprint, now
        return now - self._since
