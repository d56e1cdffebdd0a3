"""Energy a stretch of work takes, where the machine tells it: Intel's and AMD's counter, a Raspberry Pi 5's PMIC."""

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
"""Between two readings of the PMIC, each of which starts a program: a hundredth of a core."""
_RAIL = re.compile(r"^\s*(\w+)_([AV]) (?:current|volt)\(\d+\)=([0-9.]+)[AV]$", re.MULTILINE)


class EnergyMeter:
    """Measures while it is open.

    The counter (RAPL, of the processor alone) is exact and mostly root's to read. A Raspberry Pi 5's power is what its
    PMIC measures at this moment, once a second: the sum over its rails of current times voltage. That is the board
    without the PMIC's own losses and without what hangs on USB and the header.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._counter = root / "sys/class/powercap/intel-rapl:0/energy_uj"
        self._before = self._started_s = 0.0
        self._has_counter = False
        self._watts: list[float] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.joules: float | None = None
        """What it took, once closed; None where the machine does not tell."""

    def __enter__(self) -> Self:
        """Begin."""
        self._started_s, before = time.monotonic(), self._counted()
        if before is not None:
            self._before, self._has_counter = before, True
        elif (watts := pmic_watts()) is not None:
            self._watts.append(watts)
            self._thread = threading.Thread(target=self._sample, name="energy", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            # The first was taken before the work began.
            watts = self._watts[1:] or self._watts
            self.joules = statistics.fmean(watts) * (time.monotonic() - self._started_s)
        elif self._has_counter and (now := self._counted()) is not None and now >= self._before:
            # A counter that wrapped tells nothing.
            self.joules = now - self._before

    def _counted(self) -> float | None:
        try:
            return int(self._counter.read_text(encoding="ascii")) / 1e6
        except (OSError, ValueError):
            return None

    def _sample(self) -> None:
        while not self._ended.wait(_EVERY_S):
            if (watts := pmic_watts()) is not None:
                self._watts.append(watts)


def pmic_watts() -> float | None:
    """What a Raspberry Pi 5's PMIC measures now (`vcgencmd pmic_read_adc`); None on other machines."""
    program = shutil.which("vcgencmd")
    if program is None:
        return None
    try:
        said = subprocess.run([program, "pmic_read_adc"], capture_output=True, text=True, timeout=5, check=True).stdout
        rails: dict[str, dict[str, float]] = {}
        for name, kind, value in _RAIL.findall(said):
            rails.setdefault(name, {})[kind] = float(value)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    powers = [rail["A"] * rail["V"] for rail in rails.values() if len(rail) == 2]
    return sum(powers) if powers else None
