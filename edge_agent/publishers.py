"""The publisher protocol, a publisher for tests, and one that forwards to several publishers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .messages import CameraState, Health, Info, Observation, Tunables

log = logging.getLogger(__name__)


class Publisher(Protocol):
    """Receives all messages of the agent."""

    @property
    def wants_results(self) -> bool:
        """Whether to publish the result of every inference as well."""

    def info(self, info: Info) -> None:
        """Publish the model, cameras and software that run now."""

    def label(self, observation: Observation) -> None:
        """Publish the decided label of a camera. It is valid until the next label of this camera."""

    def event(self, observation: Observation) -> None:
        """Publish a change of label."""

    def result(self, observation: Observation) -> None:
        """Publish the result of one inference."""

    def camera(self, name: str, state: CameraState) -> None:
        """Publish the new state of a camera."""

    def health(self, health: Health) -> None:
        """Publish the state of the device."""

    def tunables(self, tunables: Tunables) -> None:
        """Publish the current values of the settings that can be changed while the agent runs."""

    def snapshot(self, camera: str, jpeg: bytes) -> None:
        """Publish a requested image of a camera."""


class RecordingPublisher:
    """A publisher for tests that keeps all messages; ``messages`` is a list of (kind, message) pairs."""

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
    """Forwards each message to several publishers. An error in one of them is logged and does not stop the rest.

    Args:
        publishers: Publishers, called in this order.
    """

    def __init__(self, publishers: Sequence[Publisher]) -> None:
        self._publishers = publishers

    @property
    def wants_results(self) -> bool:
        """Whether any of the publishers wants results."""
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
        """See `Publisher`; only publishers that want results get it."""
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

    def _each(self, publish: Callable[[Publisher], None]) -> None:
        for publisher in self._publishers:
            try:
                publish(publisher)
            except Exception:
                log.exception("%s: cannot publish a message", type(publisher).__name__)
