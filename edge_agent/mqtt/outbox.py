"""Delivery of events through the spool, in order, even after a long outage of the broker."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from ..clock import Stamp, age_s
from .connection import WINDOW, Refusal
from .spool import Spool, SpooledEvent, Waiting

log = logging.getLogger(__name__)

MAX_INCOMING = 1000
"""Maximum number of events that wait to be written if the disk hangs. Further events are dropped and counted."""
_STOP_TIMEOUT_S = 2.0
_IDLE_S = 60.0
_RETRY_S, _MAX_RETRY_S = 5.0, 60.0
"""Seconds until an event is sent again after a refusal, such as an exceeded quota or a missing permission; doubled each
time, up to the maximum."""


class Outbox:
    """Accepts events without blocking, keeps them in a `Spool`, and sends them. A context manager.

    Only its own thread accesses the disk. An event stays in the spool until the broker has accepted it. An event that
    was not acknowledged when the connection or the process ended is sent again. Events on a topic on which the broker
    refused one wait, and are tried again later, without holding up the others.

    Args:
        path: File of the spool; None keeps events in memory.
        send: Function that sends an event and returns an identifier for `acknowledge`, None if it cannot be sent now,
            or a refusal if it never can. It is called with the event and the seconds until it expires.
        expiry_s: Seconds after which an undelivered event is dropped.
    """

    def __init__(
        self, path: Path | None, send: Callable[[SpooledEvent, float], int | Refusal | None], *, expiry_s: float
    ) -> None:
        self._spool = Spool(path)
        self._send = send
        self._expiry_s = expiry_s
        self._incoming: queue.Queue[SpooledEvent] = queue.Queue(MAX_INCOMING)
        self._wake_up = threading.Event()
        self._stopping = threading.Event()
        # Packet identifiers with the refusal, if any; None for a lost connection.
        self._answers: queue.SimpleQueue[tuple[int, Refusal | None] | None] = queue.SimpleQueue()
        # Events under way by packet identifier. Only the outbox thread uses it, so it needs no lock.
        self._in_flight: dict[int, Waiting] = {}
        self._refused: dict[str, _RefusedTopic] = {}
        self._dropped_here = 0
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self.latest: Sequence[SpooledEvent] = ()
        """The newest event on each topic at the start, from earlier processes, too."""
        self.on_disk = path is not None
        """Whether events survive a restart of the process; False if the disk has failed."""
        self.depth = 0
        """Number of events in the spool."""
        self.dropped = 0
        """Number of events lost since the spool was created: too many, too old, impossible, or the disk too slow."""
        self.refused = 0
        """Number of times the broker has refused an event since the start."""

    def __enter__(self) -> Self:
        self._spool.__enter__()
        self.latest = self._spool.latest()
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

    @property
    def is_working(self) -> bool:
        """Whether the thread runs, as it should from start to stop."""
        return self._thread.ident is None or self._thread.is_alive() or self._stopping.is_set()

    def put(self, event: SpooledEvent) -> None:
        """Queue an event. Never blocks."""
        try:
            self._incoming.put_nowait(event)
        except queue.Full:
            self._dropped_here += 1
            log.warning("dropped an event: the disk does not keep up")
        self._wake_up.set()

    def wake(self) -> None:
        """Continue sending. Called by the network thread."""
        self._wake_up.set()

    def acknowledge(self, packet: int, refusal: Refusal | None = None) -> None:
        """Mark the event with this packet identifier as delivered or refused. Called by the network thread."""
        self._answers.put((packet, refusal))
        self._wake_up.set()

    def connection_lost(self) -> None:
        """Send again what was not acknowledged, once there is a connection. Called by the network thread."""
        self._answers.put(None)
        self._wake_up.set()

    def _work(self) -> None:
        deadline = 0.0
        try:
            while True:
                self._wake_up.wait(self._idle_s())
                self._wake_up.clear()
                stopping = self._stopping.is_set()
                self._step()
                if stopping:
                    deadline = deadline or time.monotonic() + _STOP_TIMEOUT_S
                    if not self._in_flight or time.monotonic() >= deadline:
                        return
                    self._wake_up.wait(0.05)
                    self._wake_up.set()
        except Exception:
            log.exception("outbox: stopped by an unexpected error")

    def _idle_s(self) -> float:
        """Seconds until there may be something to do without a wake-up."""
        now_s = time.monotonic()
        return min([_IDLE_S, *(max(0.0, topic.retry_s - now_s) for topic in self._refused.values())])

    def _step(self) -> None:
        """Store new events, remove delivered ones and send waiting ones."""
        new = []
        while not self._incoming.empty():
            new.append(self._incoming.get_nowait())
        self._spool.put(new)
        self._spool.remove(self._settled())
        now_s, now = time.monotonic(), Stamp.now()
        under_way = {waiting.id for waiting in self._in_flight.values()}
        on_trial = {waiting.event.topic for waiting in self._in_flight.values()} & self._refused.keys()
        held = {name for name, topic in self._refused.items() if topic.retry_s > now_s} | on_trial
        for waiting in self._spool.waiting(WINDOW - len(under_way), except_ids=under_way, except_topics=held):
            event = waiting.event
            # An event whose age cannot be known, because the clock was not set, does not expire.
            left_s = self._expiry_s - (age_s(event.at, now) or 0.0)
            if left_s <= 0:
                log.warning("dropped an event: it could not be delivered for %.0f hours", self._expiry_s / 3600)
                self._dropped_here += 1
                self._spool.remove([waiting.id])
                continue
            if event.topic in on_trial:
                continue
            sent = self._send(event, left_s)
            if sent is None:
                break
            if isinstance(sent, Refusal):
                self._give_up(waiting, sent)
                self._spool.remove([waiting.id])
                continue
            self._in_flight[sent] = waiting
            if event.topic in self._refused:
                on_trial.add(event.topic)  # One event is enough to find out.
        self.on_disk = self._spool.on_disk
        self.depth, self.dropped = self._spool.depth, self._spool.dropped + self._dropped_here

    def _settled(self) -> list[int]:
        """Ids of the events that need not be sent again. Answers to other messages are ignored."""
        idents = []
        while not self._answers.empty():
            answer = self._answers.get()
            if answer is None:
                self._in_flight.clear()
                continue
            packet, refusal = answer
            waiting = self._in_flight.pop(packet, None)
            if waiting is None:
                continue
            topic = waiting.event.topic
            if refusal is not None and not refusal.lasting:
                self._hold(topic, refusal.reason)
                continue
            idents.append(waiting.id)
            if refusal is not None:
                self._give_up(waiting, refusal)
            elif self._refused.pop(topic, None) is not None:
                log.info("the broker accepts events on %s again", topic)
        return idents

    def _give_up(self, waiting: Waiting, refusal: Refusal) -> None:
        """Count an event that the broker would never accept."""
        log.warning("dropped an event on %s: %s", waiting.event.topic, refusal.reason)
        self._dropped_here += 1

    def _hold(self, topic: str, reason: str) -> None:
        """Stop sending events on a topic for a while."""
        self.refused += 1
        now_s = time.monotonic()
        held = self._refused.get(topic)
        if held is None:
            log.warning(
                "the broker refuses events on %s (%s); they wait in the spool and are tried again. Allow this device "
                "to publish on this topic in the broker's access list",
                topic,
                reason,
            )
        elif now_s < held.retry_s:
            return  # It was sent together with the one whose refusal is known.
        delay_s = _RETRY_S if held is None else min(_MAX_RETRY_S, 2 * held.delay_s)
        self._refused[topic] = _RefusedTopic(delay_s, now_s + delay_s)


class _RefusedTopic(NamedTuple):
    """A topic on which the broker refused an event. ``retry_s``: monotonic time of the next try."""

    delay_s: float
    retry_s: float
