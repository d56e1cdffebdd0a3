"""What a benchmark has to know of its machine: what it is, how hot and how fast, and who else works on it."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from .._version import __version__
from ..inference.interpreter import cores
from ..monitoring.system import meminfo_mb, temperature_c, throttled
from .report import Machine

__all__ = ["Load", "clock_mhz", "describe", "load", "temperature_c", "throttled"]

_TICKS = os.sysconf("SC_CLK_TCK")


def describe(root: Path = Path("/")) -> Machine:
    """This machine."""
    return Machine(
        hostname=platform.node(),
        model=_read(root / "proc/device-tree/model"),
        cpu=_cpu(root),
        architecture=platform.machine(),
        cores=cores(),
        memory_mb=meminfo_mb("MemTotal", root),
        os=_os(root),
        kernel=platform.release(),
        python=platform.python_version(),
        agent=__version__,
        governor=_read(root / "sys/devices/system/cpu/cpufreq/policy0/scaling_governor"),
    )


def clock_mhz(root: Path = Path("/")) -> float | None:
    """The fastest core's clock now; None where it cannot be told, as in most virtual machines."""
    found = [
        int(text) / 1000
        for path in (root / "sys/devices/system/cpu/cpufreq").glob("policy*/scaling_cur_freq")
        if (text := _read(path) or "").isdecimal()
    ]
    return round(max(found), 1) if found else None


@dataclass(frozen=True)
class Load:
    """Processor seconds since boot: of everybody, of this process and its children's, stolen by other machines."""

    at_s: float
    busy_s: float
    own_s: float
    stolen_s: float
    preempted: int

    def others_since(self, before: Load) -> float:
        """Cores that others kept busy since then."""
        passed = max(1e-3, self.at_s - before.at_s)
        return max(0.0, (self.busy_s - before.busy_s - (self.own_s - before.own_s)) / passed)

    def stolen_since(self, before: Load) -> float:
        """Cores that the machine's host gave to others since then."""
        return max(0.0, (self.stolen_s - before.stolen_s) / max(1e-3, self.at_s - before.at_s))


def load(root: Path = Path("/")) -> Load:
    """What the processor was used for until now (proc(5), /proc/stat)."""
    import resource

    first = (_read(root / "proc/stat") or "cpu").split("\n", 1)[0].split()
    # user, nice, system, idle, iowait, irq, softirq, steal
    ticks = [int(field) for field in first[1:9]] if len(first) > 8 else [0] * 8
    own = os.times()
    return Load(
        at_s=time.monotonic(),
        busy_s=(sum(ticks) - ticks[3] - ticks[4] - ticks[7]) / _TICKS,
        own_s=own.user + own.system,
        stolen_s=ticks[7] / _TICKS,
        preempted=resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
    )


def _cpu(root: Path) -> str | None:
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("model name", "hardware") and value.strip():
            return value.strip()
    return None


def _os(root: Path) -> str:
    for line in (_read(root / "etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None
