"""HTTP API of the review page: groups of frames, annotations and images."""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import cv2
import msgspec

from edge_agent.errors import DataError, ImageError, one_line
from edge_agent.images import read_image
from edge_agent.web.access import Access, Guard
from edge_agent.web.server import read_body, theme

from .export import as_csv
from .filters import FrameFilter
from .session import Session

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import ASGIApp

STATIC = {"/": "index.html", "/review.css": "review.css", "/review.js": "review.js"}
_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
SIDES = (256, 1024, 4096)
"""Sizes in which an image can be requested: length of the longer side in pixels."""
MAX_BODY_BYTES = 2**20
_KEPT_BYTES = 96 * 2**20
Result = TypeVar("Result")
_encode = msgspec.json.Encoder().encode
_Name = Annotated[str, msgspec.Meta(max_length=100)]
_Hashes = Annotated[tuple[_Name, ...], msgspec.Meta(max_length=2000)]


class GroupsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a request for the next groups."""

    client: _Name
    holding: _Hashes = ()
    count: Annotated[int, msgspec.Meta(ge=1, le=50)] = 8
    wanted: FrameFilter = FrameFilter()


class AnnotationRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a request to annotate frames."""

    frames: _Hashes
    verdict: _Name
    label: str = ""
    by: _Name = ""


class Images:
    """Images of frames as JPEG files in several sizes, with a memory cache of the latest ones. Thread-safe."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def jpeg(self, sha256: str, side: int) -> bytes:
        """Return a frame's image, scaled down to ``side`` pixels but never up.

        Raises:
            ImageError: the frame is unknown, or its file no longer exists or is not an image.
        """
        key = sha256, side
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return kept
        frame = self._session.frame(sha256)
        if frame is None:
            raise ImageError("no such frame")
        image = read_image(self._session.folder / frame.path)
        scale = side / max(image.shape[:2])
        if scale < 1:
            width, height = (max(1, round(scale * length)) for length in (image.shape[1], image.shape[0]))
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]  # resize keeps uint8
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = data
                self._bytes += len(data)
            while self._bytes > _KEPT_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return data


class Handlers:
    """Request handlers of the page."""

    def __init__(self, session: Session, *, you: str) -> None:
        self._session, self._you = session, you
        self._images = Images(session)
        folder = files(__package__) / "static"
        self._static = {path: (folder / name).read_bytes() for path, name in STATIC.items()}
        self._static["/theme.css"] = theme()

    def routes(self) -> list[Route]:
        """Return all routes."""
        from starlette.routing import Route

        return [
            *(Route(path, self.file) for path in self._static),
            Route("/api/state", self.state),
            Route("/api/next", self.next_groups, methods=["POST"]),
            Route("/api/decide", self.decide, methods=["POST"]),
            Route("/frame/{sha256}.jpg", self.image),
            Route("/labels.csv", self.labels),
            Route("/favicon.ico", self.nothing),
        ]

    async def file(self, request: Request) -> Response:
        """Send a static file of the page."""
        path = request.url.path
        suffix = STATIC.get(path, path).rsplit(".", 1)[1]
        return _answer(self._static[path], media_type=_TYPES[suffix])

    async def state(self, _request: Request) -> Response:
        """Send progress, classes and filter values."""
        found = await in_thread(self._session.state)
        return _json({**found, "you": self._you})

    async def next_groups(self, request: Request) -> Response:
        """Send the page the next groups of frames to annotate, the most valuable first."""
        body = await _body(request, GroupsRequest)
        if isinstance(body, str):
            return _json({"error": body}, 400)
        groups = partial(
            self._session.groups, body.client, holding=body.holding, count=body.count, criteria=body.wanted
        )
        return _json(await in_thread(groups))

    async def decide(self, request: Request) -> Response:
        """Save an annotation, and answer when it is on the disk."""
        body = await _body(request, AnnotationRequest)
        if isinstance(body, str):
            return _json({"error": body}, 400)
        try:
            annotate = partial(self._session.annotate, body.frames, body.verdict, body.label, body.by)
            result = await in_thread(annotate)
        except DataError as error:
            return _json({"error": one_line(error)}, 400)
        except OSError as error:
            remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "fix the cause"
            message = f"cannot write to {self._session.folder}: {error.strerror}; {remedy}, nothing is lost until then"
            return _json({"error": message}, 507)
        return _json(result)

    async def image(self, request: Request) -> Response:
        """Send a frame's image in the requested size."""
        side = request.query_params.get("side", str(SIDES[0]))
        if side not in {str(allowed) for allowed in SIDES}:
            return _answer(f"side must be one of {SIDES}\n".encode(), 400)
        try:
            data = await in_thread(partial(self._images.jpeg, request.path_params["sha256"], int(side)))
        except ImageError as error:
            return _answer(f"{one_line(error)}\n".encode(), 404)
        # The URL contains the hash of the image, so the answer never changes.
        return _answer(data, media_type="image/jpeg", cache="private, max-age=86400, immutable")

    async def labels(self, _request: Request) -> Response:
        """Send all labels as a CSV file."""
        labelled = await in_thread(self._session.labelled)
        text = as_csv((frame.path, annotation.label) for frame, annotation in labelled if annotation.verdict == "label")
        return _answer(text.encode(), media_type="text/csv; charset=utf-8")

    async def nothing(self, _request: Request) -> Response:
        """Answer the browser's request for an icon; there is none."""
        return _answer(b"", 204)


def make_app(session: Session, *, access: Access, you: str = "") -> ASGIApp:
    """Return the web application of one session.

    Args:
        session: the folder under review.
        access: who may use the page.
        you: initial name of the annotator; can be changed on the page.
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware

    guard = Middleware(Guard, access=access, methods=("GET", "HEAD", "POST"))
    app = Starlette(routes=Handlers(session, you=you).routes(), middleware=[guard])
    app.router.redirect_slashes = False
    return app


async def in_thread(work: Callable[[], Result]) -> Result:
    """Run blocking work in a thread, so that other requests are not delayed."""
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(work)


def _answer(data: bytes, status: int = 200, *, media_type: str = "text/plain", cache: str | None = None) -> Response:
    from starlette.responses import Response

    return Response(data, status, {"cache-control": cache} if cache else None, media_type=media_type)


def _json(value: object, status: int = 200) -> Response:
    return _answer(_encode(value), status, media_type="application/json")


async def _body(request: Request, kind: Any) -> Any:
    """Return the decoded body of a request, or an error message."""
    data = await read_body(request, MAX_BODY_BYTES)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return one_line(error)
