"""HTTP API of the service, with its OpenAPI 3.1 description."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from .._version import __version__
from ..bundle import Bundle
from ..errors import ImageError, one_line
from ..inference.classifier import Result
from ..messages import UNKNOWN, ModelId, TopScore
from ..web.access import Access, Guard
from ..web.server import read_body
from .workers import BusyError, Workers

if TYPE_CHECKING:
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

MOST_BYTES = 16 * 2**20
"""Largest size of an image file in bytes. `edge_agent.images` limits the number of pixels to 64 megapixels."""
MOST_BYTES_HELD = 4 * MOST_BYTES
"""Largest size of all images together that have arrived and are not classified yet."""
KINDS = ("image/jpeg", "image/png", "image/webp", "image/bmp")
_ACCEPTED = (*KINDS, "image/jpg", "application/octet-stream", "application/x-www-form-urlencoded", "")
"""Content types of requests; the last but one is what curl sends with ``--data-binary``."""
_encode = msgspec.json.Encoder().encode


class Milliseconds(msgspec.Struct, frozen=True):
    """Wall time of preprocessing and of inference, in milliseconds."""

    preprocess: float
    inference: float


class Answer(msgspec.Struct, frozen=True):
    """Classification of an image.

    ``label``: the best label, or `unknown` if its score is below the bundle's threshold. ``score``: score of the best
    label. ``top``: the best labels, highest score first. ``model``: the model that classified the image.
    """

    label: str
    score: float
    top: tuple[TopScore, ...]
    model: ModelId
    timing_ms: Milliseconds


class About(msgspec.Struct, frozen=True):
    """Description of the model: classes, input size (height, width) in pixels, and threshold of the score."""

    model: ModelId
    labels: tuple[str, ...]
    input_size: tuple[int, int]
    threshold: float


class Problem(msgspec.Struct, frozen=True):
    """Error response."""

    error: str


class Service:
    """Handlers of the HTTP routes."""

    def __init__(self, bundle: Bundle, workers: Workers) -> None:
        manifest = bundle.manifest
        self._workers = workers
        self._model = ModelId(manifest.name, manifest.version, bundle.digest)
        self._threshold = manifest.thresholds.enter
        self._about = _encode(About(self._model, bundle.labels, manifest.preprocess.size, self._threshold))
        self._description = _encode(description(len(bundle.labels)))
        self._most = len(bundle.labels)
        self._held = 0

    async def classify(self, request: Request) -> Response:
        """Classify the image in the body."""
        top = request.query_params.get("top", str(min(3, self._most)))
        if not (top.isascii() and top.isdecimal() and len(top) < 5 and 1 <= int(top) <= self._most):
            return problem(f"top: expected a number from 1 to {self._most}", 400)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in _ACCEPTED:
            return problem(
                f"content type {kind[:50]}: expected the image file itself as the request body, not in a form or in "
                "JSON: curl --data-binary @image.jpg",
                415,
            )
        held = 0

        def hold(count: int) -> None:
            nonlocal held
            held, self._held = held + count, self._held + count
            if self._held > MOST_BYTES_HELD:
                raise BusyError(f"images of {MOST_BYTES_HELD >> 20} MiB are waiting; try again later")

        try:
            result = await self._workers.classify(await read_body(request, MOST_BYTES, on_chunk=hold))
        except ImageError as error:
            return problem(one_line(error), 422)
        except BusyError as error:
            return problem(str(error), 503, {"retry-after": "1"})
        finally:
            self._held -= held
        return json_response(_encode(self._answer(result, int(top))))

    def _answer(self, result: Result, count: int) -> Answer:
        best = [TopScore(label, round(score, 6)) for label, score in result.top(count)]
        label = best[0].label if best[0].score >= self._threshold else UNKNOWN
        timing = Milliseconds(round(result.preprocess_ms, 3), round(result.inference_ms, 3))
        return Answer(label, best[0].score, tuple(best), self._model, timing)

    async def about(self, _request: Request) -> Response:
        """Describe the model."""
        return json_response(self._about)

    async def description(self, _request: Request) -> Response:
        """Describe the API in OpenAPI format."""
        return json_response(self._description)

    async def health(self, _request: Request) -> Response:
        """Report whether the service can classify images."""
        if self._workers.alive:
            return json_response(_encode({"status": "ok"}))
        return problem("a worker thread has ended; restart the service", 503)


def make_app(bundle: Bundle, workers: Workers, *, access: Access) -> ASGIApp:
    """Create the web application for one bundle.

    Args:
        bundle: a verified bundle.
        workers: started workers (their context is entered).
        access: who may use the service.
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
        return problem("the image could not be classified; see the log of the service", 500)

    guard = Middleware(Guard, access=access, methods=("GET", "HEAD", "POST"))
    handlers: Any = {HTTPException: refused, Exception: broken}
    app = Starlette(routes=routes, middleware=[guard], exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


def json_response(data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Create a response with encoded JSON."""
    from starlette.responses import Response

    return Response(data, status, headers, media_type="application/json")


def problem(text: str, status: int, headers: dict[str, str] | None = None) -> Response:
    """Create an error response."""
    return json_response(_encode(Problem(text)), status, headers)


def description(labels: int) -> dict[str, Any]:
    """Return the OpenAPI description of the service, for a model with this number of labels."""
    reference = "#/components/schemas/{name}"
    _, schemas = msgspec.json.schema_components([Answer, About, Problem], ref_template=reference)

    def content(name: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": reference.format(name=name)}}}

    def response(name: str, text: str) -> dict[str, Any]:
        return {"description": text, "content": content(name)}

    image = {"schema": {"type": "string", "format": "binary", "maxLength": MOST_BYTES}}
    top = {"type": "integer", "minimum": 1, "maximum": labels, "default": min(3, labels)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "edgeloop serve", "version": __version__, "description": "Classifies images."},
        "paths": {
            "/v1/classify": {
                "post": {
                    "operationId": "classify",
                    "summary": "Classify an image",
                    "parameters": [
                        {
                            "name": "top",
                            "in": "query",
                            "required": False,
                            "schema": top,
                            "description": "Number of labels in `top`.",
                        }
                    ],
                    "requestBody": {
                        "required": True,
                        "description": "The JPEG, PNG, WebP or BMP file itself, not in a form or in JSON.",
                        "content": dict.fromkeys((*KINDS, "application/octet-stream"), image),
                    },
                    "responses": {
                        "200": response("Answer", "Classification of the image"),
                        "400": response("Problem", "A parameter is out of range"),
                        "413": response("Problem", f"The image has more than {MOST_BYTES} bytes"),
                        "415": response("Problem", "Not the content type of an image"),
                        "422": response("Problem", "Not a usable image"),
                        "503": response("Problem", "Too many images, or too large ones, are waiting"),
                    },
                }
            },
            "/v1/model": {
                "get": {
                    "operationId": "model",
                    "summary": "Describe the model: classes, input size and threshold",
                    "responses": {"200": response("About", "Description of the model")},
                }
            },
            "/healthz": {
                "get": {
                    "operationId": "health",
                    "summary": "Report whether the service can classify images",
                    "responses": {
                        "200": {"description": "It can", "content": {"application/json": {"schema": {}}}},
                        "503": response("Problem", "It cannot"),
                    },
                }
            },
        },
        "components": {"schemas": schemas},
    }
