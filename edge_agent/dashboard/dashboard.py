"""Dashboard: receives the agent's messages and serves them to browsers from its own thread."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Self

from ..cameras import Frame
from ..config import DashboardSettings, dashboard_password
from ..errors import ConfigError, MissingExtraError
from ..messages import CameraState, Health, Info, Observation, Tunables
from ..preprocessing import Pixels
from ..web.access import Access
from ..web.server import listen, make_server
from .images import Images
from .prometheus import Counts
from .server import Region, Sources, make_app, stop
from .state import DashboardState

if TYPE_CHECKING:
    import uvicorn

log = logging.getLogger(__name__)

RETRY_S = 30.0
"""Pause before the dashboard tries again to listen, for example until the address or the port is free."""
_STOP_S = 2.0


class Dashboard:
    """Publisher that shows the agent's messages in the browser and as Prometheus metrics. A context manager.

    Publishing a message only stores it, no matter how many browsers are connected. Messages can also be published
    outside the ``with`` block.

    What prevents the dashboard is logged, and does not disturb the agent: a missing extra, a password file that cannot
    be read, or an address on which it cannot listen. It tries again until it can.

    Args:
        settings: address to listen on.
        device: name of this device.
        frame: returns the newest frame of a camera; None before the first one.
        prepared: returns the last model input of a camera, (height, width, 3) uint8, BGR; None before the first one.
        region: returns the part of a camera's image that is classified: left, top, right, bottom, as fractions.
        counts: returns the frame counts of a camera; None leaves them out of the metrics.
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
        self._server: uvicorn.Server | None = None

    def __enter__(self) -> Self:
        self._stopping = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._sources = Sources(
            self._state, Images(frame=self._frame, prepared=self._prepared), self._region, self._counts
        )
        self._thread = threading.Thread(target=self._run, name="dashboard", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        self._sources.closing = True
        with suppress(RuntimeError):  # the thread has ended, and logged the reason
            self._loop.call_soon_threadsafe(self._stop)
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

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        said = ""
        try:
            while not self._stopping.is_set():
                try:
                    self._serve()
                except (ConfigError, MissingExtraError) as error:
                    if str(error) != said:
                        log.error("%s; trying again every %g s", error, RETRY_S)  # noqa: TRY400
                    said = str(error)
                except Exception:
                    log.exception("the dashboard was stopped by an unexpected error; trying again in %g s", RETRY_S)
                self._stopping.wait(RETRY_S)
        finally:
            self._loop.close()

    def _serve(self) -> None:
        """Serve until the dashboard is stopped.

        Raises:
            ConfigError: The password cannot be read, or the server cannot listen on the address.
            MissingExtraError: The extra ``review`` is not installed.
        """
        for module in ("starlette", "uvicorn", "prometheus_client"):
            try:
                import_module(module)
            except ImportError as error:
                raise MissingExtraError("the dashboard", "review", error.name) from error
        host, port = self._settings.host, self._settings.port
        access = Access.on(
            host,
            secret=dashboard_password(self._settings),
            hosts=self._settings.hosts,
            remedy="add it to dashboard.hosts in agent.yaml",
        )
        listening = listen(
            host,
            port,
            what="dashboard",
            remedy="set another dashboard.port, or an address of this device as dashboard.host",
        )
        try:
            log.info("dashboard at http://%s:%d/", f"[{host}]" if ":" in host else host, port)
            self._server = make_server(make_app(self._sources, access))
            if not self._stopping.is_set():
                self._loop.run_until_complete(self._server.serve(sockets=listening))
        finally:
            for listener in listening:
                listener.close()

    def _stop(self) -> None:
        if self._server is not None:
            stop(self._server)
