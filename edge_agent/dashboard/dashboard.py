"""The live page: takes the agent's messages, and serves them from a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Self

from ..cameras import Frame
from ..config import DashboardSettings
from ..errors import MissingExtraError
from ..http_server import is_loopback, listen, make_server
from ..messages import CameraState, Health, Info, Observation, Tunables
from ..preprocess import Pixels
from .images import Images
from .prometheus import Counts
from .server import Region, Sources, make_app, stop
from .state import DashboardState

if TYPE_CHECKING:
    import uvicorn

log = logging.getLogger(__name__)

_GOODBYE_S = 2.0


class Dashboard:
    """Shows what the agent publishes to browsers and to Prometheus. A context manager, and a `Publisher`.

    Publishing only notes the message, whoever is looking; it works outside the block, too.

    Args:
        settings: where to listen.
        device: this device's name.
        frame: a camera's newest frame, None before the first.
        prepared: what the model last saw of a camera, (height, width, 3) uint8, BGR; None before the first.
        region: the part of a camera's image that is classified: left, top, right, bottom, as fractions.
        counts: what became of a camera's frames; None leaves them out of the metrics.

    Raises:
        ConfigError: on entering, when it cannot listen there.
        MissingExtraError: on entering, when the extra ``review`` is not installed.
    """

    wants_results = True

    def __init__(
        self,
        settings: DashboardSettings,
        device: str,
        *,
        frame: Callable[[str], Frame | None],
        prepared: Callable[[str], Pixels | None],
        region: Callable[[str], Region],
        counts: Callable[[str], Counts | None] = lambda _name: None,
    ) -> None:
        self._settings = settings
        self._board = DashboardState(device)
        self._frame, self._prepared = frame, prepared
        self._region, self._counts = region, counts

    def __enter__(self) -> Self:
        for module in ("starlette", "uvicorn", "prometheus_client"):
            try:
                import_module(module)
            except ImportError as error:
                raise MissingExtraError("the live page", "review", error.name) from error
        listening = listen(
            self._settings.host,
            self._settings.port,
            what="page",
            remedy="set another dashboard.port, or an address of this device as dashboard.host",
        )
        images = Images(frame=self._frame, prepared=self._prepared)
        self._sources = Sources(self._board, images, self._region, self._counts)
        self._server = make_server(make_app(self._sources, loopback=is_loopback(self._settings.host)))
        self._loop = asyncio.new_event_loop()
        arguments = (self._loop, self._server, listening)
        self._thread = threading.Thread(target=_serve, args=arguments, name="page", daemon=True)
        self._thread.start()
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        log.info("live page at http://%s:%d/", host, self._settings.port)
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._loop.call_soon_threadsafe(stop, self._server, self._sources)
        except RuntimeError:  # it ended by itself, and said why
            log.debug("the page had ended")
        self._thread.join(_GOODBYE_S)
        if self._thread.is_alive():
            log.warning("the page thread does not end; leaving it")
        self._sources.images.close()

    def info(self, info: Info) -> None:
        """See `Publisher`."""
        self._board.info(info)

    def label(self, observation: Observation) -> None:
        """See `Publisher`."""
        self._board.label(observation)

    def event(self, observation: Observation) -> None:
        """See `Publisher`."""
        self._board.event(observation)

    def result(self, observation: Observation) -> None:
        """See `Publisher`."""
        self._board.result(observation)

    def camera(self, name: str, state: CameraState) -> None:
        """See `Publisher`."""
        self._board.camera(name, state)

    def health(self, health: Health) -> None:
        """See `Publisher`."""
        self._board.health(health)

    def tunables(self, tunables: Tunables) -> None:
        """See `Publisher`."""
        self._board.tunables(tunables)

    def snapshot(self, camera: str, jpeg: bytes) -> None:
        """See `Publisher`; the page shows the camera itself."""


def _serve(loop: asyncio.AbstractEventLoop, server: uvicorn.Server, listening: list[socket.socket]) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(server.serve(sockets=listening))
    except Exception:
        log.exception("the page: stopped by a bug; the agent goes on without it")
    finally:
        for listener in listening:
            listener.close()
        loop.close()
