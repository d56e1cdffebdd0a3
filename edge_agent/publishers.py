"""Where the agent's messages go: the protocol, a list for tests, and several publishers at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .messages import CameraState, Health, Info, Observation, Tunables

log = logging.getLogger(__name__)


class Publisher(Protocol):
    """Where the agent's messages go."""

    @property
    def wants_results(self) -> bool:
        """Whether every single inference is to be told, too."""

    def info(self, info: Info) -> None:
        """What runs here now."""

    def label(self, observation: Observation) -> None:
        """The decided label of a camera; the latest one stands for the present."""

    def event(self, observation: Observation) -> None:
        """A label changed."""

    def result(self, observation: Observation) -> None:
        """One inference."""

    def camera(self, name: str, state: CameraState) -> None:
        """A camera came, went, froze or ended."""

    def health(self, health: Health) -> None:
        """How the device is."""

    def tunables(self, tunables: Tunables) -> None:
        """What can be set while the agent runs has these values now."""

    def snapshot(self, camera: str, jpeg: bytes) -> None:
        """An image somebody asked for."""


class RecordingPublisher:
    """Keeps every message in a list, for tests: ``messages`` holds (kind, message) pairs."""

    def __init__(self, *, wants_results: bool = True) -> None:
        self.wants_results = wants_results
        self.messages: list[tuple[str, Any]] = []

    def info(self, info: Info) -> None:
        """See `Publisher`."""
        self.messages.append(("info", info))

    def label(self, observation: Observation) -> None:
        """See `Publisher`."""
        self.messages.append(("label", observation))

    def event(self, observation: Observation) -> None:
        """See `Publisher`."""
        self.messages.append(("event", observation))

    def result(self, observation: Observation) -> None:
        """See `Publisher`."""
        self.messages.append(("result", observation))

    def camera(self, name: str, state: CameraState) -> None:
        """See `Publisher`."""
        self.messages.append(("camera", (name, state)))

    def health(self, health: Health) -> None:
        """See `Publisher`."""
        self.messages.append(("health", health))

    def tunables(self, tunables: Tunables) -> None:
        """See `Publisher`."""
        self.messages.append(("tunables", tunables))

    def snapshot(self, camera: str, jpeg: bytes) -> None:
        """See `Publisher`."""
        self.messages.append(("snapshot", (camera, jpeg)))


class FanOut:
    """Hands each message to every publisher; what one of them raises is logged and keeps nothing from the others.

    Args:
        publishers: in the order they are told.
    """

    def __init__(self, publishers: Sequence[Publisher]) -> None:
        self._publishers = publishers

    @property
    def wants_results(self) -> bool:
        """Whether any of them does."""
        return any(publisher.wants_results for publisher in self._publishers)

    def info(self, info: Info) -> None:
        """See `Publisher`."""
        self._each(lambda publisher: publisher.info(info))

    def label(self, observation: Observation) -> None:
        """See `Publisher`."""
        self._each(lambda publisher: publisher.label(observation))

    def event(self, observation: Observation) -> None:
        """See `Publisher`."""
        self._each(lambda publisher: publisher.event(observation))

    def result(self, observation: Observation) -> None:
        """See `Publisher`; for those who want results."""
        self._each(lambda publisher: publisher.result(observation) if publisher.wants_results else None)

    def camera(self, name: str, state: CameraState) -> None:
        """See `Publisher`."""
        self._each(lambda publisher: publisher.camera(name, state))

    def health(self, health: Health) -> None:
        """See `Publisher`."""
        self._each(lambda publisher: publisher.health(health))

    def tunables(self, tunables: Tunables) -> None:
        """See `Publisher`."""
        self._each(lambda publisher: publisher.tunables(tunables))

    def snapshot(self, camera: str, jpeg: bytes) -> None:
        """See `Publisher`."""
        self._each(lambda publisher: publisher.snapshot(camera, jpeg))

    def _each(self, tell: Callable[[Publisher], None]) -> None:
        for publisher in self._publishers:
            try:
                tell(publisher)
            except Exception:
                log.exception("a message was not published")
