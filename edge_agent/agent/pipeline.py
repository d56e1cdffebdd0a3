"""The pipeline of the agent: camera frames to scores, scores to labels, labels to MQTT.

    camera threads ─▶ latest frames ─▶ prepare ─▶ infer ─▶ decide, publish, record

Each stage has its own thread. While the model runs on one frame, the next frame is prepared and the label of the
previous one is published, so the interpreter is never idle while there are frames.
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
from ..clock import is_clock_set
from ..config import CameraSettings
from ..errors import EdgeloopError, ImageError
from ..inference.classifier import Result
from ..inference.decision import Decision, Rules, carried_over, decide
from ..messages import UNKNOWN, VERSION, CameraInfo, CameraState, Info, Observation, Timing, TopScore, timestamp
from ..monitoring.histogram import Histogram
from ..monitoring.score_counts import ScoreCounter
from ..preprocessing import Pixels, preprocess
from ..publishers import Publisher
from .loaded_model import LoadedModel

log = logging.getLogger(__name__)

TOP = 3
_POLL_S = 0.2
_STOP_TIMEOUT_S = 2.0
_MAX_ERRORS = 10
"""Failed inferences in a row after which the model counts as failing. A working model never fails."""
_LEAD_MARGIN = 0.15
"""Share of the inference time by which the next frame is taken early, because inference times vary. With a smaller
margin the interpreter would sometimes be idle; with a larger one it would get older frames."""

_DECIDE_PAUSE_S = 0.0003
"""Pause before the decide step, so that the inference thread can take the GIL first. Without it, throughput drops."""


@dataclass(frozen=True)
class Source:
    """A source of frames.

    Attributes:
        open: Function that returns a new, unopened camera.
        live: Whether the source is reopened when it stops. A file is not: it has ended.
        shown: Description for messages and logs, without passwords.
        settings: Settings of the camera: region, motion gate and timeouts.
    """

    open: Callable[[], Camera]
    live: bool = False
    shown: str = ""
    settings: CameraSettings = field(default_factory=lambda: CameraSettings(""))


@dataclass
class CameraCount:
    """Counts of one camera's frames since the start, and the state of the camera.

    ``replaced``: frames that a newer frame replaced before they were classified. ``unchanged``: frames that the motion
    gate skipped. ``damaged``: frames that could not be decoded.
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
    """Durations of the pipeline stages, in milliseconds."""

    preprocess: Histogram = field(default_factory=Histogram)
    inference: Histogram = field(default_factory=Histogram)
    capture_to_publish: Histogram = field(default_factory=Histogram)


