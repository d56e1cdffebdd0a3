"""Child process for one measurement: only a new process has a cold start, and a crash affects no other measurement.

`python -P -m edge_agent.bench.worker JSON` runs one `Task` and prints lines of JSON: progress, the results of
single seconds under sustained load, and at the end an `Outcome`.
"""

from __future__ import annotations

import time

_BEGUN_NS = time.monotonic_ns()

import sys  # noqa: E402  the time of the imports is measured
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any, Literal  # noqa: E402

import msgspec  # noqa: E402

from ..errors import EdgeloopError, one_line  # noqa: E402

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..inference.classifier import Classifier
    from ..preprocessing import Pixels

MAX_WARMUP_S = 20.0
_MIN_RUNS = 100
_FRAME = (720, 1280)
_STAGE_RUNS = 300


Kind = Literal["round", "sustain", "agent", "profile"]


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement. ``spawned_ns``: monotonic time at which the parent started the process, in nanoseconds."""

    do: Kind
    bundle: str
    threads: int
    delegate: str | None
    seconds: float
    stages: bool = False
    source: str = ""
    spawned_ns: int = 0


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions during a measurement; see `edge_agent.bench.steady_state.disturbances`."""

    others: float
    stolen: float
    throttled: tuple[str, ...]
    hotter_c: float


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a round."""

    runtime: str
    times_ms: list[float]
    warmup_runs: int
    start: dict[str, float]
    stages: dict[str, list[float]] | None
    memory_mb: float
    energy_mj: float | None
    conditions: Conditions


class Outcome(msgspec.Struct, frozen=True):
    """Last line of the output: a result or an error."""

    result: Any = None
    error: str | None = None


def main(argument: str) -> int:
    """Run one task and print its outcome."""
    try:
        task = msgspec.json.decode(argument, type=Task)
        result = {"round": _round, "sustain": _sustain, "agent": _agent, "profile": _profile}[task.do](task)
        _print_line(Outcome(result))
    except EdgeloopError as error:
        _print_line(Outcome(error=one_line(error)))
        return 1
    return 0


def _print_line(message: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.flush()


def _progress(share: float) -> None:
    _print_line({"done": round(share, 3)})


# --- steady state ---


def _round(task: Task) -> Round:
    started = _ColdStart(task)
    with started.classifier as classifier:
        levels = _model_inputs(started.bundle)
        first = classifier.infer(next(levels))[1]
        start = started.times_ms(first)
        warmup = _warm_up(classifier, levels)
        times, conditions, energy = _measure(classifier, levels, task.seconds)
        stages = _stages(started.bundle, classifier) if task.stages else None
        from ..monitoring.system import peak_memory_mb

        return Round(
            runtime=classifier.runtime,
            times_ms=[round(value, 4) for value in times],
            warmup_runs=warmup + 1,
            start=start,
            stages=stages,
            memory_mb=round(peak_memory_mb("self"), 1),
            energy_mj=energy,
            conditions=conditions,
        )


class _ColdStart:
    """Loads a model in a new process and measures the time of each part."""

    def __init__(self, task: Task) -> None:
        begun = _BEGUN_NS
        from ..bundle import open_bundle
        from ..inference.classifier import Classifier

        imported = time.monotonic_ns()
        self.bundle = open_bundle(task.bundle)
        opened = time.monotonic_ns()
        self.classifier = Classifier.from_bundle(self.bundle, threads=task.threads, delegate=task.delegate)
        loaded = time.monotonic_ns()
        marks = (task.spawned_ns or begun, begun, imported, opened, loaded)
        names = ("process_ms", "imports_ms", "bundle_ms", "interpreter_ms")
        self._parts = {
            name: (later - earlier) / 1e6 for name, earlier, later in zip(names, marks, marks[1:], strict=False)
        }

    def times_ms(self, first_inference_ms: float) -> dict[str, float]:
        """Return the times of all parts of the cold start, by the name of the part, and their sum, in milliseconds."""
        parts = {**self._parts, "first_inference_ms": first_inference_ms}
        return {name: round(value, 3) for name, value in {**parts, "total_ms": sum(parts.values())}.items()}


def _model_inputs(bundle: Bundle) -> Iterator[Pixels]:
    """Yield model inputs in an endless cycle: the bundle's canary images, or a grey image if it has none."""
    import itertools

    import numpy as np

    from ..images import decode_image
    from ..preprocessing import preprocess

    spec = bundle.manifest.preprocess
    images = [preprocess(decode_image(bundle.read(image.file), image.file), spec) for image in bundle.canary()]
    return itertools.cycle(images or [np.full(spec.shape, 127, np.uint8)])


