"""The loop that joins them: cameras to frames, frames to scores, scores to labels, labels to MQTT.

    camera threads ─▶ latest frames ─▶ prepare ─▶ infer ─▶ decide, publish, record

Each arrow leads to a thread of its own, so that none waits for another: while the model runs on one frame the next is
prepared and the last one's label published, and the interpreter is never idle while there are frames.
"""

from __future__ import annotations

import logging
import platform
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, Self

from .._version import __version__
from ..cameras import Camera, Frame, LatestFrames
from ..cameras.motion import MotionGate
from ..cameras.reconnect import ReconnectingCamera
from ..cameras.region import view
from ..captures.recorder import Candidate, Recorder
from ..config import CameraSettings
from ..errors import EdgeloopError, ImageError
from ..inference.classifier import Result
from ..inference.decision import Decision, Rules, carried_over, decide
from ..messages import UNKNOWN, VERSION, CameraInfo, CameraState, Info, Observation, Timing, TopScore, timestamp
from ..monitoring.histogram import Histogram
from ..monitoring.score_counts import ScoreCounter
from ..preprocess import Pixels, preprocess
from ..publishers import Publisher
from .loaded_model import LoadedModel

log = logging.getLogger(__name__)

TOP = 3
_POLL_S = 0.2
_GOODBYE_S = 2.0
_MOST_ERRORS = 10
"""Inferences that fail one after the other before the model counts as failing: one that works never fails."""
_SPARE = 0.15
"""Share of an inference by which the next frame is taken earlier than needed, for inferences differ; later would leave
the interpreter idle, earlier would show it an older frame."""

_AFTER_YOU_S = 0.0003
"""What deciding leaves the interpreter to begin with the next frame that waits: Python's lock is for one thread at a
time, and an interpreter that waits for it costs frames."""


@dataclass(frozen=True)
class Source:
    """Where frames come from.

    Attributes:
        open: a new, unopened camera.
        live: one that stops is opened again; a file is through when it ends.
        shown: what messages and logs say of it, without passwords.
        settings: region, motion gate, and when it counts as lost or frozen.
    """

    open: Callable[[], Camera]
    live: bool = False
    shown: str = ""
    settings: CameraSettings = field(default_factory=lambda: CameraSettings(""))


@dataclass
class CameraCount:
    """What became of one camera's frames since the start.

    ``replaced`` ones were outrun by a newer one, ``unchanged`` ones passed over by the motion gate, ``damaged`` ones
    could not be decoded.
    """

    captured: int = 0
    classified: int = 0
    replaced: int = 0
    unchanged: int = 0
    damaged: int = 0
    reopened: int = 0
    state: CameraState = "lost"


@dataclass
class Latencies:
    """Milliseconds of each part since somebody last looked."""

    preprocess: Histogram = field(default_factory=Histogram)
    inference: Histogram = field(default_factory=Histogram)
    capture_to_publish: Histogram = field(default_factory=Histogram)


class Prepared(NamedTuple):
    """A frame on its way to the interpreter. ``levels``: (height, width, 3) uint8, as the model wants it."""

    model: LoadedModel
    camera: str
    frame: Frame
    levels: Pixels
    preprocess_ms: float


class _Inferred(NamedTuple):
    model: LoadedModel
    camera: str
    frame: Frame
    result: Result
    next_waits: bool


