"""State of the dashboard: current values and the last minutes. The agent's threads write it, the web server reads it.

Each value has a version that increases with every change, and a viewer asks for everything newer than the last version
it received. So nothing is queued per viewer, and a slow viewer skips to the newest values.
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
"""Seconds of scores and latencies to keep: the five minutes that the dashboard shows."""
LABELS = 200
EVENTS = 50
STAGES = ("preprocess", "inference", "capture_to_publish")
BOUNDS_MS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
"""Upper bounds of the latency histograms, from preprocessing on a fast desktop to a stalled network."""


class Point(msgspec.Struct, frozen=True, array_like=True):
    """Results of one camera in one second.

    ``at_s``: start of the second. ``results``: number of results. ``score``, ``preprocess_ms``, ``inference_ms``,
    ``age_ms``: means over these results, where the age is the time from capture to publishing. ``age_most_ms``: the
    greatest age.
    """

    at_s: float
    results: int
    score: float
    preprocess_ms: float
    inference_ms: float
    age_ms: float
    age_most_ms: float


class LabelChange(msgspec.Struct, frozen=True, array_like=True):
    """Label of a camera from ``at_s`` on; ``label`` is None while the camera delivers no frames."""

    at_s: float
    label: str | None
    score: float


@dataclass
class BucketCounts:
    """Histogram with the bounds `BOUNDS_MS`; the last bucket has no upper bound."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_MS) + 1))
    sum_ms: float = 0.0

    def add(self, ms: float) -> None:
        """Count one value."""
        self.counts[bisect_left(BOUNDS_MS, ms)] += 1
        self.sum_ms += ms


@dataclass
class _Second:
    """Sums of the current second."""

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
class CameraHistory:
    """Current values and history of one camera.

    The entries of ``present`` (the current values), ``points`` and ``labels`` are pairs (version, value).
    """

    present: dict[str, tuple[int, Any]] = field(default_factory=dict)
    points: deque[tuple[int, Point]] = field(default_factory=lambda: deque(maxlen=POINTS))
    labels: deque[tuple[int, LabelChange]] = field(default_factory=lambda: deque(maxlen=LABELS))
    results: int = 0
    changes: int = 0
    latencies: dict[str, BucketCounts] = field(default_factory=lambda: {stage: BucketCounts() for stage in STAGES})
    second: _Second | None = None

    def value(self, key: str) -> Any:
        """Return the current ``state``, ``label``, ``score`` or ``result``; None if there is none yet."""
        return self.present.get(key, (0, None))[1]


class DashboardState:
    """Newest message of every kind and a limited history. Every method takes microseconds and holds the lock briefly.

    Args:
        device: name of this device.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.cameras: dict[str, CameraHistory] = {}
        """Cameras of this device by name; cameras are never removed."""
        self._lock = threading.Lock()
        self._version = 0
        self._start_s = time.monotonic()
        self._present: dict[str, tuple[int, Any]] = {}
        self._events: deque[tuple[int, Observation]] = deque(maxlen=EVENTS)

    def info(self, info: Info) -> None:
        """Store the description of the agent, and add its cameras."""
        with self._lock:
            for name in info.cameras:
                self._camera(name)
            self._put("info", info)

    def health(self, health: Health) -> None:
        """Store the health of the device."""
        with self._lock:
            self._put("health", health)

    def tunables(self, tunables: Tunables) -> None:
        """Keep the current values of the settings that can be changed at run time."""
        with self._lock:
            self._put("tunables", tunables)

    def camera(self, name: str, state: CameraState) -> None:
        """Store the state of a camera; while it is not online, it has no label."""
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
        """Store the decided label of a camera."""
        now_s = self.now_s()
        with self._lock:
            camera = self._camera(observation.camera)
            self._set(camera, "label", observation)
            camera.labels.append((self._version, LabelChange(now_s, observation.label, observation.score)))

    def event(self, observation: Observation) -> None:
        """Store a change of label."""
        with self._lock:
            self._camera(observation.camera).changes += 1
            self._version += 1
            self._events.append((self._version, observation))

    def result(self, observation: Observation) -> None:
        """Store an inference result as the newest one, and add it to the sums of the current second."""
        second, timing = int(self.now_s()), observation.timing_ms
        with self._lock:
            camera = self._camera(observation.camera)
            decided: Observation | None = camera.value("label")
            score = score_now(observation, None if decided is None else decided.label)
            self._set(camera, "result", observation)
            camera.present["score"] = self._version, score
            camera.results += 1
            latencies = camera.latencies
            latencies["preprocess"].add(timing.preprocess)
            latencies["inference"].add(timing.inference)
            latencies["capture_to_publish"].add(timing.capture_to_publish)
            if camera.second is None or camera.second.at_s != second:
                self._close_second(camera)
                camera.second = _Second(second)
            camera.second.add(score, timing)

    def now_s(self) -> float:
        """Return the seconds since this object was created. The times of points and labels use this monotonic clock."""
        return round(time.monotonic() - self._start_s, 3)

    def since(self, version: int) -> tuple[int, dict[str, Any]]:
        """Return the newest version and the changes after the given one (0 returns everything).

        Keys without changes are left out: ``info``, ``health``, ``tunables``, ``events`` and, by name, ``cameras`` with
        ``state``, ``label``, ``score``, ``result``, ``points`` and ``labels``.
        """
        now_s = self.now_s()
        changes: dict[str, Any] = {"now_s": now_s}
        with self._lock:
            for key, (changed, value) in self._present.items():
                if changed > version:
                    changes[key] = value
            if events := _newer(self._events, version):
                changes["events"] = events
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
                changes["cameras"] = cameras
            return self._version, changes

    def value(self, key: str) -> Any:
        """Return the current ``info``, ``health`` or ``tunables``; None if there is none yet."""
        with self._lock:
            return self._present.get(key, (0, None))[1]

    # --- with the lock held ---

    def _camera(self, name: str) -> CameraHistory:
        camera = self.cameras.get(name)
        if camera is None:
            # A new mapping, so that readers can iterate over the old one without the lock.
            camera = CameraHistory()
            self.cameras = {**self.cameras, name: camera}
        return camera

    def _put(self, key: str, value: Any) -> None:
        self._version += 1
        self._present[key] = self._version, value

    def _set(self, camera: CameraHistory, key: str, value: Any) -> None:
        self._version += 1
        camera.present[key] = self._version, value

    def _close_second(self, camera: CameraHistory) -> None:
        if camera.second is not None:
            self._version += 1
            camera.points.append((self._version, camera.second.point()))
            camera.second = None


def score_now(observation: Observation, decided: str | None) -> float:
    """Return the score of the decided label in one frame; for ``unknown``, the frame's highest score.

    Return 0 if the label is not among the top scores, because a message contains only the top scores.
    """
    if decided is None or decided == UNKNOWN:
        return observation.top[0].score if observation.top else 0.0
    return next((top.score for top in observation.top if top.label == decided), 0.0)


def _newer(entries: deque[tuple[int, Any]], version: int) -> list[Any]:
    """Return the entries after a version, oldest first; searches from the end, where the newest entries are."""
    found = []
    for changed, value in reversed(entries):
        if changed <= version:
            break
        found.append(value)
    found.reverse()
    return found
