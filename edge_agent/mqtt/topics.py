"""The topics of one device; docs/reference/mqtt.md lists them."""

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

    def camera(self, camera: str) -> str:
        """Whether the camera delivers: ``online``, ``lost``, ``frozen`` or ``ended``, retained."""
        return f"{self.prefix}/{self.device}/camera/{camera}/status"

    def snapshot(self, camera: str) -> str:
        """A JPEG image, when asked for."""
        return f"{self.prefix}/{self.device}/camera/{camera}/snapshot"

    @property
    def health(self) -> str:
        """How the device is."""
        return f"{self.prefix}/{self.device}/health"

    @property
    def tunables(self) -> str:
        """What can be set while the agent runs, retained."""
        return f"{self.prefix}/{self.device}/settings"

    @property
    def commands(self) -> str:
        """Every command, for subscribing."""
        return self.command("+")

    def command(self, verb: str) -> str:
        """One command."""
        return f"{self.prefix}/{self.device}/cmd/{verb}"

    def reply(self, ident: str | None) -> str:
        """Answers to commands without a response topic."""
        return f"{self.prefix}/{self.device}/reply/{ident or 'none'}"
