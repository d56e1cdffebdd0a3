"""Selection of frames to keep for retraining: few, informative, and without near duplicates.

A frame is kept if the model was `uncertain`, if the label `changed`, or if the frame `disagrees` with the label decided
over time. Some frames are kept at `random`, so that the captures also show ordinary scenes.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import cv2
import numpy as np
import numpy.typing as npt

from ..cameras import Frame
from ..clock import is_clock_set
from ..config import RecordSettings
from ..errors import ImageError
from ..messages import UNKNOWN, VERSION, ModelId, RecorderHealth, timestamp
from ..preprocessing import Pixels
from .folder import Capture, Captures

log = logging.getLogger(__name__)

Reason = Literal["uncertain", "changed", "disagrees", "random"]

MARGIN = 0.2
"""The model counts as uncertain if the two highest scores differ by less than this."""
_CHECK_INTERVAL_S = 1.0
"""Minimum seconds between two checked frames of the same camera and reason. A check decodes a small image."""
_QUEUE_SIZE = 4
_DUPLICATE_BITS = 8
"""Images whose 64-bit hashes differ in at most this many bits count as near duplicates. Measured on 29 photos: noise,
JPEG compression, other light and shifts of two pixels change at most 5 bits in 95 of 100 cases, and never more than 10.
Different scenes differ in 20 bits or more."""
_REMEMBERED = 16
_RETRY_S = 60.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidate:
    """A classified frame that the recorder may keep.

    Attributes:
        camera: Name of the camera.
        frame: The original frame.
        scores: Softmax scores, (classes,) float32, 0 to 1.
        labels: Labels, in the order of the scores.
        label: The decided label, or `unknown`.
        changed: Whether this frame changed the decided label.
        model: The model that classified the frame.
        enter: Score that a label must reach to be decided.
    """

    camera: str
    frame: Frame
    scores: npt.NDArray[np.float32]
    labels: tuple[str, ...]
    label: str
    changed: bool
    model: ModelId
    enter: float


class Budget:
    """A token bucket that limits the number of frames kept per hour. Not thread-safe.

    All kinds of frames (combinations of camera and reason) share the bucket, which holds the tokens of ten minutes. A
    kind that recently used its share may draw a token only while the bucket is at least half full, so that one
    flickering camera does not use up the tokens of all cameras.
    """

    def __init__(self, per_hour: float) -> None:
        self._rate = per_hour / 3600
        self.capacity = max(1.0, per_hour / 6)
        self._tokens = self.capacity
        self._at: float | None = None
        self._drawn: dict[tuple[str, str], float] = {}

    def draw(self, kind: tuple[str, str], now: float) -> bool:
        """Take a token for a capture. Return False if this kind gets none now. ``now`` is monotonic time in seconds."""
        self._fill(now)
        kinds = len(self._drawn.keys() | {kind})
        used_its_share = now - self._drawn.get(kind, float("-inf")) < kinds / self._rate
        if self._tokens < (max(1.0, self.capacity / 2) if used_its_share else 1.0):
            return False
        self._tokens -= 1
        self._drawn[kind] = now
        return True

    def give_back(self) -> None:
        """Return a token that was drawn but not used."""
        self._tokens = min(self.capacity, self._tokens + 1)

    def _fill(self, now: float) -> None:
        if self._at is not None:
            self._tokens = min(self.capacity, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now


class Recorder:
    """Saves selected frames to a folder, in a separate thread. A context manager.

    Args:
        folder: Folder of the captures.
        settings: Budget and limits.
        device: Name of this device.
    """

    def __init__(self, folder: Path, settings: RecordSettings, device: str) -> None:
        self._device = device
        self._settings = settings
        self._captures = Captures(folder, max_bytes=settings.max_mb * 1e6, min_free_bytes=settings.min_free_mb * 1e6)
        self._budget = Budget(settings.per_hour)
        self._lock = threading.Lock()
        self._checked: dict[tuple[str, str], float] = {}
        self._random_at: dict[str, float] = {}
        self._queue: queue.Queue[tuple[Candidate, Reason] | None] = queue.Queue(_QUEUE_SIZE)
        self._stopping = threading.Event()
        self._hashes: dict[str, deque[int]] = {}
        self._kept = self._skipped = 0
        self._paused: str | None = None
        self._paused_until = 0.0
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        self._thread.join(2.0)

    def offer(self, candidate: Candidate) -> None:
        """Queue a frame to be kept if it is selected. Never blocks."""
        now = candidate.frame.captured_s
        selected = reason(candidate)
        due = self._random_at.setdefault(candidate.camera, now + self._next_random_s())
        if now >= due:
            self._random_at[candidate.camera] = now + self._next_random_s()
            selected = "random"
        if selected is None:
            return
        kind = (candidate.camera, selected)
        if selected != "random" and now - self._checked.get(kind, float("-inf")) < _CHECK_INTERVAL_S:
            return
        self._checked[kind] = now
        with self._lock:
            drawn = self._budget.draw(kind, now)
        if not drawn:
            self._skipped += 1
            return
        try:
            self._queue.put_nowait((candidate, selected))
        except queue.Full:
            self._skip()

    def health(self) -> RecorderHealth:
        """Return the numbers of kept and skipped frames since the start and, if recording is paused, the reason."""
        return RecorderHealth(self._kept, self._skipped, round(self._captures.size / 1e6, 3), self._paused)

    def _next_random_s(self) -> float:
        # Exponential intervals: samples at fixed times would always show the same time of day.
        return random.expovariate(1 / self._settings.random_every_s)

    def _skip(self) -> None:
        """Count a frame as skipped, and return its token."""
        self._skipped += 1
        with self._lock:
            self._budget.give_back()

    # --- the recorder's thread ---

    def _work(self) -> None:
        try:
            self._captures.sweep()
            self._captures.index()
        except OSError as error:
            self._pause(error.strerror or str(error))
        while not self._stopping.is_set():
            try:
                item = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            if item is None or time.monotonic() < self._paused_until:
                self._skip()
                continue
            try:
                self._keep(*item)
            except OSError as error:
                self._skip()
                self._pause(error.strerror or str(error))
            except ImageError:
                self._skip()
            except Exception:
                self._skip()
                log.exception("recorder: cannot keep a frame")

    def _keep(self, candidate: Candidate, selected: Reason) -> None:
        frame = candidate.frame
        hashes = self._hashes.setdefault(candidate.camera, deque(maxlen=_REMEMBERED))
        new_hash = fingerprint(frame.at_least(72, 128))
        if any((new_hash ^ other).bit_count() <= _DUPLICATE_BITS for other in hashes):
            self._skip()
            return
        rows, columns = frame.size
        capture = Capture(
            v=VERSION,
            device=self._device,
            camera=candidate.camera,
            seq=frame.seq,
            captured_at=timestamp(frame.captured_ns),
            label=candidate.label,
            scores={
                label: round(float(score), 4) for label, score in zip(candidate.labels, candidate.scores, strict=True)
            },
            reason=selected,
            model=candidate.model,
            width=columns,
            height=rows,
            sha256="",
            clock=None if is_clock_set() else "unset",
        )
        no_space = self._captures.keep(capture, frame.jpeg(), frame.captured_ns)
        if no_space is not None:
            self._skip()
            self._pause(no_space)
            return
        hashes.append(new_hash)
        self._kept += 1
        if self._paused is not None:
            log.info("recorder: resumed")
            self._paused = None

    def _pause(self, cause: str) -> None:
        if cause != self._paused:
            log.warning("recorder: paused: %s", cause)
        self._paused = cause
        self._paused_until = time.monotonic() + _RETRY_S


def reason(candidate: Candidate) -> Reason | None:
    """Return the reason to keep a frame; None if there is no reason."""
    if candidate.changed:
        return "changed"
    scores = np.sort(candidate.scores)
    best = float(scores[-1])
    second = float(scores[-2]) if len(scores) > 1 else 0.0
    if best < candidate.enter or best - second < MARGIN:
        return "uncertain"
    if candidate.label not in (UNKNOWN, candidate.labels[int(candidate.scores.argmax())]):
        return "disagrees"
    return None


def fingerprint(image: Pixels) -> int:
    """Return the 64-bit difference hash of an image, (H, W, 3) uint8 BGR (N. Krawetz, "Kind of Like That", 2013).

    Each bit says whether one of 8x8 cells is darker than its right neighbour.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    cells = np.asarray(cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)).astype(np.int16)
    return int.from_bytes(np.packbits(cells[:, :-1] < cells[:, 1:]).tobytes(), "big")
