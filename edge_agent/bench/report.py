"""Benchmark report: one JSON document; docs/schemas/bench.json is its schema."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from ..atomic_files import replacing
from ..errors import ConfigError

VERSION = 1
MOST_BYTES = 64 * 2**20


class Spread(msgspec.Struct, frozen=True):
    """Distribution of ``count`` times in milliseconds: exact percentiles and maximum."""

    count: int
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Spread:
        """Compute the distribution of times in milliseconds; ``times_ms`` must contain at least one."""
        p50, p90, p95, p99 = (round(float(value), 4) for value in np.percentile(times_ms, (50, 90, 95, 99)))
        return cls(len(times_ms), p50, p90, p95, p99, round(float(np.max(times_ms)), 4))


class Machine(msgspec.Struct, frozen=True):
    """Machine on which the benchmark ran. Unknown values are None."""

    hostname: str
    model: str | None
    cpu: str | None
    architecture: str
    cores: int
    memory_mb: float | None
    os: str
    kernel: str
    python: str
    agent: str
    governor: str | None


class Subject(msgspec.Struct, frozen=True):
    """A measured bundle. ``accuracy``: accuracy of the model on its test images, from the manifest."""

    name: str
    version: str
    digest: str
    file_mb: float
    model_mb: float
    kind: str
    input: tuple[int, ...]
    accuracy: float | None


class Start(msgspec.Struct, frozen=True):
    """Cold start up to the first label, in milliseconds.

    Start of the process, imports, verification of the bundle, loading of the interpreter, and the first inference.
    """

    process_ms: float
    imports_ms: float
    bundle_ms: float
    interpreter_ms: float
    first_inference_ms: float
    total_ms: float


class Stages(msgspec.Struct, frozen=True):
    """Times of the pipeline stages of a frame.

    ``decode``: the camera's JPEG, only as large as needed. ``preprocess``: to the model input. ``invoke``: run the
    model. ``decide``: the label over time. ``publish``: encode the message as JSON, without the network.
    """

    decode: Spread
    preprocess: Spread
    invoke: Spread
    decide: Spread
    publish: Spread


class Steady(msgspec.Struct, frozen=True):
    """Steady-state latency of one bundle with one number of threads and one delegate, after warm-up.

    Attributes:
        bundle: digest of the bundle.
        threads: inference threads.
        delegate: shared library of the delegate; None for the CPU.
        runtime: package and version of the interpreter.
        invoke: times of invoke in all rounds; each round runs in a separate process.
        rounds_p50_ms: median of each round; shows how repeatable the measurement is.
        frames_per_s: inferences per second, one after the other, invoke only.
        warmup_runs: inferences until the times were steady; maximum of all rounds.
        start: cold start of the first round.
        stages: times of the pipeline stages; None if they were not measured.
        memory_mb: peak resident memory of the process.
        energy_mj: energy of the whole machine per inference; None if the machine cannot measure it.
        notes: anything that disturbed the measurement; empty if nothing was detected.
        times_ms: times of invoke, thinned out in long measurements.
    """

    bundle: str
    threads: int
    delegate: str | None
    runtime: str
    invoke: Spread
    rounds_p50_ms: tuple[float, ...]
    frames_per_s: float
    warmup_runs: int
    start: Start
    stages: Stages | None
    memory_mb: float
    energy_mj: float | None
    notes: tuple[str, ...]
    times_ms: tuple[float, ...] = ()


class Second(msgspec.Struct, frozen=True, array_like=True):
    """One second of sustained load. ``throttled``: flags that the firmware of a Raspberry Pi had set."""

    at_s: float
    count: int
    p50_ms: float
    p99_ms: float
    temperature_c: float | None
    clock_mhz: float | None
    throttled: tuple[str, ...]


class Sustained(msgspec.Struct, frozen=True):
    """Sustained load. ``slowdown``: median of the last quarter divided by the median of the first ten seconds."""

    bundle: str
    threads: int
    delegate: str | None
    seconds: tuple[Second, ...]
    burst_p50_ms: float
    sustained_p50_ms: float
    slowdown: float


class EndToEnd(msgspec.Struct, frozen=True):
    """Measurement of the whole agent on a camera, without a broker."""

    bundle: str
    threads: int
    source: str
    seconds: float
    captured_per_s: float
    classified_per_s: float
    capture_to_publish_p50_ms: float
    capture_to_publish_p95_ms: float
    capture_to_publish_p99_ms: float


class Operation(msgspec.Struct, frozen=True):
    """Time that one operation adds to the model's time; ``share`` is its share of the whole time, 0 to 1."""

    kind: str
    output: tuple[int, ...]
    added_ms: float
    share: float


class Profile(msgspec.Struct, frozen=True):
    """Times of a model's operations; see `edge_agent.bench.op_profile`."""

    bundle: str
    threads: int
    operations: tuple[Operation, ...]


class Failed(msgspec.Struct, frozen=True):
    """A measurement that failed, with the reason."""

    what: str
    reason: str


class Report(msgspec.Struct, frozen=True):
    """A benchmark report. ``complete`` is false if the benchmark was interrupted or a measurement failed."""

    v: Annotated[int, msgspec.Meta(ge=VERSION, le=VERSION)]
    at: str
    machine: Machine
    bundles: tuple[Subject, ...]
    steady: tuple[Steady, ...] = ()
    sustained: tuple[Sustained, ...] = ()
    end_to_end: tuple[EndToEnd, ...] = ()
    profiles: tuple[Profile, ...] = ()
    failed: tuple[Failed, ...] = ()
    complete: bool = True

    def subject(self, digest: str) -> Subject | None:
        """Return the bundle with this digest; None if the report does not contain it."""
        return next((one for one in self.bundles if one.digest == digest), None)

    def name_of(self, digest: str) -> str:
        """Return the display name of a bundle: name, version and kind of its model."""
        one = self.subject(digest)
        return digest[:12] if one is None else f"{one.name} {one.version} {one.kind}"

    def save(self, path: Path) -> None:
        """Write the report atomically."""
        with replacing(path) as file:
            file.write(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def load(path: Path) -> Report:
    """Read a report from a file.

    Raises:
        ConfigError: the file is not a report, or is a report in another version of the format.
    """
    try:
        if os.stat(path).st_size > MOST_BYTES:
            raise ConfigError(f"{path}: too large for a report; at most {MOST_BYTES} bytes are allowed")
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a report of edgeloop bench, version {VERSION}: {error}") from error
