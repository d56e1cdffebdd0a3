"""HTTP/1.1 connections with limits on their number and on the time of requests and responses."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from operator import attrgetter

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .access import is_loopback

CONNECTIONS = 64
"""Largest number of open connections; a browser opens up to six. Each needs a file handle, so more are closed."""
PER_PEER = 24
"""Largest number of open connections of one address, except loopback, where a reverse proxy connects for everybody."""
_REQUEST_S = 10.0
"""Seconds within which a request must arrive completely."""
_STALLED_S = 20.0
"""Seconds after which a client that does not read its response is disconnected."""


class BoundedProtocol(H11Protocol):
    """Closes connections beyond the limits, and those of clients that send a request or read a response too slowly.

    Where there is no room for a new connection, the one that has waited longest for a request is closed, of the
    address with the most connections; so a client that opens many of them displaces only its own.
    """

    peer = ""
    waiting_since: float | None = None
    """Time since which the server waits for a request; None while it answers one."""
    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Accept a connection, and make room for it."""
        # asyncio sets this option only for sockets created with an explicit protocol number. Without it, the
        # second write of a response is delayed by 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)
        peer: str = (transport.get_extra_info("peername") or [""])[0]  # None if the client has already gone
        self.peer = peer.removeprefix("::ffff:")
        peers = Counter(one.peer for one in self._open())
        if peers.total() > CONNECTIONS:
            self._make_room(max(peers, key=peers.__getitem__))
        elif peers[self.peer] > PER_PEER and not is_loopback(self.peer):
            self._make_room(self.peer)
        self._watch()

    def _make_room(self, peer: str) -> None:
        waiting = [one for one in self._open() if one.peer == peer and one.waiting_since is not None]
        min(waiting, key=attrgetter("waiting_since"), default=self).transport.abort()

    def _open(self) -> Iterator[BoundedProtocol]:
        """Yield all connections, except those that are being closed."""
        for one in self.connections:
            if isinstance(one, BoundedProtocol) and not one.transport.is_closing():
                yield one

    def data_received(self, data: bytes) -> None:
        """Limit the time of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Note that the next request may come."""
        super().on_response_complete()
        # The next request is only expected; its deadline begins with its first byte.
        if self.waiting_since is None:
            self.waiting_since = self.loop.time()

    def pause_writing(self) -> None:
        """Limit the time in which the client reads nothing."""
        super().pause_writing()
        self._stalled = self.loop.call_later(_STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        _cancel(self._stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        _cancel(self._deadline)
        _cancel(self._stalled)
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self.waiting_since = None
            _cancel(self._deadline)
            self._deadline = None
        elif self._deadline is None:
            self.waiting_since = self.loop.time()
            self._deadline = self.loop.call_later(_REQUEST_S, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
