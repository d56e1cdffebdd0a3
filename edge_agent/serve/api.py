"""The service's HTTP, and its description of itself (OpenAPI 3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from .._version import __version__
from ..bundle import Bundle
from ..errors import ImageError, one_line
from ..http_server import Guard, read_body
from ..inference.classifier import Result
from ..messages import UNKNOWN, ModelId, TopScore
from .workers import BusyError, Workers

if TYPE_CHECKING:
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

MOST_BYTES = 16 * 2**20
"""Of an image file. It may have 64 megapixels; see `edge_agent.images`."""
KINDS = ("image/jpeg", "image/png", "image/webp", "image/bmp")
_encode = msgspec.json.Encoder().encode


class Milliseconds(msgspec.Struct, frozen=True):
    """Wall time of preparing the image, and of the network."""

    preprocess: float
    inference: float


class Answer(msgspec.Struct, frozen=True):
    """What an image shows.

    ``label``: the best one, or `unknown` where its score is under the bundle's threshold. ``top``: the best ones, by
    score. ``model``: which said so.
    """

    label: str
    score: float
    top: tuple[TopScore, ...]
    model: ModelId
    timing_ms: Milliseconds


class About(msgspec.Struct, frozen=True):
    """The model: its classes, the pixels it looks at (height, width), the score a label must reach."""

    model: ModelId
    labels: tuple[str, ...]
    input_size: tuple[int, int]
    threshold: float


class Problem(msgspec.Struct, frozen=True):
    """Why a request was not answered."""

    error: str


class Service:
    """What each address does."""

    def __init__(self, bundle: Bundle, workers: Workers) -> None:
        manifest = bundle.manifest
        self._workers = workers
        self._model = ModelId(manifest.name, manifest.version, bundle.digest)
        self._threshold = manifest.thresholds.enter
        self._about = _encode(About(self._model, bundle.labels, manifest.preprocess.size, self._threshold))
        self._description = _encode(description(len(bundle.labels)))
        self._most = len(bundle.labels)

    async def classify(self, request: Request) -> Response:
        """Classify the image in the body."""
        top = request.query_params.get("top", "3")
        if not (top.isascii() and top.isdecimal() and len(top) < 5 and 1 <= int(top) <= self._most):
            return problem(f"top is a number from 1 to {self._most}", 400)
        data = await read_body(request, MOST_BYTES)
        try:
            result = await self._workers.classify(data)
        except ImageError as error:
            return problem(one_line(error), 422)
        except BusyError as error:
            return problem(str(error), 503, {"retry-after": "1"})
        return answer(_encode(self._told(result, int(top))))

    def _told(self, result: Result, count: int) -> Answer:
        best = [TopScore(label, round(score, 6)) for label, score in result.top(count)]
        label = best[0].label if best[0].score >= self._threshold else UNKNOWN
        spent = Milliseconds(round(result.preprocess_ms, 3), round(result.inference_ms, 3))
        return Answer(label, best[0].score, tuple(best), self._model, spent)

    async def about(self, _request: Request) -> Response:
        """The model."""
        return answer(self._about)

    async def description(self, _request: Request) -> Response:
        """This service, as OpenAPI has it."""
        return answer(self._description)

    async def health(self, _request: Request) -> Response:
        """Whether images will be answered."""
        if self._workers.alive:
            return answer(_encode({"status": "ok"}))
        return problem("a worker has ended; start the service again", 503)


def make_app(bundle: Bundle, workers: Workers, *, loopback: bool, token: str | None) -> ASGIApp:
    """The web application of one bundle.

    Args:
        bundle: verified.
        workers: entered.
        loopback: refuse hosts that are not this machine; see `Guard`.
        token: what everybody has to know; see `Guard`.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.routing import Route

    service = Service(bundle, workers)
    routes = [
        Route("/v1/classify", service.classify, methods=["POST"]),
        Route("/v1/model", service.about),
        Route("/openapi.json", service.description),
        Route("/healthz", service.health),
    ]

    async def refused(_request: Request, error: HTTPException) -> Response:
        return problem(error.detail.strip(), error.status_code, dict(error.headers or {}))

    async def broken(_request: Request, _error: Exception) -> Response:
        return problem("this image could not be classified; the service's log says why", 500)

    guard = Middleware(Guard, loopback=loopback, methods=("GET", "HEAD", "POST"), token=token)
    handlers: Any = {HTTPException: refused, Exception: broken}
    app = Starlette(routes=routes, middleware=[guard], exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


def answer(data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON."""
    from starlette.responses import Response

    return Response(data, status, headers, media_type="application/json")


def problem(text: str, status: int, headers: dict[str, str] | None = None) -> Response:
    """Why not."""
    return answer(_encode(Problem(text)), status, headers)


def description(labels: int) -> dict[str, Any]:
    """The service in OpenAPI's terms, for a model of so many labels."""
    where = "#/components/schemas/{name}"
    _, schemas = msgspec.json.schema_components([Answer, About, Problem], ref_template=where)

    def content(name: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": where.format(name=name)}}}

    def told(name: str, text: str) -> dict[str, Any]:
        return {"description": text, "content": content(name)}

    image = {"schema": {"type": "string", "format": "binary", "maxLength": MOST_BYTES}}
    top = {"type": "integer", "minimum": 1, "maximum": labels, "default": min(3, labels)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "edgeloop serve", "version": __version__, "description": "An image in, labels out."},
        "paths": {
            "/v1/classify": {
                "post": {
                    "operationId": "classify",
                    "summary": "Classify an image",
                    "parameters": [
                        {"name": "top", "in": "query", "required": False, "schema": top, "description": "Labels told."}
                    ],
                    "requestBody": {
                        "required": True,
                        "description": "An image file, whatever the header says: JPEG, PNG, WebP or BMP.",
                        "content": dict.fromkeys((*KINDS, "application/octet-stream"), image),
                    },
                    "responses": {
                        "200": told("Answer", "What it shows"),
                        "400": told("Problem", "A parameter out of its range"),
                        "413": told("Problem", f"Over {MOST_BYTES} bytes"),
                        "422": told("Problem", "Not a usable image"),
                        "503": told("Problem", "Too many images are waiting"),
                    },
                }
            },
            "/v1/model": {
                "get": {
                    "operationId": "model",
                    "summary": "The model's classes and input",
                    "responses": {"200": told("About", "The model")},
                }
            },
            "/healthz": {
                "get": {
                    "operationId": "health",
                    "summary": "Whether images are answered",
                    "responses": {
                        "200": {"description": "They are", "content": {"application/json": {"schema": {}}}},
                        "503": told("Problem", "They are not"),
                    },
                }
            },
        },
        "components": {"schemas": schemas},
    }
