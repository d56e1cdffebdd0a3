"""Every message the agent publishes, as typed values; docs/reference/mqtt.md describes the fields."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

VERSION = 1
UNKNOWN = "unknown"
"""The label that is published while no class is decided."""


class TopScore(msgspec.Struct, frozen=True):
    """One of the highest scores of a frame, 0 to 1."""

    label: str
    score: float


class ModelId(msgspec.Struct, frozen=True):
    """Which model said it. ``digest`` is the bundle's."""

    name: str
    version: str
    digest: str


class Timing(msgspec.Struct, frozen=True):
    """Milliseconds. ``capture_to_publish`` is the frame's age when the message was handed to the network."""

    preprocess: float
    inference: float
    capture_to_publish: float


class Observation(msgspec.Struct, frozen=True):
    """A label, event or result message: what the agent says of one frame.

    In ``label`` and ``event``, ``label`` is the decided one and ``score`` its smoothed score; in
    ``result`` both are this single frame's. ``top`` is always this frame's.
    """

    v: int
    device: str
    camera: str
    seq: int
    captured_at: str
    label: str
    score: float
    top: tuple[TopScore, ...]
    model: ModelId
    timing_ms: Timing


CameraState = Literal["online", "lost", "frozen", "ended"]
"""``online`` delivers frames; ``lost`` delivers none, ``frozen`` always the same: both are opened again and again;
``ended`` is a file that is through."""


class Percentiles(msgspec.Struct, frozen=True):
    """Milliseconds, since the last health message; ``count`` measurements."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float


class Latency(msgspec.Struct, frozen=True):
    """How long each part took, and how old frames were when their message was handed to the network."""

    preprocess: Percentiles
    inference: Percentiles
    capture_to_publish: Percentiles


class CameraHealth(msgspec.Struct, frozen=True):
    """A camera's state, and its frames since the last health message.

    ``captured_fps`` and ``classified_fps``: a second. ``replaced`` frames were outrun by a newer one, ``unchanged``
    ones passed over by the motion gate, ``damaged`` ones could not be decoded. ``reopened``: since the start.
    ``scores``: frames by the highest score the model gave them, in 20 bins from 0 to 1. ``labels``: frames by the label
    that got it.
    """

    state: CameraState
    captured_fps: float
    classified_fps: float
    replaced: int
    unchanged: int
    damaged: int
    reopened: int
    scores: tuple[int, ...] = ()
    labels: dict[str, int] = {}


class SpoolHealth(msgspec.Struct, frozen=True):
    """Events that wait for the broker, events lost since the spool was made, and whether it is on disk."""

    depth: int
    dropped: int
    on_disk: bool


class RecorderHealth(msgspec.Struct, frozen=True):
    """Frames kept and megabytes they take; ``skipped`` ones were near-duplicates or over the budget, since the start.

    ``paused``: why nothing is kept at present; None when all is well.
    """

    kept: int
    skipped: int
    megabytes: float
    paused: str | None


class Health(msgspec.Struct, frozen=True):
    """How the device is. What it cannot tell is None.

    ``throttled``: names of the Raspberry Pi's flags that are set: under_voltage, frequency_capped, throttled,
    soft_temperature_limit, and the same with ``_occurred`` since boot. ``memory_mb``: resident, of the agent.
    """

    v: int
    device: str
    at: str
    uptime_s: float
    model: ModelId
    temperature_c: float | None
    throttled: tuple[str, ...] | None
    load_1min: float | None
    memory_mb: float | None
    memory_free_mb: float | None
    disk_free_mb: float | None
    latency_ms: Latency
    cameras: dict[str, CameraHealth]
    spool: SpoolHealth | None
    recorder: RecorderHealth | None


class Tunables(msgspec.Struct, frozen=True):
    """What `set` can change while the agent runs, and its present value."""

    v: int
    device: str
    enter: float
    leave: float
    min_time_s: float
    smoothing_s: float
    results: bool


class Reply(msgspec.Struct, frozen=True):
    """The answer to a command: whether it was done, and why not or what came of it. ``id``: the command's own."""

    v: int
    device: str
    id: str | None
    verb: str
    ok: bool
    error: str | None
    result: dict[str, Any] | None


class CameraInfo(msgspec.Struct, frozen=True):
    """A camera, its source without passwords."""

    source: str


class Info(msgspec.Struct, frozen=True):
    """What runs on the device."""

    v: int
    device: str
    model: ModelId
    labels: tuple[str, ...]
    cameras: dict[str, CameraInfo]
    threads: int
    delegate: str | None
    runtime: str
    edgeloop: str
    python: str
    recorder: bool


def timestamp(nanoseconds: int) -> str:
    """Wall-clock nanoseconds since 1970 as RFC 3339 in UTC with milliseconds: ``2026-01-31T12:00:00.123Z``."""
    moment = datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds // 1_000_000 % 1000:03d}Z"
