"""HTTP as all our pages and services speak it: who may ask, how much, and what browsers may do with the answer.

Needs the extra ``review`` (starlette and uvicorn), which is imported only when it is used.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from .errors import ConfigError

if TYPE_CHECKING:
    import uvicorn
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

CONNECTIONS = 64
"""At once; a browser takes up to six. More are closed unanswered: each costs a file handle."""
HEADER_BYTES = 16 * 1024
_REQUEST_S = 10.0
"""For a request to arrive whole."""
_COOKIE = "edgeloop"

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    # Images of the cameras are neither kept by browsers nor shown inside other sites.
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Refuses what nobody has to ask here, and says in every answer what browsers may do with it.

    Args:
        app: what is guarded.
        loopback: refuse hosts that are not this machine: another site whose name was made to point
            here would otherwise read the images through its visitor's browser (DNS rebinding).
        methods: the others are refused. Those that change something are refused from other sites' pages, too.
        token: who does not know it is refused. It comes in the address once (``?token=``) and is kept as a cookie, or
            as ``Authorization: Bearer``.
    """

    def __init__(
        self, app: ASGIApp, *, loopback: bool, methods: tuple[str, ...] = ("GET", "HEAD"), token: str | None = None
    ) -> None:
        self.app = app
        self.loopback = loopback
        self.methods = methods
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        from starlette.datastructures import MutableHeaders
        from starlette.requests import ClientDisconnect
        from starlette.responses import PlainTextResponse

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] != "http":
            return
        headers = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
        host, answer = headers.get(b"host", ""), self.app
        if scope["method"] not in self.methods:
            named = " and ".join(self.methods)
            answer = PlainTextResponse(f"only {named}\n", 405, {"allow": ", ".join(self.methods)})
        elif self.loopback and not is_this_machine(host):
            answer = PlainTextResponse("this page answers to localhost and 127.0.0.1 only\n", 421)
        elif scope["method"] not in ("GET", "HEAD") and not _is_own_page(headers, host):
            answer = PlainTextResponse("refused: asked by the page of another site\n", 403)
        elif self.token is not None:
            answer = self._answer_to(self.token, scope, headers)
        # Who leaves in the middle of a request is nobody's mistake, and could fill the log.
        with suppress(ClientDisconnect):
            await answer(scope, receive, guarded)

    def _answer_to(
        self, token: str, scope: Scope, headers: dict[bytes, str]
    ) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        from http.cookies import CookieError, SimpleCookie

        from starlette.responses import PlainTextResponse, RedirectResponse

        # Browsers share cookies between the ports of a machine.
        cookie = f"{_COOKIE}-{scope['server'][1]}"
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        if _same(query.get("token", [""])[0], token) and scope["method"] == "GET":
            # Out of the address at once, where it would be shown, bookmarked and passed on.
            answer = RedirectResponse(scope["path"], 303)
            answer.set_cookie(cookie, token, httponly=True, samesite="strict")
            return answer
        try:
            kept = SimpleCookie(headers.get(b"cookie", "")).get(cookie)
        except CookieError:
            kept = None
        bearer = headers.get(b"authorization", "").removeprefix("Bearer ")
        if _same(bearer, token) or (kept is not None and _same(kept.value, token)):
            return self.app
        return PlainTextResponse("open the whole address that was printed, with its token\n", 401)


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("latin-1", "replace"), token.encode())


def _is_own_page(headers: dict[bytes, str], host: str) -> bool:
    """Whether a request that changes something comes from no browser, or from a page of this very server."""
    if headers.get(b"sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get(b"origin")
    return origin is None or urlsplit(origin).netloc == host


def theme() -> bytes:
    """The style sheet that all pages share: colours by day and by night, type, cards, buttons."""
    return (files(__package__) / "theme.css").read_bytes()


async def read_body(request: Request, limit: int) -> bytes:
    """A request's body.

    Raises:
        HTTPException: 413, it is over ``limit`` bytes.
    """
    from starlette.exceptions import HTTPException

    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise HTTPException(413, f"over {limit} bytes\n")
    return bytes(body)


def is_this_machine(host: str) -> bool:
    """Whether a Host header names the loopback interface itself, with any port or none."""
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, ""
    return name.lower() in ("localhost", "127.0.0.1", "[::1]") and (not port or (port.isascii() and port.isdigit()))


def is_loopback(host: str) -> bool:
    """Whether an address to listen at is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def make_server(app: ASGIApp) -> uvicorn.Server:
    """A server whose connections are bounded in number, in size and in patience."""
    import h11
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Bounded(H11Protocol):
        """Closes connections over the limit, and those whose request does not come to an end."""

        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # theirs, too
            # asyncio does so only for sockets that were made with the protocol's number; an answer's two writes
            # would else wait 40 ms for one another.
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            super().connection_made(transport)
            if len(self.connections) > CONNECTIONS:
                transport.abort()
            else:
                self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
            super().connection_lost(exc)

        def _watch(self) -> None:
            if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
                if self._deadline is not None:
                    self._deadline.cancel()
                self._deadline = None
            elif self._deadline is None:
                self._deadline = self.loop.call_later(_REQUEST_S, self.transport.abort)

    config = uvicorn.Config(
        app,
        http=Bounded,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        # Below it are mere complaints about clients, which anybody who sends rubbish could fill the log with.
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=1,
        backlog=CONNECTIONS,
    )
    return uvicorn.Server(config)


def listen(host: str, port: int, *, what: str, remedy: str) -> list[socket.socket]:
    """Sockets that listen there; ``localhost`` may be two.

    Args:
        host: a name or an address of this machine.
        port: 0 for any that is free.
        what: listens there, for the message.
        remedy: what to do where that is not possible, for the message.

    Raises:
        ConfigError: none can.
    """
    where = f"{what}: cannot listen at {host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}; {remedy}") from error
    sockets, problem = [], ""
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        try:
            # IPv6's "everywhere" is meant to be everywhere.
            both = address[0] == "::" and socket.has_dualstack_ipv6()
            sockets.append(socket.create_server(address[:2], family=family, backlog=CONNECTIONS, dualstack_ipv6=both))
        except OSError as error:
            problem = os.strerror(error.errno) if error.errno else str(error)
            if error.errno == errno.EADDRINUSE:
                break
    else:
        problem = "" if sockets else problem
    if problem:
        for opened in sockets:
            opened.close()
        raise ConfigError(f"{where}: {problem}; {remedy}")
    return sockets
