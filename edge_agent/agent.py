"""The loop that joins them: cameras to frames, frames to scores, scores to labels, labels to MQTT.

    camera threads ─▶ latest frames ─▶ inference thread: classify ─▶ decide ─▶ publish

Capture, inference and network each have threads of their own and never wait for one another.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from . import __version__
from .bundle import Bundle
from .cameras import Camera, Frame, LatestFrames
from .classifier import Classifier, Result
from .config import DecisionSettings
from .decision import UNKNOWN, Decision, Rules, decide
from .errors import EdgeloopError
from .manifest import Thresholds
from .mqtt import Publisher
from .mqtt.messages import VERSION, CameraInfo, Info, ModelId, Observation, Timing, TopScore, timestamp

log = logging.getLogger(__name__)

TOP = 3
_POLL_S = 0.2
_GOODBYE_S = 2.0


@dataclass
class CameraCount:
    """What became of one camera's frames; ``replaced`` ones were outrun by a newer one."""

    captured: int = 0
    classified: int = 0
    replaced: int = 0


@dataclass
class Agent:
    """Classifies what cameras see, from entering its block until leaving it. A context manager.

    Args:
        device: name in messages.
        bundle, classifier: the model.
        cameras: unopened cameras by name.
        publisher: where messages go.
        rules: when a label is decided.
        results: publish every inference, too.
        sources: what ``info`` says of each camera.
    """

    device: str
    bundle: Bundle
    classifier: Classifier
    cameras: Mapping[str, Camera]
    publisher: Publisher
    rules: Rules
    results: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        manifest = self.bundle.manifest
        self.counts = {name: CameraCount() for name in self.cameras}
        self.failures: dict[str, Exception] = {}
        self._model = ModelId(manifest.name, manifest.version, self.bundle.digest)
        self._frames = LatestFrames(self.cameras)
        self._stopping = threading.Event()
        self._decisions: dict[str, Decision] = {}
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self.publisher.info(self._info())
        work = [("inference", self._infer)] + [
            (f"camera {name}", lambda name=name: self._capture(name)) for name in self.cameras
        ]
        self._threads = [threading.Thread(target=target, name=name, daemon=True) for name, target in work]
        for thread in self._threads:
            thread.start()
        return self

    def wait(self, timeout_s: float) -> bool:
        """Wait at most so long for all cameras to end; whether they have. Signal handlers run meanwhile."""
        self._threads[0].join(timeout_s)
        return not self._threads[0].is_alive()

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        # A camera may hang in its driver; its thread dies with the process.
        deadline = time.monotonic() + _GOODBYE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.warning("the %s thread does not end; leaving it", thread.name)
        for name, replaced in self._frames.replaced.items():
            self.counts[name].replaced = replaced

    def _capture(self, name: str) -> None:
        try:
            with self.cameras[name] as camera:
                for frame in camera:
                    if self._stopping.is_set():
                        return
                    self.counts[name].captured += 1
                    self._frames.put(name, frame)
            log.info("camera %s: the video has ended", name)
        except EdgeloopError as error:
            log.error("camera %s: %s", name, error)  # noqa: TRY400  the message is whole
            self.failures[name] = error
        except Exception as error:
            log.exception("camera %s: stopped by a bug", name)
            self.failures[name] = error
        finally:
            self._frames.close(name)

    def _infer(self) -> None:
        try:
            while not (self._stopping.is_set() or self._frames.finished):
                taken = self._frames.take(_POLL_S)
                if taken is not None:
                    self._observe(*taken)
        except Exception as error:
            log.exception("inference: stopped by a bug")
            self.failures["inference"] = error

    def _observe(self, camera: str, frame: Frame) -> None:
        result = self.classifier.classify(frame.image)
        before = self._decisions.get(camera)
        decision = decide(before, result.scores, frame.captured_s, self.rules)
        self._decisions[camera] = decision
        self.counts[camera].classified += 1
        label = UNKNOWN if decision.label is None else result.labels[decision.label]
        if before is None or before.label != decision.label:
            observation = self._observation(camera, frame, result, label, decision.score)
            self.publisher.label(observation)
            self.publisher.event(observation)
            log.info("camera %s: %s (%.2f)", camera, label, decision.score)
        if self.results:
            self.publisher.result(self._observation(camera, frame, result, *result.best))

    def _observation(self, camera: str, frame: Frame, result: Result, label: str, score: float) -> Observation:
        age_ms = 1000 * (time.monotonic() - frame.captured_s)
        return Observation(
            v=VERSION,
            device=self.device,
            camera=camera,
            seq=frame.seq,
            captured_at=timestamp(frame.captured_ns),
            label=label,
            score=round(score, 4),
            top=tuple(TopScore(name, round(value, 4)) for name, value in result.top(TOP)),
            model=self._model,
            timing_ms=Timing(round(result.preprocess_ms, 3), round(result.inference_ms, 3), round(age_ms, 3)),
        )

    def _info(self) -> Info:
        return Info(
            v=VERSION,
            device=self.device,
            model=self._model,
            labels=self.bundle.labels,
            cameras={name: CameraInfo(self.sources.get(name, "")) for name in self.cameras},
            threads=self.classifier.threads,
            runtime=self.classifier.runtime,
            edgeloop=__version__,
            python=platform.python_version(),
            recorder=False,
        )


def rules_of(thresholds: Thresholds, settings: DecisionSettings) -> Rules:
    """The device's settings, with the bundle's thresholds where they leave one out."""
    enter = thresholds.enter if settings.enter is None else settings.enter
    leave = thresholds.leave if settings.leave is None else settings.leave
    return Rules(enter, min(leave, enter), settings.min_time_s, settings.smoothing_s)
