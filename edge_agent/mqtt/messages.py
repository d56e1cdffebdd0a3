"""Every message the agent publishes, as typed values; docs/mqtt.md describes the fields."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

VERSION = 1


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
    runtime: str
    edgeloop: str
    python: str
    recorder: bool


def timestamp(nanoseconds: int) -> str:
    """Wall-clock nanoseconds since 1970 as RFC 3339 in UTC with milliseconds: ``2026-01-31T12:00:00.123Z``."""
    moment = datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds // 1_000_000 % 1000:03d}Z"
