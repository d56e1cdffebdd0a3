"""Delivery of events through the spool: each event once, in order, even after a long outage of the broker."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from .spool import Spool, SpooledEvent

log = logging.getLogger(__name__)

WINDOW = 20
"""Maximum number of unacknowledged events: paho's default ``max_inflight_messages``."""
MAX_INCOMING = 1000
"""Maximum number of events that wait to be written if the disk hangs. Further events are dropped and counted."""
_STOP_TIMEOUT_S = 2.0
_IDLE_S = 60.0


class Outbox:
    """Accepts events without blocking, keeps them in a `Spool`, and sends them. A context manager.

    Only its own thread accesses the disk. An event stays in the spool until the broker has acknowledged it. An event
    that was not acknowledged when the process ended is sent again by the next process.

    Args:
        path: File of the spool; None keeps events in memory.
        send: Function that sends an event and returns its packet identifier, or None if there is no connection. It is
            called with the event and the seconds until it expires.
        expiry_s: Seconds after which an undelivered event is dropped.
    """

    def __init__(
        self, path: Path | None, send: Callable[[SpooledEvent, float], int | None], *, expiry_s: float
    ) -> None:
        self._spool = Spool(path)
        self._send = send
        self._expiry_s = expiry_s
        self._started_s = time.monotonic()
        self._inherited = 0
        self._incoming: queue.Queue[SpooledEvent] = queue.Queue(MAX_INCOMING)
        self._wake_up = threading.Event()
        self._stopping = threading.Event()
        self._acknowledged: queue.SimpleQueue[int] = queue.SimpleQueue()
        # Ids in the spool by packet identifier. Only the outbox thread uses it, so it needs no lock next to paho's.
        self._in_flight: dict[int, int] = {}
        self._dropped_here = 0
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self.on_disk = path is not None
        """Whether events survive a restart of the process; False if the disk has failed."""
        self.depth = 0
        """Number of events in the spool."""
        self.dropped = 0
        """Number of events lost since the spool was created: too many, too old, or the disk was too slow."""

    def __enter__(self) -> Self:
        self._spool.__enter__()
        self._inherited = self._spool.last
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        self._wake_up.set()
        self._thread.join(2 * _STOP_TIMEOUT_S)
        if self._thread.is_alive():
            log.warning("the outbox thread does not stop; the disk does not respond")
        else:
            self._spool.__exit__()

    def put(self, event: SpooledEvent) -> None:
        """Queue an event. Never blocks."""
        try:
            self._incoming.put_nowait(event)
        except queue.Full:
            self._dropped_here += 1
            log.warning("dropped an event: the disk does not keep up")
        self._wake_up.set()

    def wake(self) -> None:
        """Continue sending after a connect. Called by the network thread."""
        self._wake_up.set()

    def acknowledge(self, packet: int) -> None:
        """Mark the event with this packet identifier as delivered. Called by the network thread."""
        self._acknowledged.put(packet)
        self._wake_up.set()

    def _work(self) -> None:
        sent, deadline = 0, 0.0
        try:
            while True:
                self._wake_up.wait(_IDLE_S)
                self._wake_up.clear()
                stopping = self._stopping.is_set()
                sent = self._step(sent)
                if stopping:
                    deadline = deadline or time.monotonic() + _STOP_TIMEOUT_S
                    if not self._in_flight or time.monotonic() >= deadline:
                        return
                    self._wake_up.wait(0.05)
                    self._wake_up.set()
        except Exception:
            log.exception("outbox: stopped by an unexpected error")

    def _step(self, sent: int) -> int:
        """Store new events, remove delivered ones and send waiting ones. Returns the id of the last event sent."""
        new = []
        while not self._incoming.empty():
            new.append(self._incoming.get_nowait())
        self._spool.put(new)
        self._spool.remove(self._delivered())
        for ident, event in self._spool.after(sent, WINDOW - len(self._in_flight)):
            left_s = self._expiry_s - self._age_s(ident, event)
            if left_s <= 0:
                log.warning("dropped an event: it could not be delivered for %.0f hours", self._expiry_s / 3600)
                self._dropped_here += 1
                self._spool.remove([ident])
            else:
                packet = self._send(event, left_s)
                if packet is None:
                    break
                self._in_flight[packet] = ident
            sent = ident
        self.on_disk = self._spool.on_disk
        self.depth, self.dropped = self._spool.depth, self._spool.dropped + self._dropped_here
        return sent

    def _age_s(self, ident: int, event: SpooledEvent) -> float:
        # If the clock was set back, an event may appear to come from the future; its age is then 0. A device without a
        # battery-backed clock starts with the time at which it was switched off, and jumps forward when the network is
        # up. Events of this process are therefore never considered older than the process.
        age_s = max(0.0, time.time() - event.at)
        return age_s if ident <= self._inherited else min(age_s, time.monotonic() - self._started_s)

    def _delivered(self) -> list[int]:
        """Ids of the acknowledged events; acknowledgements of other messages are ignored."""
        idents = []
        while not self._acknowledged.empty():
            ident = self._in_flight.pop(self._acknowledged.get(), None)
            if ident is not None:
                idents.append(ident)
        return idents
