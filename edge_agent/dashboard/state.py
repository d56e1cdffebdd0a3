"""What the page knows: the present, and the last minutes. Written by the agent's threads, read by the web server's.

Everything has a version that grows with each change, so that a viewer asks for what is newer than the last version it
saw: nothing is queued for anybody, and who is slow gets the newest.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ..messages import UNKNOWN, CameraState, Health, Info, Observation, Timing, Tunables, timestamp

POINTS = 300
"""Seconds of scores and latencies that are kept: five minutes, what the page shows."""
LABELS = 200
EVENTS = 50
STAGES = ("preprocess", "inference", "capture_to_publish")
BOUNDS_MS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
"""Upper bounds of the latency histograms: from a fast desktop's preprocessing to a stuck network."""


class Point(msgspec.Struct, frozen=True, array_like=True):
    """One second of one camera's results. ``at_s`` is when it began; means but for ``age_most_ms``."""

    at_s: float
    results: int
    score: float
    preprocess_ms: float
    inference_ms: float
    age_ms: float
    age_most_ms: float


class LabelChange(msgspec.Struct, frozen=True, array_like=True):
    """From ``at_s`` on the camera's label was this; None while it shows nothing to be labelled."""

    at_s: float
    label: str | None
    score: float


@dataclass
class BucketCounts:
    """A histogram as Prometheus wants it: how many were at most each bound of `BOUNDS_MS`, the last without one."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_MS) + 1))
    sum_ms: float = 0.0

    def add(self, ms: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS_MS, ms)] += 1
        self.sum_ms += ms


@dataclass
class _Second:
    """The second that is being added up."""

    at_s: int
    results: int = 0
    score: float = 0.0
    preprocess_ms: float = 0.0
    inference_ms: float = 0.0
    age_ms: float = 0.0
    age_most_ms: float = 0.0

    def add(self, score: float, timing: Timing) -> None:
        self.results += 1
        self.score += score
        self.preprocess_ms += timing.preprocess
        self.inference_ms += timing.inference
        self.age_ms += timing.capture_to_publish
        self.age_most_ms = max(self.age_most_ms, timing.capture_to_publish)

    def point(self) -> Point:
        count = self.results
        means = (self.preprocess_ms / count, self.inference_ms / count, self.age_ms / count, self.age_most_ms)
        return Point(self.at_s, count, round(self.score / count, 4), *(round(mean, 3) for mean in means))


@dataclass
class CameraBoard:
    """What is known of one camera. ``present`` and the three histories hold (version, value)."""

    present: dict[str, tuple[int, Any]] = field(default_factory=dict)
    points: deque[tuple[int, Point]] = field(default_factory=lambda: deque(maxlen=POINTS))
    labels: deque[tuple[int, LabelChange]] = field(default_factory=lambda: deque(maxlen=LABELS))
    results: int = 0
    changes: int = 0
    spreads: dict[str, BucketCounts] = field(default_factory=lambda: {stage: BucketCounts() for stage in STAGES})
    second: _Second | None = None

    def value(self, key: str) -> Any:
        """The present ``state``, ``label``, ``score`` or ``result``; None before the first."""
        return self.present.get(key, (0, None))[1]


class DashboardState:
    """Holds the newest of every message and a bounded past. Every method takes microseconds and never waits long.

    Args:
        device: this device's name.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.cameras: dict[str, CameraBoard] = {}
        """Only ever grows, by the cameras of this device."""
        self._lock = threading.Lock()
        self._version = 0
        self._start_s = time.monotonic()
        self._present: dict[str, tuple[int, Any]] = {}
        self._events: deque[tuple[int, Observation]] = deque(maxlen=EVENTS)

    def info(self, info: Info) -> None:
        """What runs here, and which cameras there are."""
        with self._lock:
            for name in info.cameras:
                self._camera(name)
            self._put("info", info)

    def health(self, health: Health) -> None:
        """How the device is."""
        with self._lock:
            self._put("health", health)

    def tunables(self, tunables: Tunables) -> None:
        """What can be set."""
        with self._lock:
            self._put("tunables", tunables)

    def camera(self, name: str, state: CameraState) -> None:
        """A camera came or went: while it is gone it has no label."""
        now_s, now = self.now_s(), timestamp(time.time_ns())
        with self._lock:
            camera = self._camera(name)
            label: Observation | None = camera.value("label")
            self._set(camera, "state", {"state": state, "since": now, "since_s": now_s})
            if state != "online":
                camera.labels.append((self._version, LabelChange(now_s, None, 0.0)))
            elif label is not None:
                camera.labels.append((self._version, LabelChange(now_s, label.label, label.score)))

    def label(self, observation: Observation) -> None:
        """What is decided."""
        now_s = self.now_s()
        with self._lock:
            camera = self._camera(observation.camera)
            self._set(camera, "label", observation)
            camera.labels.append((self._version, LabelChange(now_s, observation.label, observation.score)))

    def event(self, observation: Observation) -> None:
        """A label changed."""
        with self._lock:
            self._camera(observation.camera).changes += 1
            self._version += 1
            self._events.append((self._version, observation))

    def result(self, observation: Observation) -> None:
        """One inference: the newest is kept, and the second it belongs to summed up."""
        second, timing = int(self.now_s()), observation.timing_ms
        with self._lock:
            camera = self._camera(observation.camera)
            decided: Observation | None = camera.value("label")
            score = score_now(observation, None if decided is None else decided.label)
            self._set(camera, "result", observation)
            camera.present["score"] = self._version, score
            camera.results += 1
            spreads = camera.spreads
            spreads["preprocess"].add(timing.preprocess)
            spreads["inference"].add(timing.inference)
            spreads["capture_to_publish"].add(timing.capture_to_publish)
            if camera.second is None or camera.second.at_s != second:
                self._close_second(camera)
                camera.second = _Second(second)
            camera.second.add(score, timing)

    def now_s(self) -> float:
        """Seconds since this board was made: the clock of points and labels, which no clock jump moves."""
        return round(time.monotonic() - self._start_s, 3)

    def since(self, version: int) -> tuple[int, dict[str, Any]]:
        """What changed after a version, 0 for everything, and the version to ask with next.

        Keys without news are left out: ``info``, ``health``, ``tunables``, ``events`` and, by name, ``cameras`` with
        ``state``, ``label``, ``score``, ``result``, ``points`` and ``labels``.
        """
        now_s = self.now_s()
        news: dict[str, Any] = {"now_s": now_s}
        with self._lock:
            for key, (changed, value) in self._present.items():
                if changed > version:
                    news[key] = value
            if events := _newer(self._events, version):
                news["events"] = events
            cameras = {}
            for name, camera in self.cameras.items():
                if camera.second is not None and camera.second.at_s < int(now_s):
                    self._close_second(camera)
                part = {key: value for key, (changed, value) in camera.present.items() if changed > version}
                if points := _newer(camera.points, version):
                    part["points"] = points
                if labels := _newer(camera.labels, version):
                    part["labels"] = labels
                if part or not version:
                    cameras[name] = part
            if cameras:
                news["cameras"] = cameras
            return self._version, news

    def value(self, key: str) -> Any:
        """The present ``info``, ``health`` or ``tunables``; None before the first."""
        with self._lock:
            return self._present.get(key, (0, None))[1]

    # --- with the lock held ---

    def _camera(self, name: str) -> CameraBoard:
        camera = self.cameras.get(name)
        if camera is None:
            # A new mapping, so that readers may walk the old one without the lock.
            camera = CameraBoard()
            self.cameras = {**self.cameras, name: camera}
        return camera

    def _put(self, key: str, value: Any) -> None:
        self._version += 1
        self._present[key] = self._version, value

    def _set(self, camera: CameraBoard, key: str, value: Any) -> None:
        self._version += 1
        camera.present[key] = self._version, value

    def _close_second(self, camera: CameraBoard) -> None:
        if camera.second is not None:
            self._version += 1
            camera.points.append((self._version, camera.second.point()))
            camera.second = None


def score_now(observation: Observation, decided: str | None) -> float:
    """How much one frame speaks for the decided label; for ``unknown``, its highest score.

    0 where the label is not among the frame's highest scores, which is all a message holds of them.
    """
    if decided is None or decided == UNKNOWN:
        return observation.top[0].score if observation.top else 0.0
    return next((top.score for top in observation.top if top.label == decided), 0.0)


def _newer(entries: deque[tuple[int, Any]], version: int) -> list[Any]:
    """Those after a version, oldest first; found from the end, where they are."""
    found = []
    for changed, value in reversed(entries):
        if changed <= version:
            break
        found.append(value)
    found.reverse()
    return found
