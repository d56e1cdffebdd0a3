"""Decides which requests a web page or service answers, and adds security headers to every response."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

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


@dataclass(frozen=True)
class Access:
    """Who may use a server.

    Attributes:
        loopback: whether only this machine can connect.
        secret: password or token that clients must send; None for none.
        hosts: names, in lower case, that the Host header may have besides those of this machine and IP addresses.
        remedy: what adds a name to ``hosts``, for error messages.
    """

    loopback: bool = True
    secret: str | None = None
    hosts: frozenset[str] = frozenset()
    remedy: str = ""

    @classmethod
    def on(cls, host: str, *, secret: str | None = None, hosts: Iterable[str] = (), remedy: str) -> Access:
        """Return the access to a server that listens on ``host``."""
        return cls(is_loopback(host), secret, frozenset(name.lower() for name in hosts), remedy)

    def allows_name(self, host: str) -> bool:
        """Return whether a server answers requests with this Host header.

        Otherwise another site could let its own name point to this machine, and read the images through the browser of
        a visitor (DNS rebinding). That is impossible with an IP address instead of a name.
        """
        name = _without_port(host)
        if name is None:
            return False
        if name in ("localhost", "127.0.0.1", "[::1]") or name in self.hosts:
            return True
        own = socket.gethostname().lower()
        return not self.loopback and (name in (own, f"{own}.local") or _is_address(name.strip("[]")))

    def allows_page(self, method: str, headers: dict[bytes, str], host: str) -> bool:
        """Return whether a request comes from a page of this server, from a followed link, or from no browser."""
        site = headers.get(b"sec-fetch-site")
        if site in ("same-origin", "none"):
            return True
        if site is not None:
            opened = headers.get(b"sec-fetch-mode") == "navigate" and headers.get(b"sec-fetch-dest") == "document"
            return opened and method in ("GET", "HEAD")
        # Browsers send no Sec-Fetch headers over plain HTTP, except to this machine.
        origin = headers.get(b"origin")
        if origin is None:
            return True
        with suppress(ValueError):
            origin = urlsplit(origin).netloc
        return origin == host or _without_port(origin) in self.hosts

    def allows_secret(self, headers: dict[bytes, str], cookie: str) -> bool:
        """Return whether a request has the password or token: as password, as bearer token, or as cookie."""
        from http.cookies import CookieError, SimpleCookie

        scheme, _, credentials = headers.get(b"authorization", "").partition(" ")
        given = [credentials] if scheme.lower() == "bearer" else []
        if scheme.lower() == "basic":
            with suppress(binascii.Error, UnicodeDecodeError):
                given.append(base64.b64decode(credentials).decode().partition(":")[2])
        with suppress(CookieError):
            stored = SimpleCookie(headers.get(b"cookie", "")).get(cookie)
            given += [stored.value] if stored is not None else []
        return any(self.is_secret(one) for one in given)

    def is_secret(self, value: str) -> bool:
        """Return whether ``value`` is the secret, in a time that does not depend on how much of it is right."""
        return self.secret is not None and hmac.compare_digest(value.encode("utf-8", "replace"), self.secret.encode())


class Guard:
    """ASGI middleware that refuses unwanted requests and adds security headers to every response.

    Args:
        app: the application to protect.
        access: who may use it. A secret can also be sent once in the URL (``?token=``); it then becomes a cookie.
        methods: accepted methods.
    """

    def __init__(self, app: ASGIApp, *, access: Access, methods: tuple[str, ...] = ("GET", "HEAD")) -> None:
        self.app = app
        self.access = access
        self.methods = methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        from starlette.datastructures import MutableHeaders
        from starlette.requests import ClientDisconnect

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] != "http":
            return
        # A client that disconnects during a request is not an error and must not fill the log.
        with suppress(ClientDisconnect):
            await self._answer(scope)(scope, receive, guarded)

    def _answer(self, scope: Scope) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        from starlette.responses import PlainTextResponse, RedirectResponse

        headers = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
        refused = self._refusal(scope["method"], headers)
        if refused is not None:
            return refused
        if self.access.secret is None:
            return self.app
        # With the port in the name, because browsers share cookies between the ports of a machine.
        cookie = f"{_COOKIE}-{scope['server'][1]}"
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        if scope["method"] == "GET" and self.access.is_secret(query.get("token", [""])[0]):
            # Remove the token from the URL at once, where it could be seen, bookmarked or shared. The new address is
            # relative, because a reverse proxy may serve the page below another path.
            answer = RedirectResponse("./" + scope["path"].rpartition("/")[2], 303)
            answer.set_cookie(cookie, self.access.secret, httponly=True, samesite="strict")
            return answer
        if self.access.allows_secret(headers, cookie):
            return self.app
        return PlainTextResponse(
            "the password or token is missing or wrong; enter it as password, or open the complete URL that was "
            "printed\n",
            401,
            {"www-authenticate": 'Basic realm="edgeloop", charset="UTF-8"'},
        )

    def _refusal(self, method: str, headers: dict[bytes, str]) -> Response | None:
        from starlette.responses import PlainTextResponse

        host = headers.get(b"host", "")
        if method not in self.methods:
            allowed = " and ".join(self.methods)
            return PlainTextResponse(f"method not allowed; use {allowed}\n", 405, {"allow": ", ".join(self.methods)})
        if not self.access.allows_name(host):
            where = "localhost or 127.0.0.1" if self.access.loopback else "the IP address or the name of this machine"
            return PlainTextResponse(
                f"this server is available only as {where}; to allow another name, {self.access.remedy}\n", 421
            )
        if not self.access.allows_page(method, headers, host):
            return PlainTextResponse("refused: the request comes from a page of another site\n", 403)
        return None


def is_loopback(host: str) -> bool:
    """Return whether a listening address can be reached only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _without_port(host: str) -> str | None:
    """Return the name or address in a Host header, in lower case; None if the header is malformed."""
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, ""
    return name.lower() if not port or (port.isascii() and port.isdigit()) else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
