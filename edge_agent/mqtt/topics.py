"""The topics of one device; docs/reference/mqtt.md lists them."""

from __future__ import annotations

from dataclasses import dataclass

_MAX_BYTES, _MAX_LEVELS = 512, 32
"""Limits for topics that others choose. Mosquitto accepts 200 levels; other brokers accept fewer."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Topics under ``<prefix>/<device>/``. The settings ensure that neither contains a wildcard or a slash."""

    prefix: str
    device: str

    @property
    def status(self) -> str:
        """Status of the device, retained: ``online`` or ``offline`` (the last will)."""
        return f"{self.prefix}/{self.device}/status"

    @property
    def info(self) -> str:
        """Model, cameras and software of the device, retained."""
        return f"{self.prefix}/{self.device}/info"

    def label(self, camera: str) -> str:
        """The currently decided label, retained."""
        return f"{self.prefix}/{self.device}/camera/{camera}/label"

    def event(self, camera: str) -> str:
        """Each change of label."""
        return f"{self.prefix}/{self.device}/camera/{camera}/event"

    def result(self, camera: str) -> str:
        """The result of each inference."""
        return f"{self.prefix}/{self.device}/camera/{camera}/result"

    def camera(self, camera: str) -> str:
        """State of the camera, retained: ``online``, ``lost``, ``frozen`` or ``ended``."""
        return f"{self.prefix}/{self.device}/camera/{camera}/status"

    def snapshot(self, camera: str) -> str:
        """A JPEG image, published on request."""
        return f"{self.prefix}/{self.device}/camera/{camera}/snapshot"

    @property
    def health(self) -> str:
        """State of the device, published regularly."""
        return f"{self.prefix}/{self.device}/health"

    @property
    def tunables(self) -> str:
        """Current values of the settings that can be changed while the agent runs, retained."""
        return f"{self.prefix}/{self.device}/settings"

    @property
    def commands(self) -> str:
        """Topic filter for all commands."""
        return self.command("+")

    def command(self, verb: str) -> str:
        """Topic of one command."""
        return f"{self.prefix}/{self.device}/cmd/{verb}"

    def reply(self, ident: str | None) -> str:
        """Replies to commands without a response topic."""
        return f"{self.prefix}/{self.device}/reply/{ident or 'none'}"


def can_be_answered(topic: str, own: Topics) -> bool:
    """Whether a reply may be published on a topic that the sender of a command has chosen.

    Brokers answer some topics by closing the connection. A reply must also not be a command to a device, nor overwrite
    this device's own messages.

    Args:
        topic: The response topic of a command.
        own: Topics of this device.
    """
    levels = topic.split("/")
    try:
        size = len(topic.encode())
    except UnicodeEncodeError:
        return False
    is_own = levels[:2] == [own.prefix, own.device] and levels[2:3] != ["reply"]
    is_command = levels[:1] == [own.prefix] and levels[2:3] == ["cmd"]
    return (
        0 < size <= _MAX_BYTES
        and len(levels) <= _MAX_LEVELS
        and not topic.startswith("$")
        and topic.isprintable()
        and not set(topic) & {"+", "#"}
        and not is_own
        and not is_command
    )
