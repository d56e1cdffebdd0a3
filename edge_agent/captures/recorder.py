"""Which frames are kept for retraining: those the model learns from, few, and no two alike.

A frame is worth keeping when the model was `uncertain`, when the label `changed`, when the frame `disagrees` with the
label decided over time, and now and then at `random`, so that what is kept also shows the ordinary.
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
from ..config import RecordSettings
from ..errors import ImageError
from ..messages import UNKNOWN, VERSION, ModelId, RecorderHealth, timestamp
from ..preprocess import Pixels
from .folder import Capture, Captures

log = logging.getLogger(__name__)

Reason = Literal["uncertain", "changed", "disagrees", "random"]

MARGIN = 0.2
"""Between the two highest scores; closer than this the model was torn between them."""
_LOOK_S = 1.0
"""Between two frames of one camera and reason that are looked at; looking costs a small decode."""
_WAITING = 4
_ALIKE_BITS = 8
"""Of 64: two images whose hashes differ in no more are taken for the same. Measured on 29 photographs: noise, JPEG,
light and shifts of two pixels change 5 bits or fewer in 95 of 100, 10 at most; other scenes differ in 20 or more."""
_REMEMBERED = 16
_RETRY_S = 60.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidate:
    """A frame that was classified.

    Attributes:
        camera: its name.
        frame: the original.
        scores: (classes,) float32, softmax, 0 to 1.
        labels: in the order of the scores.
        label: what is decided, or `unknown`.
        changed: whether this frame changed it.
        model: which model scored it.
        enter: the score a label must reach.
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
    """So many frames an hour, shared by kinds (camera and reason) that want to be kept. For one thread.

    A bucket holds ten minutes' worth. A kind that had its share lately may draw only while the bucket is over half
    full, so that one flickering camera leaves the rest to the others.
    """

    def __init__(self, per_hour: float) -> None:
        self._rate = per_hour / 3600
        self.capacity = max(1.0, per_hour / 6)
        self._tokens = self.capacity
        self._at: float | None = None
        self._drawn: dict[tuple[str, str], float] = {}

    def draw(self, kind: tuple[str, str], now: float) -> bool:
        """Take one, if this kind may now; ``now`` is monotonic, seconds."""
        self._fill(now)
        kinds = len(self._drawn.keys() | {kind})
        had_its_share = now - self._drawn.get(kind, float("-inf")) < kinds / self._rate
        if self._tokens < (max(1.0, self.capacity / 2) if had_its_share else 1.0):
            return False
        self._tokens -= 1
        self._drawn[kind] = now
        return True

    def give_back(self) -> None:
        """What was drawn is not needed."""
        self._tokens = min(self.capacity, self._tokens + 1)

    def _fill(self, now: float) -> None:
        if self._at is not None:
            self._tokens = min(self.capacity, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = now


class Recorder:
    """Keeps frames in a folder, in a thread of its own. A context manager.

    Args:
        folder: of the captures.
        settings: budget and limits.
        device: this device's name.
    """

    def __init__(self, folder: Path, settings: RecordSettings, device: str) -> None:
        self._device = device
        self._settings = settings
        self._captures = Captures(folder, max_bytes=settings.max_mb * 1e6, min_free_bytes=settings.min_free_mb * 1e6)
        self._budget = Budget(settings.per_hour)
        self._lock = threading.Lock()
        self._looked: dict[tuple[str, str], float] = {}
        self._random_at: dict[str, float] = {}
        self._waiting: queue.Queue[tuple[Candidate, Reason] | None] = queue.Queue(_WAITING)
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
        """Have a frame kept if it is worth it; never waits."""
        now = candidate.frame.captured_s
        why = reason(candidate)
        due = self._random_at.setdefault(candidate.camera, now + self._next_random_s())
        if now >= due:
            self._random_at[candidate.camera] = now + self._next_random_s()
            why = "random"
        if why is None:
            return
        kind = (candidate.camera, why)
        if why != "random" and now - self._looked.get(kind, float("-inf")) < _LOOK_S:
            return
        self._looked[kind] = now
        with self._lock:
            drawn = self._budget.draw(kind, now)
        if not drawn:
            self._skipped += 1
            return
        try:
            self._waiting.put_nowait((candidate, why))
        except queue.Full:
            self._give_back()

    def health(self) -> RecorderHealth:
        """What was kept since the start, and what is in the way."""
        return RecorderHealth(self._kept, self._skipped, round(self._captures.size / 1e6, 3), self._paused)

    def _next_random_s(self) -> float:
        # Exponential: what comes every hour on the hour would never show the time between.
        return random.expovariate(1 / self._settings.random_every_s)

    def _give_back(self) -> None:
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
                item = self._waiting.get(timeout=0.2)
            except queue.Empty:
                continue
            if item is None or time.monotonic() < self._paused_until:
                self._give_back()
                continue
            try:
                self._keep(*item)
            except OSError as error:
                self._give_back()
                self._pause(error.strerror or str(error))
            except ImageError:
                self._give_back()
            except Exception:
                self._give_back()
                log.exception("recorder: a frame was not kept")

    def _keep(self, candidate: Candidate, why: Reason) -> None:
        frame = candidate.frame
        seen = self._hashes.setdefault(candidate.camera, deque(maxlen=_REMEMBERED))
        found = fingerprint(frame.at_least(72, 128))
        if any((found ^ other).bit_count() <= _ALIKE_BITS for other in seen):
            self._give_back()
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
            reason=why,
            model=candidate.model,
            width=columns,
            height=rows,
            sha256="",
        )
        in_the_way = self._captures.keep(capture, frame.jpeg(), frame.captured_ns)
        if in_the_way is not None:
            self._give_back()
            self._pause(in_the_way)
            return
        seen.append(found)
        self._kept += 1
        if self._paused is not None:
            log.info("recorder: keeps frames again")
            self._paused = None

    def _pause(self, why: str) -> None:
        if why != self._paused:
            log.warning("recorder: keeps nothing for now: %s", why)
        self._paused = why
        self._paused_until = time.monotonic() + _RETRY_S


def reason(candidate: Candidate) -> Reason | None:
    """Why a frame is worth keeping; None when it is not."""
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
    """A 64-bit difference hash of an image, (H, W, 3) uint8 BGR: is each of 8x8 cells darker than its right neighbour?

    N. Krawetz, "Kind of Like That", 2013.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    cells = np.asarray(cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)).astype(np.int16)
    return int.from_bytes(np.packbits(cells[:, :-1] < cells[:, 1:]).tobytes(), "big")
