"""Dashboard: receives the agent's messages and serves them to browsers from its own thread."""

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
from ..preprocessing import Pixels
from .images import Images
from .prometheus import Counts
from .server import Region, Sources, make_app, stop
from .state import DashboardState

if TYPE_CHECKING:
    import uvicorn

log = logging.getLogger(__name__)

_STOP_S = 2.0


class Dashboard:
    """Publisher that shows the agent's messages in the browser and as Prometheus metrics. A context manager.

    Publishing a message only stores it, no matter how many browsers are connected. Messages can also be published
    outside the ``with`` block.

    Args:
        settings: address to listen on.
        device: name of this device.
        frame: returns the newest frame of a camera; None before the first one.
        prepared: returns the last model input of a camera, (height, width, 3) uint8, BGR; None before the first one.
        region: returns the part of a camera's image that is classified: left, top, right, bottom, as fractions.
        counts: returns the frame counts of a camera; None leaves them out of the metrics.

    Raises:
        ConfigError: on entering, if the server cannot listen on the address.
        MissingExtraError: on entering, if the extra ``review`` is not installed.
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
        self._state = DashboardState(device)
        self._frame, self._prepared = frame, prepared
        self._region, self._counts = region, counts

    def __enter__(self) -> Self:
        for module in ("starlette", "uvicorn", "prometheus_client"):
            try:
                import_module(module)
            except ImportError as error:
                raise MissingExtraError("the dashboard", "review", error.name) from error
        listening = listen(
            self._settings.host,
            self._settings.port,
            what="dashboard",
            remedy="set another dashboard.port, or an address of this device as dashboard.host",
        )
        images = Images(frame=self._frame, prepared=self._prepared)
        self._sources = Sources(self._state, images, self._region, self._counts)
        self._server = make_server(make_app(self._sources, loopback=is_loopback(self._settings.host)))
        self._loop = asyncio.new_event_loop()
        arguments = (self._loop, self._server, listening)
        self._thread = threading.Thread(target=_serve, args=arguments, name="dashboard", daemon=True)
        self._thread.start()
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        log.info("dashboard at http://%s:%d/", host, self._settings.port)
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._loop.call_soon_threadsafe(stop, self._server, self._sources)
        except RuntimeError:  # the server had stopped, and logged the reason
            log.debug("the dashboard had already stopped")
        self._thread.join(_STOP_S)
        if self._thread.is_alive():
            log.warning("the dashboard thread did not stop within %g s; abandoning it", _STOP_S)
        self._sources.images.close()

    def info(self, info: Info) -> None:
        """See `Publisher`."""
        self._state.info(info)

    def label(self, observation: Observation) -> None:
        """See `Publisher`."""
        self._state.label(observation)

    def event(self, observation: Observation) -> None:
        """See `Publisher`."""
        self._state.event(observation)

    def result(self, observation: Observation) -> None:
        """See `Publisher`."""
        self._state.result(observation)

    def camera(self, name: str, state: CameraState) -> None:
        """See `Publisher`."""
        self._state.camera(name, state)

    def health(self, health: Health) -> None:
        """See `Publisher`."""
        self._state.health(health)

    def tunables(self, tunables: Tunables) -> None:
        """See `Publisher`."""
        self._state.tunables(tunables)

    def snapshot(self, camera: str, jpeg: bytes) -> None:
        """See `Publisher`. Ignored: the dashboard shows the live image of the camera."""


def _serve(loop: asyncio.AbstractEventLoop, server: uvicorn.Server, listening: list[socket.socket]) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(server.serve(sockets=listening))
    except Exception:
        log.exception("dashboard: stopped by an unexpected error; the agent continues without it")
    finally:
        for listener in listening:
            listener.close()
        loop.close()
