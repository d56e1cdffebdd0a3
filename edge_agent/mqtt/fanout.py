"""The same messages to several publishers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from .messages import CameraState, Health, Info, Observation, Tunables
from .publisher import Publisher

log = logging.getLogger(__name__)


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
