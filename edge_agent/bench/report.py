"""What a benchmark found, as it is saved: one JSON document, whose schema is docs/schemas/bench.json."""

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
    """How long something took: ``count`` times, milliseconds, exact percentiles and the largest."""

    count: int
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Spread:
        """Of times in milliseconds; at least one."""
        p50, p90, p95, p99 = (round(float(value), 4) for value in np.percentile(times_ms, (50, 90, 95, 99)))
        return cls(len(times_ms), p50, p90, p95, p99, round(float(np.max(times_ms)), 4))


class Machine(msgspec.Struct, frozen=True):
    """Where it ran. What cannot be told is None."""

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
    """A bundle that was measured. ``accuracy``: of its model on its test images, as its manifest says."""

    name: str
    version: str
    digest: str
    file_mb: float
    model_mb: float
    kind: str
    input: tuple[int, ...]
    accuracy: float | None


class Start(msgspec.Struct, frozen=True):
    """From nothing to the first label, milliseconds.

    A new process, Python and its libraries, the verified bundle, the interpreter, and the first inference.
    """

    process_ms: float
    imports_ms: float
    bundle_ms: float
    interpreter_ms: float
    first_inference_ms: float
    total_ms: float


class Stages(msgspec.Struct, frozen=True):
    """A frame's way, part by part.

    ``decode`` from a camera's JPEG, only as large as needed; ``preprocess`` to the model's input; ``invoke``;
    ``decide`` the label over time; ``publish`` it as JSON, without the network.
    """

    decode: Spread
    preprocess: Spread
    invoke: Spread
    decide: Spread
    publish: Spread


class Steady(msgspec.Struct, frozen=True):
    """One bundle, with so many threads and that delegate, once warm.

    Attributes:
        bundle: digest.
        threads: inference threads.
        delegate: shared library; None on the CPU.
        runtime: package and version of the interpreter.
        invoke: of all rounds together, each in a process of its own.
        rounds_p50_ms: median of each round: how well the machine repeats itself.
        frames_per_s: one after the other, invoke alone.
        warmup_runs: inferences until the times were steady, the most of all rounds.
        start: of the first round.
        stages: None where they were not asked for.
        memory_mb: peak resident of the process.
        energy_mj: of the whole machine per inference; None where it tells none.
        notes: what disturbed it; empty when nothing was noticed.
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
    """A second of sustained work. ``throttled``: flags of a Raspberry Pi's firmware that were set."""

    at_s: float
    count: int
    p50_ms: float
    p99_ms: float
    temperature_c: float | None
    clock_mhz: float | None
    throttled: tuple[str, ...]


class Sustained(msgspec.Struct, frozen=True):
    """Minutes of work without a pause. ``slowdown``: median of the last quarter over that of the first ten seconds."""

    bundle: str
    threads: int
    delegate: str | None
    seconds: tuple[Second, ...]
    burst_p50_ms: float
    sustained_p50_ms: float
    slowdown: float


class EndToEnd(msgspec.Struct, frozen=True):
    """The agent itself on a camera, without a broker."""

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
    """What one operation of a model adds to its time; ``share`` is of the whole."""

    kind: str
    output: tuple[int, ...]
    added_ms: float
    share: float


class Profile(msgspec.Struct, frozen=True):
    """Where a model's time goes, operation by operation; see `edge_agent.bench.op_profile`."""

    bundle: str
    threads: int
    operations: tuple[Operation, ...]


class Failed(msgspec.Struct, frozen=True):
    """What could not be measured, and why."""

    what: str
    reason: str


class Report(msgspec.Struct, frozen=True):
    """A whole benchmark. ``complete`` is false where it was broken off or something failed."""

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
        """The bundle of a digest; None where the report does not describe it."""
        return next((one for one in self.bundles if one.digest == digest), None)

    def name_of(self, digest: str) -> str:
        """What to call a bundle: name, version and kind of its model."""
        one = self.subject(digest)
        return digest[:12] if one is None else f"{one.name} {one.version} {one.kind}"

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        with replacing(path) as file:
            file.write(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def load(path: Path) -> Report:
    """A report from its file.

    Raises:
        ConfigError: it is none, or of another version.
    """
    try:
        if os.stat(path).st_size > MOST_BYTES:
            raise ConfigError(f"{path}: too large for a benchmark's report")
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no report of edgeloop bench, version {VERSION}: {error}") from error