class Prepared(NamedTuple):
    """A preprocessed frame. ``levels``: (height, width, 3) uint8, in the model's input size and channel order."""

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
    """Classifies camera frames while its context is open. A context manager.

    Args:
        device: Name of this device in messages.
        model: Model to run first; `switch` replaces it.
        cameras: Sources of frames, by camera name.
        publisher: Publisher of all messages.
        recorder: Recorder that keeps frames for retraining; None keeps no frames.
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
        """The error of the last inference, if inference keeps failing; else None."""
        self.inference_ms = Histogram()
        """Inference times of the current model."""
        self.alive_at = time.monotonic()
        """Monotonic time at which the pipeline last made progress, or had no frame to work on; for the watchdog."""
        self.newest: dict[str, Frame] = {}
        """The newest frame of each camera."""
        self.prepared: dict[str, Prepared] = {}
        """The last frame of each camera that the model classified."""
        self.score_counters: dict[tuple[str, str], ScoreCounter] = {}
        """Score counts by digest of the bundle and camera."""
        self._recorder = recorder
        self._frames = LatestFrames(cameras)
        self._gates = {
            name: MotionGate(source.settings.motion, region=source.settings.region)
            for name, source in cameras.items()
            if source.settings.motion is not None
        }
        self._decisions: dict[str, tuple[LoadedModel, Decision]] = {}
        self._last_labels: dict[str, str] = {}
        self._stopping = threading.Event()
        self._room = threading.Semaphore(1)
        self._to_infer: queue.SimpleQueue[Prepared | None] = queue.SimpleQueue()
        self._to_decide: queue.SimpleQueue[_Inferred | None] = queue.SimpleQueue()
        self._expected_inference_s = self._busy_until = 0.0
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
        """Wait up to ``timeout_s`` for all cameras to finish. Returns True if they did. Signal handlers still run."""
        decide_thread = self._threads[2]
        decide_thread.join(timeout_s)
        return not decide_thread.is_alive()

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        # A thread may hang in a camera driver; as a daemon thread it ends with the process.
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.warning("the %s thread does not stop; abandoning it", thread.name)

    def switch(self, model: LoadedModel) -> None:
        """Switch to another model from the next frame on. Decided labels carry over; the old model is closed."""
        self.model, self.inference_ms, self.failing = model, Histogram(), None
        self.publisher.info(self._info())

    def continue_from(self, labels: Mapping[str, str]) -> None:
        """Continue with the labels that an earlier process decided, by camera. Call it before entering the context.

        So a restart is no change of label: there is an event only if a camera's label differs from the one before.
        """
        self._last_labels = dict(labels)

    def set_rules(self, rules: Rules) -> None:
        """Use other decision rules from the next frame on."""
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
            self.counts[name].reopened = camera.reopened
            self.publisher.camera(name, state)

        camera = ReconnectingCamera(
            source.open,
            live=source.live,
            timeout_s=source.settings.timeout_s,
            frozen_s=source.settings.frozen_s,
            deliver=deliver,
            report=report,
        )
        try:
            camera.run(self._stopping)
        except EdgeloopError as error:
            log.error("camera %s: %s", name, error)  # noqa: TRY400  the message says it all
            self.failures[name] = error
        except Exception as error:
            log.exception("camera %s: stopped by an unexpected error", name)
            self.failures[name] = error
        finally:
            self._frames.close(name)

    # --- prepare thread ---

    def _prepare(self) -> None:
        try:
            while not (self._stopping.is_set() or self._frames.finished):
                if not self._room.acquire(timeout=_POLL_S):
                    continue
                # As late as possible: a frame taken now would only get older until the interpreter is free.
                time.sleep(max(0.0, self._busy_until - time.monotonic()))
                while not (self._stopping.is_set() or self._frames.finished):
                    taken = self._frames.take(_POLL_S)
                    prepared = None if taken is None else self._prepared(*taken)
                    self.alive_at = time.monotonic()
                    if prepared is not None:
                        self._to_infer.put(prepared)
                        break
        except Exception as error:
            log.exception("prepare: stopped by an unexpected error")
            self.failures["prepare"] = error
        finally:
            self._to_infer.put(None)

    def _prepared(self, camera: str, frame: Frame) -> Prepared | None:
        """Preprocess a frame. Returns None if the motion gate skips it or it cannot be decoded."""
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
                log.warning("camera %s: %s; skipping such frames", camera, error)
            count.damaged += 1
            return None
        levels = preprocess(image, model.classifier.spec)
        return Prepared(model, camera, frame, levels, 1000 * (time.perf_counter() - start))

    # --- inference thread ---

    def _infer(self) -> None:
        running, errors = self.model.classifier, 0
        try:
            while (item := self._to_infer.get()) is not None:
                self._busy_until = time.monotonic() + self._delay_s(item)
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
                    if errors >= _MAX_ERRORS and running is self.model.classifier:
                        self.failing = error
                        self._stopping.wait(_POLL_S)
                    continue
                errors = 0
                self._expected_inference_s = inference_ms / 1000
                self.prepared[item.camera] = item
                result = Result(running.labels, scores, item.preprocess_ms, inference_ms)
                next_waits = not self._to_infer.empty()
                self._to_decide.put(_Inferred(item.model, item.camera, item.frame, result, next_waits))
        except Exception as error:
            log.exception("infer: stopped by an unexpected error")
            self.failures["inference"] = error
        finally:
            self._stopping.set()
            self._to_decide.put(None)

    def _delay_s(self, item: Prepared) -> float:
        """Seconds to wait before taking the next frame: inference time minus preprocessing time, with a margin."""
        return (1 - _LEAD_MARGIN) * self._expected_inference_s - item.preprocess_ms / 1000

    # --- decide thread ---

    def _decide(self) -> None:
        try:
            while (item := self._to_decide.get()) is not None:
                if item.next_waits:
                    time.sleep(_DECIDE_PAUSE_S)
                self._observe(item.model, item.camera, item.frame, item.result)
                self.alive_at = time.monotonic()
        except Exception as error:
            log.exception("decide: stopped by an unexpected error")
            self.failures["decide"] = error
        finally:
            self._stopping.set()

    def _observe(self, model: LoadedModel, camera: str, frame: Frame, result: Result) -> None:
        before, switched = self._previous_decision(camera, model, frame, result)
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
        counter = model.bundle.digest, camera
        if counter not in self.score_counters:
            self.score_counters[counter] = ScoreCounter()
        self.score_counters[counter].add(*result.best)
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

    def _previous_decision(
        self, camera: str, model: LoadedModel, frame: Frame, result: Result
    ) -> tuple[Decision | None, bool]:
        """The previous decision for this camera, and whether another model or an earlier process made it."""
        if camera not in self._decisions:
            label = self._last_labels.get(camera)
            if label is None or label not in (UNKNOWN, *result.labels):
                return None, False
            index = None if label == UNKNOWN else result.labels.index(label)
            return Decision(index, result.scores, frame.captured_s, index, frame.captured_s), True
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
            clock=None if is_clock_set() else "unset",
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
    """Seconds until a change of the image is decided: after five time constants, 0.7 % of the old scores remain."""
    rules = model.rules
    return 5 * rules.smoothing_s + max([rules.min_time_s, *(own.min_time_s for own in rules.classes.values())])
