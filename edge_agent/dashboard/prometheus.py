"""Prometheus metrics from the dashboard's state; names begin with ``edgeloop_``, units are seconds and bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from ..messages import Health, Info, Observation
from .state import BOUNDS_MS, DashboardState

if TYPE_CHECKING:
    from prometheus_client import Metric

FRAMES = {
    "captured": "Frames the camera delivered.",
    "classified": "Frames the model classified.",
    "replaced": "Frames replaced by a newer one before they were classified.",
    "unchanged": "Frames skipped by the motion gate.",
    "damaged": "Frames that could not be decoded.",
}
FLAGS = ("under_voltage", "frequency_capped", "throttled", "soft_temperature_limit")
_MB = 1e6


class Counts(Protocol):
    """Frame counts of one camera since the agent started; the counts only increase."""

    captured: int
    classified: int
    replaced: int
    unchanged: int
    damaged: int
    reopened: int


def metrics_text(board: DashboardState, counts: Callable[[str], Counts | None]) -> tuple[bytes, str]:
    """Return all metrics in Prometheus' text format, and the content type."""
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from prometheus_client.registry import Collector

    class FromBoard(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from _of_cameras(board, counts)
            yield from _of_device(board)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(FromBoard())
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _of_cameras(board: DashboardState, counts: Callable[[str], Counts | None]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    cameras = board.cameras
    counted = {name: count for name in cameras if (count := counts(name)) is not None}
    for key, text in FRAMES.items():
        frames = CounterMetricFamily(f"edgeloop_frames_{key}", text, labels=["camera"])
        for name, count in counted.items():
            frames.add_metric([name], getattr(count, key))
        yield frames
    reopened = CounterMetricFamily("edgeloop_camera_reopened", "Times the camera was opened again.", labels=["camera"])
    for name, count in counted.items():
        reopened.add_metric([name], count.reopened)
    yield reopened

    up = GaugeMetricFamily("edgeloop_camera_up", "1 while the camera delivers new images.", labels=["camera"])
    changes = CounterMetricFamily("edgeloop_label_changes", "Times the decided label changed.", labels=["camera"])
    score = GaugeMetricFamily(
        "edgeloop_label_score", "Score of the decided label in the newest frame, 0 to 1.", labels=["camera", "label"]
    )
    latency = HistogramMetricFamily(
        "edgeloop_latency_seconds", "Duration of each pipeline stage.", labels=["camera", "stage"]
    )
    for name, camera in cameras.items():
        state = camera.value("state")
        up.add_metric([name], float(state is not None and state["state"] == "online"))
        changes.add_metric([name], camera.changes)
        label: Observation | None = camera.value("label")
        if label is not None:
            newest = camera.value("score")
            score.add_metric([name, label.label], label.score if newest is None else newest)
        for stage, histogram in camera.latencies.items():
            # Copied first: results arrive in another thread, and the buckets must add up to the count.
            latency.add_metric([name, stage], _buckets(list(histogram.counts)), histogram.sum_ms / 1000)
    yield from (up, changes, score, latency)


def _buckets(counts: list[int]) -> list[tuple[str, float]]:
    """Return cumulative counts by upper bound in seconds; the last bound is infinite."""
    buckets, total = [], 0
    for bound_ms, count in zip((*BOUNDS_MS, float("inf")), counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound_ms == float("inf") else str(bound_ms / 1000), float(total)))
    return buckets


def _of_device(board: DashboardState) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

    info: Info | None = board.value("info")
    if info is not None:
        model = {"name": info.model.name, "version": info.model.version, "digest": info.model.digest}
        yield InfoMetricFamily("edgeloop_model", "The current model.", value=model)
        versions = {"device": info.device, "edgeloop": info.edgeloop, "runtime": info.runtime, "python": info.python}
        yield InfoMetricFamily("edgeloop_agent", "The agent.", value=versions)
    health: Health | None = board.value("health")
    if health is None:
        return
    gauges = (
        ("uptime_seconds", "Time since the agent started.", health.uptime_s),
        ("temperature_celsius", "Temperature of the processor.", health.temperature_c),
        ("load1", "Load average of the last minute.", health.load_1min),
        ("memory_bytes", "Resident memory of the agent.", _bytes(health.memory_mb)),
        ("memory_free_bytes", "Available memory of the device.", _bytes(health.memory_free_mb)),
        ("disk_free_bytes", "Free disk space for the agent's state.", _bytes(health.disk_free_mb)),
        ("spool_depth", "Events waiting for the broker.", None if health.spool is None else health.spool.depth),
    )
    for name, text, value in gauges:
        if value is not None:
            yield GaugeMetricFamily(f"edgeloop_{name}", text, value=value)
    if health.spool is not None:
        yield CounterMetricFamily(
            "edgeloop_spool_dropped", "Events dropped because the spool was full.", value=health.spool.dropped
        )
    if health.recorder is not None:
        yield CounterMetricFamily("edgeloop_recorder_kept", "Frames saved for retraining.", value=health.recorder.kept)
        yield GaugeMetricFamily(
            "edgeloop_recorder_bytes", "Size of all captures.", value=health.recorder.megabytes * _MB
        )
    if health.throttled is not None:
        throttled = GaugeMetricFamily(
            "edgeloop_throttled", "1 while this flag of the Raspberry Pi is set.", labels=["flag"]
        )
        for flag in FLAGS:
            throttled.add_metric([flag], float(flag in health.throttled))
            throttled.add_metric([f"{flag}_occurred"], float(f"{flag}_occurred" in health.throttled))
        yield throttled


def _bytes(megabytes: float | None) -> float | None:
    return None if megabytes is None else megabytes * _MB
