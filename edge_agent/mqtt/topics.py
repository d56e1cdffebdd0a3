"""The topics of one device; docs/mqtt.md lists them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topics:
    """Topics under ``<prefix>/<device>/``. Both are checked by the settings to hold no wildcard or slash."""

    prefix: str
    device: str

    @property
    def status(self) -> str:
        """``online`` or ``offline``, retained; offline is the last will."""
        return f"{self.prefix}/{self.device}/status"

    @property
    def info(self) -> str:
        """What runs here, retained."""
        return f"{self.prefix}/{self.device}/info"

    def label(self, camera: str) -> str:
        """The label decided now, retained."""
        return f"{self.prefix}/{self.device}/camera/{camera}/label"

    def event(self, camera: str) -> str:
        """Each change of label."""
        return f"{self.prefix}/{self.device}/camera/{camera}/event"

    def result(self, camera: str) -> str:
        """Each inference."""
        return f"{self.prefix}/{self.device}/camera/{camera}/result"
