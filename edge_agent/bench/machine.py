"""Properties of the machine that a benchmark records: hardware, temperature, clock, and load by other processes."""

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
    """Describe this machine."""
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
    """Return the current clock of the fastest core, in MHz; None if it is not known, as in most virtual machines."""
    found = [
        int(text) / 1000
        for path in (root / "sys/devices/system/cpu/cpufreq").glob("policy*/scaling_cur_freq")
        if (text := _read(path) or "").isdecimal()
    ]
    return round(max(found), 1) if found else None


@dataclass(frozen=True)
class Load:
    """Processor time since boot.

    Attributes:
        at_s: monotonic time of the reading, seconds.
        busy_s: processor seconds of all processes.
        own_s: processor seconds of this process.
        stolen_s: processor seconds that the host gave to other virtual machines.
        preempted: number of involuntary context switches of this process.
    """

    at_s: float
    busy_s: float
    own_s: float
    stolen_s: float
    preempted: int

    def others_since(self, before: Load) -> float:
        """Return the average number of cores that other processes kept busy since an earlier reading."""
        elapsed = max(1e-3, self.at_s - before.at_s)
        return max(0.0, (self.busy_s - before.busy_s - (self.own_s - before.own_s)) / elapsed)

    def stolen_since(self, before: Load) -> float:
        """Return the average number of cores that the host gave to other virtual machines since an earlier reading."""
        return max(0.0, (self.stolen_s - before.stolen_s) / max(1e-3, self.at_s - before.at_s))


def load(root: Path = Path("/")) -> Load:
    """Read the processor time since boot (proc(5), /proc/stat)."""
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
