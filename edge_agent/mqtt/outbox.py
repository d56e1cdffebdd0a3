"""From the agent to the broker by way of the spool: each event once, in order, however long the broker is away."""

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
"""Events under way at once: what paho sends before it has an answer (its ``max_inflight_messages``)."""
MOST_AT_THE_DOOR = 1000
"""Events that wait for a disk that hangs; more are dropped, and counted."""
_GOODBYE_S = 2.0
_IDLE_S = 60.0


class Outbox:
    """Takes events without waiting, keeps them in a `Spool`, and hands them to the network. A context manager.

    Its thread alone touches the disk. An event leaves the spool when the broker has acknowledged it; one that was
    under way when the process ended is sent again by the next one.

    Args:
        path: of the spool; None keeps events in memory.
        send: hands an event, and the seconds it is still worth sending, to the network and returns its packet
            identifier; None while there is no connection.
        expiry_s: age in seconds at which an event is no longer worth sending.
    """

    def __init__(
        self, path: Path | None, send: Callable[[SpooledEvent, float], int | None], *, expiry_s: float
    ) -> None:
        self._spool = Spool(path)
        self._send = send
        self._expiry_s = expiry_s
        self._started_s = time.monotonic()
        self._inherited = 0
        self._door: queue.Queue[SpooledEvent] = queue.Queue(MOST_AT_THE_DOOR)
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._answers: queue.SimpleQueue[int] = queue.SimpleQueue()
        # The spool's ids by packet identifier; the thread's alone, so that no lock is held while paho holds one.
        self._under_way: dict[int, int] = {}
        self._turned_away = 0
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self.on_disk = path is not None
        """Whether events outlive the process; false also when the disk failed."""
        self.depth = 0
        """Events in the spool."""
        self.dropped = 0
        """Events that were lost since the spool was made: too many, too old, or the disk too slow."""

    def __enter__(self) -> Self:
        self._spool.__enter__()
        self._inherited = self._spool.last
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        self._woken.set()
        self._thread.join(2 * _GOODBYE_S)
        if self._thread.is_alive():
            log.warning("the outbox does not end; the disk hangs")
        else:
            self._spool.__exit__()

    def put(self, event: SpooledEvent) -> None:
        """Take an event; never waits."""
        try:
            self._door.put_nowait(event)
        except queue.Full:
            self._turned_away += 1
            log.warning("an event was dropped: the disk does not keep up")
        self._woken.set()

    def wake(self) -> None:
        """There is a connection: go on sending. For the network thread."""
        self._woken.set()

    def acknowledge(self, packet: int) -> None:
        """The broker has the event with this packet identifier. For the network thread."""
        self._answers.put(packet)
        self._woken.set()

    def _work(self) -> None:
        sent, deadline = 0, 0.0
        try:
            while True:
                self._woken.wait(_IDLE_S)
                self._woken.clear()
                stopping = self._stopping.is_set()
                sent = self._step(sent)
                if stopping:
                    deadline = deadline or time.monotonic() + _GOODBYE_S
                    if not self._under_way or time.monotonic() >= deadline:
                        return
                    self._woken.wait(0.05)
                    self._woken.set()
        except Exception:
            log.exception("outbox: stopped by a bug")

    def _step(self, sent: int) -> int:
        """Store what came in, forget what arrived, send what may go; the id of the last event sent."""
        came = []
        while not self._door.empty():
            came.append(self._door.get_nowait())
        self._spool.put(came)
        self._spool.remove(self._arrived())
        for ident, event in self._spool.after(sent, WINDOW - len(self._under_way)):
            left_s = self._expiry_s - self._age_s(ident, event)
            if left_s <= 0:
                log.warning("an event was dropped: after %.0f hours it is worth nothing", self._expiry_s / 3600)
                self._turned_away += 1
                self._spool.remove([ident])
            else:
                packet = self._send(event, left_s)
                if packet is None:
                    break
                self._under_way[packet] = ident
            sent = ident
        self.on_disk = self._spool.on_disk
        self.depth, self.dropped = self._spool.depth, self._spool.dropped + self._turned_away
        return sent

    def _age_s(self, ident: int, event: SpooledEvent) -> float:
        # A clock that was set back makes an event seem to come from the future; it is as good as new. A device without
        # a battery for its clock starts where it was switched off, perhaps weeks ago, and is put right when the network
        # comes: what this process made is no older than this process.
        age_s = max(0.0, time.time() - event.at)
        return age_s if ident <= self._inherited else min(age_s, time.monotonic() - self._started_s)

    def _arrived(self) -> list[int]:
        """Ids of the events whose answers came; other messages' answers are passed over."""
        found = []
        while not self._answers.empty():
            ident = self._under_way.pop(self._answers.get(), None)
            if ident is not None:
                found.append(ident)
        return found
