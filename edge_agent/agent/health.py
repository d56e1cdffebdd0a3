"""Health messages: temperature, throttling, memory and frame rates of the device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..messages import VERSION, CameraHealth, Health, Latency, RecorderHealth, SpoolHealth, timestamp
from ..monitoring.score_counts import ScoreCounts, since
from ..monitoring.system import available_mb, free_mb, load_1min, resident_mb, temperature_c, throttled

if TYPE_CHECKING:
    from .pipeline import Agent


class HealthReporter:
    """Creates health messages. The counts in a message cover the time since the previous message.

    Args:
        agent: The running agent.
        disk: Directory of the captures and the spool; the free space on its disk is reported.
        root: Root of the file system; tests pass another directory.
    """

    def __init__(self, agent: Agent, *, disk: Path, root: Path = Path("/")) -> None:
        self._agent = agent
        self._disk = disk
        self._root = root
        self._started_s = self._before_s = time.monotonic()
        self._before: dict[str, dict[str, int]] = {name: {} for name in agent.cameras}
        self._reported: dict[tuple[str, str], ScoreCounts] = {}

    def report(self, *, spool: SpoolHealth | None, recorder: RecorderHealth | None) -> Health:
        """Create the health message for the time since the previous one."""
        agent, now = self._agent, time.monotonic()
        passed_s = max(1e-3, now - self._before_s)
        self._before_s = now
        latencies = agent.latencies
        return Health(
            v=VERSION,
            device=agent.device,
            at=timestamp(time.time_ns()),
            uptime_s=round(now - self._started_s, 1),
            model=agent.model.id,
            temperature_c=temperature_c(self._root),
            throttled=throttled(self._root),
            load_1min=load_1min(),
            memory_mb=resident_mb(self._root),
            memory_free_mb=available_mb(self._root),
            disk_free_mb=free_mb(self._disk),
            latency_ms=Latency(
                preprocess=latencies.preprocess.take(),
                inference=latencies.inference.take(),
                capture_to_publish=latencies.capture_to_publish.take(),
            ),
            cameras={name: self._camera(name, passed_s) for name in agent.cameras},
            spool=spool,
            recorder=recorder,
        )

    def _camera(self, name: str, passed_s: float) -> CameraHealth:
        count = self._agent.counts[name]
        now: Mapping[str, int] = {key: value for key, value in asdict(count).items() if isinstance(value, int)}
        new = {key: value - self._before[name].get(key, 0) for key, value in now.items()}
        self._before[name] = dict(now)
        key = self._agent.model.bundle.digest, name
        counters = self._agent.score_counters
        total = counters[key].now() if key in counters else ScoreCounts()
        recent, self._reported[key] = since(total, self._reported.get(key, ScoreCounts())), total
        return CameraHealth(
            state=count.state,
            captured_fps=round(new["captured"] / passed_s, 2),
            classified_fps=round(new["classified"] / passed_s, 2),
            replaced=new["replaced"],
            unchanged=new["unchanged"],
            damaged=new["damaged"],
            reopened=count.reopened,
            scores=recent.scores,
            labels=recent.labels,
        )
