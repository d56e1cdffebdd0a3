"""The page's HTTP: which addresses there are, who may ask, and how much."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

from .board import Board
from .metrics import Counts, metrics_text
from .pictures import Pictures

if TYPE_CHECKING:
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

VIEWERS = 8
"""Streams of events at once; a page open in a browser takes one."""
CONNECTIONS = 64
"""At once; a browser takes up to six. More are closed unanswered: each costs the agent a file handle."""
HEADER_BYTES = 16 * 1024
_REQUEST_S = 10.0
"""For a request to arrive whole."""
_TICK_S = 0.2
"""How often a viewer is told what is new: as often as an eye can read a label."""
_HEARTBEAT_TICKS = 25
"""Ticks without news after which the time alone is sent: the page takes a longer silence for a lost connection."""
_ABORT_S = 0.5

Region = tuple[float, float, float, float]
STATIC = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    # Pictures of the cameras are neither kept by browsers nor shown inside other sites.
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_encode = msgspec.json.Encoder().encode


@dataclass
class Sources:
    """What the page shows: the messages, and where pictures, regions and counts come from."""

    board: Board
    pictures: Pictures
    region: Callable[[str], Region]
    counts: Callable[[str], Counts | None]
    closing: bool = False
    """Set when the streams are to end."""
    viewers: int = 0

    def news(self, version: int) -> tuple[int, dict[str, Any]]:
        """See `Board.since`; everything also holds what does not change."""
        newest, news = self.board.since(version)
        if not version:
            news = {"v": 1, "device": self.board.device, "cameras": {}, "events": [], **news}
            news["cameras"] = {
                name: {"region": self.region(name), "points": [], "labels": [], **camera}
                for name, camera in news["cameras"].items()
            }
        return newest, news


def make_app(sources: Sources, *, loopback: bool) -> ASGIApp:
    """The web application; with ``loopback`` it answers only to the names of this machine itself."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    folder = files(__package__) / "static"
    static = {path: (folder / name).read_bytes() for path, name in STATIC.items()}

    async def file(request: Request) -> Response:
        suffix = STATIC[request.url.path].rsplit(".", 1)[1]
        return Response(static[request.url.path], media_type=_TYPES[suffix])

    async def state(_request: Request) -> Response:
        return Response(_encode(sources.news(0)[1]), media_type="application/json")

    async def events(request: Request) -> Response:
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        return _stream(sources)

    async def picture(request: Request) -> Response:
        name = request.path_params["camera"]
        if name not in sources.board.cameras:
            return PlainTextResponse("no such camera\n", 404)
        live = request.url.path.endswith(".jpg")
        data = await (sources.pictures.live(name) if live else sources.pictures.model(name))
        # No content is no error: a camera that has yet to deliver is an everyday thing.
        return Response(status_code=204) if data is None else Response(data, media_type=_picture_type(live=live))

    async def metrics(_request: Request) -> Response:
        text, content_type = metrics_text(sources.board, sources.counts)
        return Response(text, headers={"content-type": content_type})

    async def healthy(_request: Request) -> Response:
        started = sources.board.value("info") is not None
        return PlainTextResponse("ok\n") if started else PlainTextResponse("starting\n", 503)

    async def nothing(_request: Request) -> Response:
        return Response(status_code=204)

    routes = [Route(path, file) for path in STATIC]
    routes += [
        Route("/api/state", state),
        Route("/api/events", events),
        Route("/camera/{camera}.jpg", picture),
        Route("/camera/{camera}/model.png", picture),
        Route("/metrics", metrics),
        Route("/healthz", healthy),
        Route("/favicon.ico", nothing),
    ]
    app = Starlette(routes=routes, middleware=[Middleware(Guard, loopback=loopback)])
    app.router.redirect_slashes = False
    return app


def _picture_type(*, live: bool) -> str:
    return "image/jpeg" if live else "image/png"


def _stream(sources: Sources) -> Response:
    """Everything, then what is new, for as long as the viewer stays."""
    from starlette.responses import PlainTextResponse, Response

    class Stream(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if sources.viewers >= VIEWERS or sources.closing:
                refusal = PlainTextResponse("too many viewers\n", 503, {"retry-after": "10"})
                await refusal(scope, receive, send)
                return
            sources.viewers += 1
            gone = asyncio.ensure_future(_disconnected(receive))
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await _send_news(sources, send, gone)
            finally:
                sources.viewers -= 1
                gone.cancel()

    stream = Stream(media_type="text/event-stream")
    del stream.headers["content-length"]
    return stream


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_news(sources: Sources, send: Send, gone: asyncio.Future[None]) -> None:
    version, quiet = 0, 0
    while not (gone.done() or sources.closing):
        kind = b"changes" if version else b"state"
        newest, news = sources.news(version)
        quiet = quiet + 1 if newest == version else 0
        if quiet % _HEARTBEAT_TICKS == 0:
            # Waits while this viewer's connection is full; what changes meanwhile is sent in one piece afterwards.
            body = b"event: " + kind + b"\ndata: " + _encode(news) + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})
        version = newest
        await asyncio.wait({gone}, timeout=_TICK_S)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class Guard:
    """Refuses what no viewer of this page asks, and says in every answer what browsers may do with it.

    Args:
        app: what is guarded.
        loopback: refuse hosts that are not this machine: another site whose name was made to point
            here would otherwise read the cameras through its visitor's browser (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, *, loopback: bool) -> None:
        self.app = app
        self.loopback = loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        from starlette.datastructures import MutableHeaders
        from starlette.responses import PlainTextResponse

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        host = next((value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"host"), "")
        answer: Callable[[Scope, Receive, Send], Awaitable[None]] = self.app
        if scope["type"] != "http":
            return
        if scope["method"] not in ("GET", "HEAD"):
            answer = PlainTextResponse("only GET and HEAD\n", 405, {"allow": "GET, HEAD"})
        elif self.loopback and not is_this_machine(host):
            answer = PlainTextResponse("this page answers to localhost and 127.0.0.1 only\n", 421)
        await answer(scope, receive, guarded)


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


def stop(server: uvicorn.Server, sources: Sources) -> None:
    """Begin to end, in the server's event loop: streams at once, those who do not read with force."""
    sources.closing = server.should_exit = True

    def abort() -> None:
        for connection in list(server.server_state.connections):
            connection.transport.abort()

    asyncio.get_running_loop().call_later(_ABORT_S, abort)
