"""HTTP routes of the dashboard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

from ..web.access import Access, Guard
from ..web.server import theme
from .images import Images
from .prometheus import Counts, metrics_text
from .state import DashboardState

if TYPE_CHECKING:
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

VIEWERS = 8
"""Largest number of simultaneous event streams; a dashboard open in a browser uses one."""
_TICK_S = 0.2
"""Interval between updates to a viewer; people cannot read labels that change faster."""
_HEARTBEAT_TICKS = 25
"""Number of ticks without changes after which the time alone is sent, so that the browser does not reconnect."""
_ABORT_S = 0.5

Region = tuple[float, float, float, float]
STATIC = {"/": "index.html", "/dashboard.css": "dashboard.css", "/dashboard.js": "dashboard.js"}
_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_encode = msgspec.json.Encoder().encode


@dataclass
class Sources:
    """Data that the dashboard shows: messages, images, regions and frame counts."""

    state: DashboardState
    images: Images
    region: Callable[[str], Region]
    counts: Callable[[str], Counts | None]
    closing: bool = False
    """Set to end the event streams."""
    viewers: int = 0

    def changes(self, version: int) -> tuple[int, dict[str, Any]]:
        """Return the changes since a version (see `DashboardState.since`); for version 0, also the constant values."""
        newest, changes = self.state.since(version)
        if not version:
            changes = {"v": 1, "device": self.state.device, "cameras": {}, "events": [], **changes}
            changes["cameras"] = {
                name: {"region": self.region(name), "points": [], "labels": [], **camera}
                for name, camera in changes["cameras"].items()
            }
        return newest, changes


def make_app(sources: Sources, access: Access) -> ASGIApp:
    """Create the web application, for those who have access."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    folder = files(__package__) / "static"
    static = {path: (folder / name).read_bytes() for path, name in STATIC.items()} | {"/theme.css": theme()}

    async def file(request: Request) -> Response:
        suffix = STATIC.get(request.url.path, request.url.path).rsplit(".", 1)[1]
        return Response(static[request.url.path], media_type=_TYPES[suffix])

    async def state(_request: Request) -> Response:
        return Response(_encode(sources.changes(0)[1]), media_type="application/json")

    async def events(request: Request) -> Response:
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        return _stream(sources)

    async def image(request: Request) -> Response:
        name = request.path_params["camera"]
        if name not in sources.state.cameras:
            return PlainTextResponse("no such camera\n", 404)
        live = request.url.path.endswith(".jpg")
        data = await (sources.images.live(name) if live else sources.images.model(name))
        # 204, not an error: a camera that has not delivered a frame yet is normal.
        return Response(status_code=204) if data is None else Response(data, media_type=_image_type(live=live))

    async def metrics(_request: Request) -> Response:
        text, content_type = metrics_text(sources.state, sources.counts)
        return Response(text, headers={"content-type": content_type})

    async def healthy(_request: Request) -> Response:
        started = sources.state.value("info") is not None
        return PlainTextResponse("ok\n") if started else PlainTextResponse("starting\n", 503)

    async def nothing(_request: Request) -> Response:
        return Response(status_code=204)

    routes = [Route(path, file) for path in static]
    routes += [
        Route("/api/state", state),
        Route("/api/events", events),
        Route("/camera/{camera}.jpg", image),
        Route("/camera/{camera}/model.png", image),
        Route("/metrics", metrics),
        Route("/healthz", healthy),
        Route("/favicon.ico", nothing),
    ]
    app = Starlette(routes=routes, middleware=[Middleware(Guard, access=access)])
    app.router.redirect_slashes = False
    return app


def _image_type(*, live: bool) -> str:
    return "image/jpeg" if live else "image/png"


def _stream(sources: Sources) -> Response:
    """Stream the whole state, then the changes, until the viewer disconnects."""
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
                await _send_changes(sources, send, gone)
            finally:
                sources.viewers -= 1
                gone.cancel()

    # Without this header, nginx would collect the events and pass them on in blocks.
    stream = Stream(media_type="text/event-stream", headers={"x-accel-buffering": "no"})
    del stream.headers["content-length"]
    return stream


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_changes(sources: Sources, send: Send, gone: asyncio.Future[None]) -> None:
    version, quiet = 0, 0
    while not (gone.done() or sources.closing):
        kind = b"changes" if version else b"state"
        newest, changes = sources.changes(version)
        quiet = quiet + 1 if newest == version else 0
        if quiet % _HEARTBEAT_TICKS == 0:
            # Waits while this viewer's connection is full; later changes are then sent together.
            body = b"event: " + kind + b"\ndata: " + _encode(changes) + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})
        version = newest
        await asyncio.wait({gone}, timeout=_TICK_S)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def stop(server: uvicorn.Server) -> None:
    """Begin to stop the server; a moment later, abort connections that do not read. Call in its event loop."""
    server.should_exit = True

    def abort() -> None:
        for connection in list(server.server_state.connections):
            connection.transport.abort()

    asyncio.get_running_loop().call_later(_ABORT_S, abort)
