"""How the device is: temperature, throttling, memory, rates. What it cannot tell is None."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .mqtt.messages import VERSION, CameraHealth, Health, Latency, RecorderHealth, SpoolHealth, timestamp
from .seen import Seen, since

if TYPE_CHECKING:
    from .agent import Agent

_FLAGS = ("under_voltage", "frequency_capped", "throttled", "soft_temperature_limit")
"""Bits 0 to 3 of what the Raspberry Pi's firmware reports, now; 16 to 19 are the same since boot (documentation of
`vcgencmd get_throttled`)."""


class HealthReporter:
    """Makes the health message; counts are told as what came since the last one.

    Args:
        agent: whose health it is.
        disk: where captures and spool lie, for the free space.
        root: of the file system, for tests.
    """

    def __init__(self, agent: Agent, *, disk: Path, root: Path = Path("/")) -> None:
        self._agent = agent
        self._disk = disk
        self._root = root
        self._started_s = self._before_s = time.monotonic()
        self._before: dict[str, dict[str, int]] = {name: {} for name in agent.cameras}
        self._seen: dict[tuple[str, str], Seen] = {}

    def report(self, *, spool: SpoolHealth | None, recorder: RecorderHealth | None) -> Health:
        """The message for the time since the last one."""
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
            load_1min=_load(),
            memory_mb=resident_mb(self._root),
            memory_free_mb=available_mb(self._root),
            disk_free_mb=_free_mb(self._disk),
            latency_ms=Latency(
                preprocess=latencies.preprocess.taken(),
                inference=latencies.inference.taken(),
                capture_to_publish=latencies.capture_to_publish.taken(),
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
        seen = self._agent.seen[key].now() if key in self._agent.seen else Seen()
        fresh, self._seen[key] = since(seen, self._seen.get(key, Seen())), seen
        return CameraHealth(
            state=count.state,
            captured_fps=round(new["captured"] / passed_s, 2),
            classified_fps=round(new["classified"] / passed_s, 2),
            replaced=new["replaced"],
            unchanged=new["unchanged"],
            damaged=new["damaged"],
            reopened=count.reopened,
            scores=fresh.scores,
            labels=fresh.labels,
        )


def temperature_c(root: Path = Path("/")) -> float | None:
    """Of the processor: the thermal zone whose type names it, else the first one."""
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    zones.sort(key=lambda zone: not any(word in (_read(zone / "type") or "") for word in ("cpu", "x86_pkg", "soc")))
    for zone in zones:
        text = _read(zone / "temp")
        if text is not None and text.lstrip("-").isdecimal():
            return round(int(text) / 1000, 1)
    return None


def throttled(root: Path = Path("/")) -> tuple[str, ...] | None:
    """The Raspberry Pi's flags that are set, those since boot with ``_occurred``; None on other machines."""
    text = _read(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    try:
        bits = int(text or "", 16)
    except ValueError:
        return None
    now = [flag for bit, flag in enumerate(_FLAGS) if bits >> bit & 1]
    return (*now, *(f"{flag}_occurred" for bit, flag in enumerate(_FLAGS, 16) if bits >> bit & 1))


def resident_mb(root: Path = Path("/")) -> float | None:
    """Memory this process holds in RAM."""
    fields = (_read(root / "proc/self/statm") or "").split()
    return round(int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1) if len(fields) > 1 else None


def available_mb(root: Path = Path("/")) -> float | None:
    """Memory the machine could still give without swapping."""
    return meminfo_mb("MemAvailable", root)


def meminfo_mb(field: str, root: Path = Path("/")) -> float | None:
    """A field of /proc/meminfo."""
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        if line.startswith(f"{field}:"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    return None


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _free_mb(path: Path) -> float | None:
    try:
        return round(shutil.disk_usage(path).free / 1e6, 1)
    except OSError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
