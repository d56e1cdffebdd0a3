"""HTTP server: listening sockets, limits, and the style sheet of all pages."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    import uvicorn
    from starlette.requests import Request
    from starlette.types import ASGIApp

HEADER_BYTES = 16 * 1024
BACKLOG = 64
"""Connections that wait until the server accepts them."""


def theme() -> bytes:
    """Return the style sheet that all pages share: light and dark colours, fonts, cards, buttons."""
    return (files(__package__) / "theme.css").read_bytes()


async def read_body(request: Request, limit: int, *, on_chunk: Callable[[int], None] = lambda _bytes: None) -> bytes:
    """Read the body of a request.

    Args:
        request: the request.
        limit: largest accepted number of bytes.
        on_chunk: called with the number of bytes of each part that arrives; its exceptions are passed on.

    Raises:
        HTTPException: 413 if the body has more than ``limit`` bytes.
    """
    from starlette.exceptions import HTTPException

    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise HTTPException(413, f"more than {limit} bytes\n")
        on_chunk(len(chunk))
    return bytes(body)


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Create a server with limits on the size of headers and on connections; see `BoundedProtocol`."""
    import uvicorn

    from .protocol import BoundedProtocol

    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
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
        backlog=BACKLOG,
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
            sockets.append(socket.create_server(address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=both))
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
