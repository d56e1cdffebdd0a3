"""Notifications to systemd (sd_notify): ready, alive, stopping. Without systemd, nothing is sent."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(message: str) -> None:
    """Send an assignment such as ``READY=1`` or ``WATCHDOG=1``. If there is no service manager, do nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # @ stands for the zero byte of an abstract address.
    target = "\0" + address[1:] if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(message.encode(), target)


def watchdog_s() -> float | None:
    """Return the seconds within which systemd expects the next ``WATCHDOG=1``; None if this process has no watchdog."""
    microseconds, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or (process and process != str(os.getpid())):
        return None
    return int(microseconds) / 1e6 or None
