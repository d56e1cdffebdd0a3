"""HTTP server with access control, limits and security headers; all web pages and services of edgeloop use it.

Needs the extra ``review`` (starlette and uvicorn), which is imported only on use.
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
"""Largest number of open connections; a browser opens up to six. Each needs a file handle, so more are closed."""
HEADER_BYTES = 16 * 1024
_REQUEST_S = 10.0
"""Seconds within which a request must arrive completely."""
_COOKIE = "edgeloop"

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    # Browsers must not cache camera images, and other sites must not embed them.
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware that refuses unwanted requests and adds security headers to every response.

    Args:
        app: the application to protect.
        loopback: refuse requests whose Host header does not name this machine. Otherwise another site could let its
            name point to this machine and read the images through a visitor's browser (DNS rebinding).
        methods: accepted methods. A method that changes something is refused if a page of another site uses it.
        token: token that clients must send: either as ``Authorization: Bearer``, or once in the URL (``?token=``) and
            from then on as a cookie.
    """

    def __init__(
        self, app: ASGIApp, *, loopback: bool, methods: tuple[str, ...] = ("GET", "HEAD"), token: str | None = None
    ) -> None:
        self.app = app
        self.loopback = loopback
        self.methods = methods
        self.token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
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
            allowed = " and ".join(self.methods)
            answer = PlainTextResponse(f"method not allowed; use {allowed}\n", 405, {"allow": ", ".join(self.methods)})
        elif self.loopback and not is_this_machine(host):
            answer = PlainTextResponse("this server is available only as localhost or 127.0.0.1\n", 421)
        elif scope["method"] not in ("GET", "HEAD") and not _is_own_page(headers, host):
            answer = PlainTextResponse("refused: the request comes from a page of another site\n", 403)
        elif self.token is not None:
            answer = self._check_token(self.token, scope, headers)
        # A client that disconnects during a request is not an error and must not fill the log.
        with suppress(ClientDisconnect):
            await answer(scope, receive, guarded)

    def _check_token(
        self, token: str, scope: Scope, headers: dict[bytes, str]
    ) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        from http.cookies import CookieError, SimpleCookie

        from starlette.responses import PlainTextResponse, RedirectResponse

        # With the port in the name, because browsers share cookies between the ports of a machine.
        cookie = f"{_COOKIE}-{scope['server'][1]}"
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        if _same(query.get("token", [""])[0], token) and scope["method"] == "GET":
            # Remove the token from the URL at once, where it could be seen, bookmarked or shared.
            answer = RedirectResponse(scope["path"], 303)
            answer.set_cookie(cookie, token, httponly=True, samesite="strict")
            return answer
        try:
            stored = SimpleCookie(headers.get(b"cookie", "")).get(cookie)
        except CookieError:
            stored = None
        bearer = headers.get(b"authorization", "").removeprefix("Bearer ")
        if _same(bearer, token) or (stored is not None and _same(stored.value, token)):
            return self.app
        return PlainTextResponse("the token is missing or wrong; open the complete URL that was printed\n", 401)


def _same(value: str, token: str) -> bool:
    return hmac.compare_digest(value.encode("latin-1", "replace"), token.encode())


def _is_own_page(headers: dict[bytes, str], host: str) -> bool:
    """Return whether a request comes from a page of this server, or not from a browser at all."""
    if headers.get(b"sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get(b"origin")
    return origin is None or urlsplit(origin).netloc == host


def theme() -> bytes:
    """Return the style sheet that all pages share: light and dark colours, fonts, cards, buttons."""
    return (files(__package__) / "theme.css").read_bytes()


async def read_body(request: Request, limit: int) -> bytes:
    """Read the body of a request.

    Raises:
        HTTPException: 413 if the body has more than ``limit`` bytes.
    """
    from starlette.exceptions import HTTPException

    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise HTTPException(413, f"more than {limit} bytes\n")
    return bytes(body)


def is_this_machine(host: str) -> bool:
    """Return whether a Host header names the loopback interface, with or without a port."""
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, ""
    return name.lower() in ("localhost", "127.0.0.1", "[::1]") and (not port or (port.isascii() and port.isdigit()))


def is_loopback(host: str) -> bool:
    """Return whether a listening address can be reached only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Create a server with limits on the number of connections, the size of headers and the time of a request."""
    import h11
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Bounded(H11Protocol):
        """Closes connections that exceed the limit, and connections whose request does not arrive in time."""

        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
            # asyncio sets this option only for sockets created with an explicit protocol number. Without it, the
            # second write of a response is delayed by 40 ms.
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
        # Lower levels report invalid requests, with which any client could fill the log.
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
    """Open listening sockets. There may be two for ``localhost``.

    Args:
        host: host name or address of this machine.
        port: port number; 0 picks any free port.
        what: name of the server for error messages.
        remedy: what the user can do, for error messages.

    Raises:
        ConfigError: no socket can listen on this address.
    """
    where = f"{what}: cannot listen on {host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}; {remedy}") from error
    sockets, problem = [], ""
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        try:
            # "::" means all addresses, including those of IPv4.
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
