"""Energy measurement with the counter of Intel and AMD processors (RAPL) or the PMIC of a Raspberry Pi 5."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import threading
import time
from pathlib import Path
from typing import Self

_EVERY_S = 1.0
"""Interval between two readings of the PMIC. Each reading starts a program; at this interval, the readings
use a hundredth of a core."""
_RAIL = re.compile(r"^\s*(\w+)_([AV]) (?:current|volt)\(\d+\)=([0-9.]+)[AV]$", re.MULTILINE)


class EnergyMeter:
    """Context manager that measures the energy used within its block.

    The RAPL counter covers only the processor; it is exact, but usually only root can read it. On a Raspberry Pi 5, the
    power is read from the PMIC once a second, as the sum of current times voltage over its rails. This covers the board
    without the losses of the PMIC itself and without devices on USB and on the header.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._counter = root / "sys/class/powercap/intel-rapl:0/energy_uj"
        self._before = self._started_s = 0.0
        self._has_counter = False
        self._watts: list[float] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.joules: float | None = None
        """Energy used, set at the end of the block; None if the machine cannot measure it."""

    def __enter__(self) -> Self:
        """Start the measurement."""
        self._started_s, before = time.monotonic(), self._read_counter()
        if before is not None:
            self._before, self._has_counter = before, True
        elif (watts := pmic_watts()) is not None:
            self._watts.append(watts)
            self._thread = threading.Thread(target=self._sample, name="energy", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the measurement."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            # The first reading was taken before the work began.
            watts = self._watts[1:] or self._watts
            self.joules = statistics.fmean(watts) * (time.monotonic() - self._started_s)
        elif self._has_counter and (now := self._read_counter()) is not None and now >= self._before:
            # If the counter has wrapped, there is no result.
            self.joules = now - self._before

    def _read_counter(self) -> float | None:
        try:
            return int(self._counter.read_text(encoding="ascii")) / 1e6
        except (OSError, ValueError):
            return None

    def _sample(self) -> None:
        while not self._ended.wait(_EVERY_S):
            if (watts := pmic_watts()) is not None:
                self._watts.append(watts)


def pmic_watts() -> float | None:
    """Read the power at this moment, in watts, from a Raspberry Pi 5's PMIC (`vcgencmd pmic_read_adc`).

    Return None on other machines.
    """
    program = shutil.which("vcgencmd")
    if program is None:
        return None
    try:
        done = subprocess.run([program, "pmic_read_adc"], capture_output=True, text=True, timeout=5, check=True)
        rails: dict[str, dict[str, float]] = {}
        for name, kind, value in _RAIL.findall(done.stdout):
            rails.setdefault(name, {})[kind] = float(value)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    powers = [rail["A"] * rail["V"] for rail in rails.values() if len(rail) == 2]
    return sum(powers) if powers else None
