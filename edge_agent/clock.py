"""Time on a device whose clock may be wrong.

A Raspberry Pi has no clock that runs while it is off. It starts with the time of its last shutdown, or with 1970, and
jumps to the right time when the network is up. Ages are therefore measured by the time since boot, which never jumps,
as long as the device has not been rebooted in between.
"""

from __future__ import annotations

import ctypes
import threading
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

_UPTIME = Path("/proc/uptime")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_RTC = Path("/sys/class/rtc")
_SYNCHRONIZED = Path("/run/systemd/timesync/synchronized")
_STA_UNSYNC = 0x40


class Stamp(NamedTuple):
    """When something happened.

    Attributes:
        wall_s: time by the clock, seconds since 1970.
        boot: identifier of the boot; empty if it is not known.
        uptime_s: seconds since boot, including standby.
        is_set: whether the clock was set: by the network, or by a hardware clock.
    """

    wall_s: float
    boot: str = ""
    uptime_s: float = 0.0
    is_set: bool = True

    @classmethod
    def now(cls) -> Stamp:
        """Return the stamp of this moment."""
        return cls(time.time(), _boot(), _uptime_s(), is_clock_set())


def age_s(stamp: Stamp, now: Stamp) -> float | None:
    """Seconds that have passed since ``stamp``; None if the clock was not set then or is not set now."""
    if stamp.boot and stamp.boot == now.boot:
        return max(0.0, now.uptime_s - stamp.uptime_s)
    if not (stamp.is_set and now.is_set):
        return None
    return max(0.0, now.wall_s - stamp.wall_s)


def correction_s(stamp: Stamp, now: Stamp) -> float | None:
    """Seconds to add to a time of an unset clock, now that the clock is set; None if that is not known."""
    if stamp.is_set or not now.is_set or not stamp.boot or stamp.boot != now.boot:
        return None
    return now.wall_s - (now.uptime_s - stamp.uptime_s) - stamp.wall_s


_was_set = threading.Event()


def is_clock_set() -> bool:
    """Whether the clock was set since boot, by the network or by a hardware clock.

    Once it was, it stays so: without a network, the kernel declares its clock unsynchronized after some hours, but the
    clock goes on from the right time.
    """
    if not _was_set.is_set() and (_has_hardware_clock() or _SYNCHRONIZED.exists() or _is_synchronized()):
        _was_set.set()
    return _was_set.is_set()


@cache
def _has_hardware_clock() -> bool:
    # The kernel sets its clock at boot by the hardware clock that says so.
    return any(_read(path) == "1" for path in _RTC.glob("rtc*/hctosys"))


def _is_synchronized() -> bool:
    """Whether a time service (systemd-timesyncd, chrony, ntpd) keeps the kernel's clock: adjtimex(2)."""
    # struct timex is 208 bytes on 64-bit and 128 on 32-bit machines; `modes`, the first field, is 0: nothing is set.
    timex = (ctypes.c_char * 256)()
    try:
        if _libc().adjtimex(timex) < 0:
            return False
    except (AttributeError, OSError):
        return False
    # The int `status` follows five words: modes (padded), offset, freq, maxerror, esterror.
    status = ctypes.c_int.from_buffer(timex, 5 * ctypes.sizeof(ctypes.c_long)).value
    return not status & _STA_UNSYNC


@cache
def _libc() -> ctypes.CDLL:
    # Opened once: with `mqtt.results`, the clock is asked about each frame.
    return ctypes.CDLL(None)


@cache
def _boot() -> str:
    return _read(_BOOT_ID)


def _uptime_s() -> float:
    try:
        return float(_read(_UPTIME).split()[0])
    except (IndexError, ValueError):
        return time.monotonic()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
