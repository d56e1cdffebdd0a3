"""What systemd wants to hear of a service (sd_notify): that it is ready, alive, stopping. Without systemd, nothing."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(message: str) -> None:
    """Send assignments such as ``READY=1`` or ``WATCHDOG=1``; a service manager that is not there is no error."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # @ stands for the zero byte of an abstract address.
    target = "\0" + address[1:] if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(message.encode(), target)


def watchdog_s() -> float | None:
    """Seconds within which ``WATCHDOG=1`` is expected each time; None where no watchdog waits for this process."""
    microseconds, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or (process and process != str(os.getpid())):
        return None
    return int(microseconds) / 1e6 or None
