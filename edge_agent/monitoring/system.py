"""State of the machine, read from Linux: temperature, throttling, memory, load, disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

_FLAGS = ("under_voltage", "frequency_capped", "throttled", "soft_temperature_limit")
"""Names of bits 0 to 3, with which the Raspberry Pi's firmware reports the current state. Bits 16 to 19 report whether
the same states have occurred since boot (documentation of `vcgencmd get_throttled`)."""


def temperature_c(root: Path = Path("/")) -> float | None:
    """Temperature of the processor: the thermal zone whose type names the processor, else the first zone."""
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    zones.sort(key=lambda zone: not any(word in (_read(zone / "type") or "") for word in ("cpu", "x86_pkg", "soc")))
    for zone in zones:
        text = _read(zone / "temp")
        if text is not None and text.lstrip("-").isdecimal():
            return round(int(text) / 1000, 1)
    return None


def throttled(root: Path = Path("/")) -> tuple[str, ...] | None:
    """Names of the Raspberry Pi's throttling flags that are set; None on other machines.

    Flags that were set at any time since boot have the suffix ``_occurred``. If neither the firmware's flags nor
    `vcgencmd` can be read, only ``under_voltage`` is known, from the kernel's voltage sensor.
    """
    text = _firmware_flags(root)
    try:
        bits = int(text or "", 16)
    except ValueError:
        alarm = _under_voltage_alarm(root)
        return None if alarm is None else _FLAGS[:1] if alarm else ()
    now = [flag for bit, flag in enumerate(_FLAGS) if bits >> bit & 1]
    return (*now, *(f"{flag}_occurred" for bit, flag in enumerate(_FLAGS, 16) if bits >> bit & 1))


def _firmware_flags(root: Path) -> str | None:
    """The firmware's throttling flags as a hexadecimal number: from the kernel before 6.12, or else from vcgencmd.

    On a Raspberry Pi 5, the names of the nodes contain an address (``soc@107c000000``).
    """
    for path in sorted((root / "sys/devices/platform").glob("soc*/soc*:firmware/get_throttled")):
        if (text := _read(path)) is not None:
            return text
    try:
        done = subprocess.run(
            ["vcgencmd", "get_throttled"],  # noqa: S607  from PATH: /usr/bin or, on other systems, /opt/vc/bin
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.partition("throttled=")[2].strip() if done.returncode == 0 else None


def _under_voltage_alarm(root: Path) -> bool | None:
    """Whether the supply voltage fell too low in the last seconds (driver raspberrypi-hwmon); None without sensor."""
    for sensor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if _read(sensor / "name") == "rpi_volt" and (alarm := _read(sensor / "in0_lcrit_alarm")) is not None:
            return alarm == "1"
    return None


def resident_mb(root: Path = Path("/")) -> float | None:
    """Resident memory of this process, in megabytes."""
    fields = (_read(root / "proc/self/statm") or "").split()
    return round(int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1) if len(fields) > 1 else None


def available_mb(root: Path = Path("/")) -> float | None:
    """Memory that is available without swapping, in megabytes."""
    return meminfo_mb("MemAvailable", root)


def meminfo_mb(field: str, root: Path = Path("/")) -> float | None:
    """A field of /proc/meminfo, in megabytes; None if it does not exist."""
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        if line.startswith(f"{field}:"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    return None


def load_1min() -> float | None:
    """Load average of the last minute; None if the system does not provide it."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def free_mb(path: Path) -> float | None:
    """Free space on the file system of ``path``, in megabytes; None if it cannot be read."""
    try:
        return round(shutil.disk_usage(path).free / 1e6, 1)
    except OSError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def peak_memory_mb(pid: int | str) -> float:
    """Peak resident memory of a process, in MiB; 0 if it cannot be read."""
    return field_kib(f"/proc/{pid}/status", "VmHWM") / 1024


def field_kib(path: str, name: str) -> int:
    """A field of a file such as /proc/meminfo, in KiB; 0 if it does not exist."""
    with suppress(OSError, ValueError), open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    return 0