def _warm_up(classifier: Classifier, levels: Iterator[Pixels]) -> int:
    """Run the model until the times are steady, and return the number of runs that this took."""
    from .steady_state import warm_from

    times: list[float] = []
    deadline, count = time.monotonic() + MAX_WARMUP_S, 50
    while time.monotonic() < deadline:
        while len(times) < count and time.monotonic() < deadline:
            times.append(classifier.infer(next(levels))[1])
        warm = warm_from(times)
        if warm is not None:
            return warm
        count *= 2
    return len(times)


def _measure(
    classifier: Classifier, levels: Iterator[Pixels], seconds: float
) -> tuple[list[float], Conditions, float | None]:
    from .energy import EnergyMeter
    from .machine import load, temperature_c, throttled

    times: list[float] = []
    before, heat = load(), temperature_c()
    with EnergyMeter() as energy:
        start, reported = time.monotonic(), 0.0
        while (elapsed := time.monotonic() - start) < seconds or len(times) < _MIN_RUNS:
            times.append(classifier.infer(next(levels))[1])
            if elapsed - reported > 0.5:
                reported = elapsed
                _progress(min(1.0, elapsed / seconds))
    now, warmer = load(), temperature_c()
    conditions = Conditions(
        others=now.others_since(before),
        stolen=now.stolen_since(before),
        throttled=tuple(flag for flag in throttled() or () if not flag.endswith("_occurred")),
        hotter_c=0.0 if heat is None or warmer is None else warmer - heat,
    )
    return times, conditions, None if energy.joules is None else round(1e3 * energy.joules / len(times), 3)


def _stages(bundle: Bundle, classifier: Classifier) -> dict[str, list[float]]:
    """Measure each pipeline stage as in the agent, from a camera's JPEG of 1280x720 to the encoded message."""
    import itertools

    import cv2

    from ..cameras.jpeg import JpegFrame
    from ..cameras.region import view
    from ..images import decode_image
    from ..inference.decision import Decision, Rules, decide
    from ..messages import VERSION, ModelId, Observation, Timing, TopScore, timestamp
    from ..preprocessing import preprocess

    named = [(image.file, bundle.read(image.file)) for image in bundle.canary()[:8]]
    frames = [cv2.resize(decode_image(data, name), _FRAME[::-1]) for name, data in named]
    jpegs = [cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes() for frame in frames]
    if not jpegs:
        return {}
    manifest = bundle.manifest
    model = ModelId(manifest.name, manifest.version, bundle.digest)
    rules = Rules(manifest.thresholds.enter, manifest.thresholds.leave, 0.3, 0.5)
    names = ("decode", "preprocess", "invoke", "decide", "publish")
    times: dict[str, list[float]] = {name: [] for name in names}
    decision: Decision | None = None
    for seq, data in enumerate(itertools.islice(itertools.cycle(jpegs), _STAGE_RUNS + len(jpegs))):
        marks = [time.perf_counter_ns()]
        image = view(JpegFrame(data=data, seq=seq), classifier.spec)
        marks.append(time.perf_counter_ns())
        levels = preprocess(image, classifier.spec)
        marks.append(time.perf_counter_ns())
        scores, took_ms = classifier.infer(levels)
        inferred = time.perf_counter_ns()
        decision = decide(decision, scores, seq / 30, rules)
        decided = time.perf_counter_ns()
        order = scores.argsort()[::-1][:3]
        top = tuple(TopScore(classifier.labels[index], round(float(scores[index]), 4)) for index in order)
        at = timestamp(time.time_ns())
        msgspec.json.encode(
            Observation(
                VERSION, "bench", "bench", seq, at, top[0].label, top[0].score, top, model, Timing(1, took_ms, 1)
            )
        )
        published = time.perf_counter_ns()
        if seq < len(jpegs):
            continue  # warm-up: process each image once without measuring
        parts = (marks[1] - marks[0], marks[2] - marks[1], took_ms * 1e6, decided - inferred, published - decided)
        for name, part in zip(names, parts, strict=True):
            times[name].append(part / 1e6)
    return times