class Agent:
    """Classifies what cameras see, from entering its block until leaving it. A context manager.

    Args:
        device: name in messages.
        model: what to run first; `switch` replaces it.
        cameras: by name.
        publisher: where messages go.
        recorder: keeps frames for retraining; none keeps none.
    """

    def __init__(
        self,
        device: str,
        model: LoadedModel,
        cameras: Mapping[str, Source],
        publisher: Publisher,
        *,
        recorder: Recorder | None = None,
    ) -> None:
        self.device = device
        self.model = model
        self.cameras = cameras
        self.publisher = publisher
        self.counts = {name: CameraCount() for name in cameras}
        self.latencies = Latencies()
        self.failures: dict[str, Exception] = {}
        self.failing: Exception | None = None
        """What inference fails of, again and again; None while it works."""
        self.inference_ms = Histogram()
        """Of the present model alone."""
        self.alive_at = time.monotonic()
        """When the loop last did its work, or found that there was none: what a watchdog may trust."""
        self.newest: dict[str, Frame] = {}
        """The last frame of each camera."""
        self.prepared: dict[str, Prepared] = {}
        """The last image of each camera that went to the model."""
        self.seen: dict[tuple[str, str], ScoreCounter] = {}
        """What each model thought of its frames, by the bundle's digest and the camera."""
        self._recorder = recorder
        self._frames = LatestFrames(cameras)
        self._gates = {
            name: MotionGate(source.settings.motion, region=source.settings.region)
            for name, source in cameras.items()
            if source.settings.motion is not None
        }
        self._decisions: dict[str, tuple[LoadedModel, Decision]] = {}
        self._stopping = threading.Event()
        self._room = threading.Semaphore(1)
        self._to_infer: queue.SimpleQueue[Prepared | None] = queue.SimpleQueue()
        self._to_decide: queue.SimpleQueue[_Inferred | None] = queue.SimpleQueue()
        self._expected_s = self._busy_until = 0.0
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self.publisher.info(self._info())
        work: list[tuple[str, Callable[[], None]]] = [
            ("prepare", self._prepare),
            ("infer", self._infer),
            ("decide", self._decide),
        ]
        work += [(f"camera {name}", partial(self._capture, name)) for name in self.cameras]
        self._threads = [threading.Thread(target=target, name=name, daemon=True) for name, target in work]
        for thread in self._threads:
            thread.start()
        return self

    def wait(self, timeout_s: float) -> bool:
        """Wait at most so long for all cameras to end; whether they have. Signal handlers run meanwhile."""
        decide_thread = self._threads[2]
        decide_thread.join(timeout_s)
        return not decide_thread.is_alive()

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        # A camera may hang in its driver; its thread dies with the process.
        deadline = time.monotonic() + _GOODBYE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.warning("the %s thread does not end; leaving it", thread.name)

    def switch(self, model: LoadedModel) -> None:
        """Run another model from the next frame on. Labels go on where they were; the old model is closed."""
        self.model, self.inference_ms, self.failing = model, Histogram(), None
        self.publisher.info(self._info())

    def rule(self, rules: Rules) -> None:
        """Decide labels by other rules from the next frame on."""
        self.model = replace(self.model, rules=rules)

    # --- camera threads ---

    def _capture(self, name: str) -> None:
        source = self.cameras[name]

        def deliver(frame: Frame) -> None:
            self.counts[name].captured += 1
            self.newest[name] = frame
            self._frames.put(name, frame)

        def report(state: CameraState, reason: str) -> None:
            log.log(logging.INFO if state in ("online", "ended") else logging.WARNING, "camera %s: %s", name, reason)
            self.counts[name].state = state
            self.counts[name].reopened = kept.reopened
            self.publisher.camera(name, state)

        kept = ReconnectingCamera(
            source.open,
            live=source.live,
            timeout_s=source.settings.timeout_s,
            frozen_s=source.settings.frozen_s,
            deliver=deliver,
            report=report,
        )
        try:
            kept.run(self._stopping)
        except EdgeloopError as error:
            log.error("camera %s: %s", name, error)  # noqa: TRY400  the message is whole
            self.failures[name] = error
        except Exception as error:
            log.exception("camera %s: stopped by a bug", name)
            self.failures[name] = error
        finally:
            self._frames.close(name)

    # --- prepare thread ---

    def _prepare(self) -> None:
        try:
            while not (self._stopping.is_set() or self._frames.finished):
                if not self._room.acquire(timeout=_POLL_S):
                    continue
                # Not earlier than needed: what is taken now is as old when the interpreter is free.
                time.sleep(max(0.0, self._busy_until - time.monotonic()))
                while not (self._stopping.is_set() or self._frames.finished):
                    taken = self._frames.take(_POLL_S)
                    prepared = None if taken is None else self._prepared(*taken)
                    self.alive_at = time.monotonic()
                    if prepared is not None:
                        self._to_infer.put(prepared)
                        break
        except Exception as error:
            log.exception("prepare: stopped by a bug")
            self.failures["prepare"] = error
        finally:
            self._to_infer.put(None)

    def _prepared(self, camera: str, frame: Frame) -> Prepared | None:
        """The frame as the model wants it; None when it is not worth classifying, or cannot be decoded."""
        count, gate, model = self.counts[camera], self._gates.get(camera), self.model
        count.replaced = self._frames.replaced[camera]
        start = time.perf_counter()
        try:
            if gate is not None and not gate.passes(frame, settle_s=_settle_s(model)):
                count.unchanged += 1
                return None
            image = view(frame, model.classifier.spec, self.cameras[camera].settings.region)
        except ImageError as error:
            if not count.damaged:
                log.warning("camera %s: %s; such frames are passed over", camera, error)
            count.damaged += 1
            return None
        levels = preprocess(image, model.classifier.spec)
        return Prepared(model, camera, frame, levels, 1000 * (time.perf_counter() - start))

    # --- inference thread ---

    def _infer(self) -> None:
        running, errors = self.model.classifier, 0
        try:
            while (item := self._to_infer.get()) is not None:
                self._busy_until = time.monotonic() + self._lead_s(item)
                self._room.release()
                if item.model.classifier is not running:
                    running.close()
                    running, errors, self.failing = item.model.classifier, 0, None
                try:
                    scores, inference_ms = running.infer(item.levels)
                except Exception as error:
                    if not errors:
                        log.exception("inference failed")
                    errors += 1
                    if errors >= _MOST_ERRORS and running is self.model.classifier:
                        self.failing = error
                        self._stopping.wait(_POLL_S)
                    continue
                errors = 0
                self._expected_s = inference_ms / 1000
                self.prepared[item.camera] = item
                result = Result(running.labels, scores, item.preprocess_ms, inference_ms)
                next_waits = not self._to_infer.empty()
                self._to_decide.put(_Inferred(item.model, item.camera, item.frame, result, next_waits))
        except Exception as error:
            log.exception("infer: stopped by a bug")
            self.failures["inference"] = error
        finally:
            self._stopping.set()
            self._to_decide.put(None)

    def _lead_s(self, item: Prepared) -> float:
        """How long the next frame may yet be left with its camera: inference less preparation, less some."""
        return (1 - _SPARE) * self._expected_s - item.preprocess_ms / 1000

    # --- deciding thread ---

    def _decide(self) -> None:
        try:
            while (item := self._to_decide.get()) is not None:
                if item.next_waits:
                    time.sleep(_AFTER_YOU_S)
                self._observe(item.model, item.camera, item.frame, item.result)
                self.alive_at = time.monotonic()
        except Exception as error:
            log.exception("decide: stopped by a bug")
            self.failures["decide"] = error
        finally:
            self._stopping.set()

    def _observe(self, model: LoadedModel, camera: str, frame: Frame, result: Result) -> None:
        before, switched = self._before(camera, model)
        decision = decide(before, result.scores, frame.captured_s, model.rules)
        self._decisions[camera] = model, decision
        self.counts[camera].classified += 1
        label = UNKNOWN if decision.label is None else result.labels[decision.label]
        changed = before is None or before.label != decision.label
        if changed or switched:
            observation = self._observation(model, camera, frame, result, label, decision.score)
            self.publisher.label(observation)
            if changed:
                self.publisher.event(observation)
                log.info("camera %s: %s (%.2f)", camera, label, decision.score)
        if self.publisher.wants_results:
            self.publisher.result(self._observation(model, camera, frame, result, *result.best))
        seen = model.bundle.digest, camera
        if seen not in self.seen:
            self.seen[seen] = ScoreCounter()
        self.seen[seen].add(*result.best)
        self.latencies.preprocess.add(result.preprocess_ms)
        self.latencies.inference.add(result.inference_ms)
        if model.classifier is self.model.classifier:
            self.inference_ms.add(result.inference_ms)
        self.latencies.capture_to_publish.add(1000 * (time.monotonic() - frame.captured_s))
        if self._recorder is not None:
            self._recorder.offer(
                Candidate(
                    camera=camera,
                    frame=frame,
                    scores=result.scores,
                    labels=result.labels,
                    label=label,
                    changed=changed,
                    model=model.id,
                    enter=model.rules.enter,
                )
            )

    def _before(self, camera: str, model: LoadedModel) -> tuple[Decision | None, bool]:
        """What was decided of this camera before, and whether another model did."""
        if camera not in self._decisions:
            return None, False
        by, before = self._decisions[camera]
        if by.bundle.digest == model.bundle.digest:
            return before, False
        return carried_over(before, by.bundle.labels, model.bundle.labels), True

    def _observation(
        self, model: LoadedModel, camera: str, frame: Frame, result: Result, label: str, score: float
    ) -> Observation:
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
            model=model.id,
            timing_ms=Timing(round(result.preprocess_ms, 3), round(result.inference_ms, 3), round(age_ms, 3)),
        )

    def _info(self) -> Info:
        model = self.model
        return Info(
            v=VERSION,
            device=self.device,
            model=model.id,
            labels=model.bundle.labels,
            cameras={name: CameraInfo(source.shown) for name, source in self.cameras.items()},
            threads=model.classifier.threads,
            delegate=model.classifier.delegate,
            runtime=model.classifier.runtime,
            edgeloop=__version__,
            python=platform.python_version(),
            recorder=self._recorder is not None,
        )


def _settle_s(model: LoadedModel) -> float:
    """Seconds after which a change has been decided: five time constants leave 0.7 % of the old scores."""
    rules = model.rules
    return 5 * rules.smoothing_s + max([rules.min_time_s, *(own.min_time_s for own in rules.classes.values())])
