"""Messages that the agent publishes, as typed values; docs/reference/mqtt.md describes the fields."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

VERSION = 1
UNKNOWN = "unknown"
"""Label that is published while no class is decided."""


class TopScore(msgspec.Struct, frozen=True):
    """One of the highest scores of a frame, 0 to 1."""

    label: str
    score: float


class ModelId(msgspec.Struct, frozen=True):
    """The model that produced the message. ``digest`` is the digest of its bundle."""

    name: str
    version: str
    digest: str


class Timing(msgspec.Struct, frozen=True):
    """Durations in milliseconds. ``capture_to_publish`` is the age of the frame when the message was published."""

    preprocess: float
    inference: float
    capture_to_publish: float


class Observation(msgspec.Struct, frozen=True, omit_defaults=True):
    """A label, event or result message about one frame.

    In ``label`` and ``event`` messages, ``label`` is the decided label and ``score`` its smoothed score. In ``result``
    messages, both come from this frame alone. ``top`` always comes from this frame alone. ``clock`` is ``unset`` if
    nothing had set the device's clock, so that ``captured_at`` may be wrong; otherwise it is omitted.
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
    clock: Literal["unset"] | None = None


CameraState = Literal["online", "lost", "frozen", "ended"]
"""``online``: the camera delivers frames. ``lost``: it delivers none. ``frozen``: it always delivers the same image.
``ended``: a file has been played to its end. The agent keeps reopening lost and frozen cameras."""


class Percentiles(msgspec.Struct, frozen=True):
    """Percentiles, in milliseconds, of ``count`` measurements since the last health message."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float


class Latency(msgspec.Struct, frozen=True):
    """Duration of each stage, and the age of frames when their message was published."""

    preprocess: Percentiles
    inference: Percentiles
    capture_to_publish: Percentiles


class CameraHealth(msgspec.Struct, frozen=True):
    """State of a camera, and counts of its frames since the last health message.

    ``captured_fps`` and ``classified_fps``: frames per second. ``replaced``: frames that a newer frame replaced before
    they were classified. ``unchanged``: frames that the motion gate skipped. ``damaged``: frames that could not be
    decoded. ``reopened``: how often the camera was reopened since the agent started. ``scores``: histogram of each
    frame's highest score, in 20 bins from 0 to 1. ``labels``: number of frames by the label with the highest score.
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
    """State of the event spool.

    ``depth``: events waiting for the broker. ``dropped``: events lost since the spool was created. ``on_disk``: whether
    the spool is on disk. ``refused``: how often the broker has refused an event since the agent started; such events
    wait, and are tried again.
    """

    depth: int
    dropped: int
    on_disk: bool
    refused: int = 0


class RecorderHealth(msgspec.Struct, frozen=True):
    """State of the recorder.

    ``kept``: frames kept since the start. ``skipped``: frames not kept since the start, because they were near
    duplicates or over the budget. ``megabytes``: size of all captures. ``paused``: why no frames are kept at present;
    None while the recorder works.
    """

    kept: int
    skipped: int
    megabytes: float
    paused: str | None


class Health(msgspec.Struct, frozen=True):
    """State of the device. Values that cannot be read are None.

    ``throttled``: names of the Raspberry Pi's flags that are set: under_voltage, frequency_capped, throttled and
    soft_temperature_limit, and the same names with ``_occurred`` for flags that were set since boot. ``memory_mb``:
    resident memory of the agent.
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
    """Current values of the settings that the command `set` can change while the agent runs."""

    v: int
    device: str
    enter: float
    leave: float
    min_time_s: float
    smoothing_s: float
    results: bool


class Reply(msgspec.Struct, frozen=True):
    """Reply to a command. ``id``: the ``id`` of the command. ``ok``: whether it succeeded.

    ``error``: why it failed. ``result``: what it returned.
    """

    v: int
    device: str
    id: str | None
    verb: str
    ok: bool
    error: str | None
    result: dict[str, Any] | None


class CameraInfo(msgspec.Struct, frozen=True):
    """A camera; ``source`` is given without passwords."""

    source: str


class Info(msgspec.Struct, frozen=True):
    """The model, cameras and software that run on the device.

    ``mqtt_protocol``: the MQTT version of the connection, ``5`` or ``3.1.1``.
    """

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
    mqtt_protocol: str | None = None


def timestamp(nanoseconds: int) -> str:
    """Format a wall-clock time, in nanoseconds since 1970, as RFC 3339 in UTC: ``2026-01-31T12:00:00.123Z``."""
    moment = datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds // 1_000_000 % 1000:03d}Z"


def shifted(moment: str, seconds: float) -> str:
    """Add seconds to a time as `timestamp` formats it. Raises ValueError or OverflowError if it is no such time."""
    nanoseconds = int((datetime.fromisoformat(moment).timestamp() + seconds) * 1e9)
    return timestamp(nanoseconds)