# --- sustained load ---


def _sustain(task: Task) -> list[Any]:
    import numpy as np

    from .machine import clock_mhz, temperature_c, throttled
    from .report import Second

    started = _ColdStart(task)
    seconds: list[Second] = []
    with started.classifier as classifier:
        levels = _model_inputs(started.bundle)
        classifier.infer(next(levels))
        start = time.monotonic()
        while (at := time.monotonic() - start) < task.seconds:
            times: list[float] = []
            while time.monotonic() - start < at + 1.0:
                times.append(classifier.infer(next(levels))[1])
            p50, p99 = (round(float(value), 4) for value in np.percentile(times, (50, 99)))
            flags = tuple(flag for flag in throttled() or () if not flag.endswith("_occurred"))
            seconds.append(Second(round(at, 2), len(times), p50, p99, temperature_c(), clock_mhz(), flags))
            # Printed every second, so that the results are kept if the machine goes down.
            _print_line({"second": seconds[-1]})
            _progress(min(1.0, (at + 1) / task.seconds))
    return list(seconds)


# --- operation by operation ---


def _profile(task: Task) -> list[Any]:
    import numpy as np

    from ..bundle import open_bundle
    from ..bundle.archive import MODEL
    from ..inference.interpreter import Interpreter
    from .op_profile import RUNS, cut_after_each, shares

    bundle = open_bundle(task.bundle)
    image = next(_model_inputs(bundle))
    kinds, until_ms = [], []
    cuts = list(cut_after_each(bundle.read(MODEL)))
    for number, (kind, shape, content) in enumerate(cuts, 1):
        times = []
        with Interpreter(content, threads=task.threads) as model:
            pixels = model.input()
            pixels[0] = image
            del pixels
            for _ in range(2 * RUNS):
                start = time.perf_counter_ns()
                model.invoke()
                times.append((time.perf_counter_ns() - start) / 1e6)
        kinds.append((kind, shape))
        # The lower quartile excludes interruptions by the system, which no operation causes.
        until_ms.append(float(np.percentile(times[RUNS:], 25)))
        _progress(number / len(cuts))
    return list(shares(kinds, until_ms))


# --- the agent on a camera ---


def _agent(task: Task) -> dict[str, Any]:
    from ..agent.loaded_model import LoadedModel
    from ..agent.pipeline import Agent, Source
    from ..cameras.sources import is_live, open_camera
    from ..config import CameraSettings
    from ..inference.decision import Rules
    from ..publishers import RecordingPublisher

    started = _ColdStart(task)
    source: int | str = int(task.source) if task.source.isdecimal() else task.source
    settings = CameraSettings(source, loop=not task.source.isdecimal() and Path(task.source).exists())
    thresholds = started.bundle.manifest.thresholds
    model = LoadedModel(started.bundle, started.classifier, Rules(thresholds.enter, thresholds.leave, 0.3, 0.5))
    camera = Source(lambda: open_camera(settings), live=is_live(settings), settings=settings)
    with Agent("bench", model, {"camera": camera}, RecordingPublisher()) as agent:
        deadline = time.monotonic() + 15
        while agent.counts["camera"].classified < 5 and time.monotonic() < deadline and not agent.failures:
            time.sleep(0.05)
        if agent.counts["camera"].classified == 0:
            failure = agent.failures.get("camera")
            raise EdgeloopError(
                f"{task.source}: {failure or 'no frame within 15 s; list the cameras with: edgeloop cameras'}"
            )
        agent.latencies.capture_to_publish.take()
        before, start = (agent.counts["camera"].captured, agent.counts["camera"].classified), time.monotonic()
        while (elapsed := time.monotonic() - start) < task.seconds:
            time.sleep(min(0.5, task.seconds))
            _progress(min(1.0, elapsed / task.seconds))
        count, took = agent.counts["camera"], time.monotonic() - start
        spread = agent.latencies.capture_to_publish.take()
        return {
            "seconds": round(took, 2),
            "captured_per_s": round((count.captured - before[0]) / took, 2),
            "classified_per_s": round((count.classified - before[1]) / took, 2),
            "p50": spread.p50,
            "p95": spread.p95,
            "p99": spread.p99,
        }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
