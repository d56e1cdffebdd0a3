"""Every error edgeloop raises on purpose.

    EdgeloopError
     ├─ ConfigError     agent.yaml, or an argument that contradicts it
     ├─ ImageError    a file that is not an image we can use
     ├─ BundleError     a bundle that is damaged, hostile or too new
     ├─ SignatureError  a bundle that is not signed by whom it must be
     ├─ ModelError      a model the runtime refuses, or that breaks the contract
     ├─ CameraError     a camera that cannot be opened or has failed
     ├─ BrokerError     an MQTT broker that refuses us
     ├─ StoreError      a model that does not prove itself here, or one that is not there
     ├─ DeviceError     a device that cannot be reached, or where something does not work
     ├─ CommandError    a command over MQTT that cannot be done
     ├─ MessageError    an MQTT message that no agent of this version publishes
     ├─ DataError       photographs, or a run, that cannot be worked with
     ├─ ResourceError   too little memory for the work
     ├─ GateError       a quantized model that lost too much to be packed
     └─ MissingExtraError  a command whose optional packages are not installed

Libraries raise these; only the command line and the agent's outermost loop catch them, and
print the message as it is. A message says what was expected, what was found and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence


class EdgeloopError(Exception):
    """Base of all of them. ``exit_code`` is what the command line ends with."""

    exit_code = 1


def one_line(error: BaseException) -> str:
    """The message as one line that cannot steer a terminal, whatever file name or bundle it quotes."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in str(error))


class ConfigError(EdgeloopError):
    """Settings that cannot be used; nothing was started."""

    exit_code = 2


class ImageError(EdgeloopError):
    """A file that is not a whole image of a usable size."""


class BundleError(EdgeloopError):
    """A bundle that must not be used. ``problems`` holds every reason found, not only the first."""

    def __init__(self, where: object, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{where}: not a usable bundle: {'; '.join(self.problems)}")


class SignatureError(EdgeloopError):
    """A bundle without the signature it must have, or with one that does not fit or cannot be checked."""


class ModelError(EdgeloopError):
    """A model the runtime cannot load, or whose tensors break the contract."""


class CameraError(EdgeloopError):
    """A camera that cannot be opened, or stopped delivering."""


class BrokerError(EdgeloopError):
    """An MQTT broker that refuses the connection for good."""


class StoreError(EdgeloopError):
    """A model that does not prove itself on this device, one that is not installed, or a store that cannot be used."""


class DeviceError(EdgeloopError):
    """A device that cannot be reached over SSH, or that does not do as it is told."""


class CommandError(EdgeloopError):
    """A command over MQTT that is malformed or cannot be done; nothing was changed."""


class MessageError(EdgeloopError):
    """An MQTT message that no agent of this format version publishes."""


class DataError(EdgeloopError):
    """Photographs or a run directory that cannot be worked with."""


class ResourceError(EdgeloopError):
    """The machine has too little memory for the work."""


class GateError(EdgeloopError):
    """The quantized model lost more than it may; nothing was written."""


class MissingExtraError(EdgeloopError):
    """A command needs packages the plain install leaves out."""

    exit_code = 2

    def __init__(self, what: str, extra: str, missing: str | None) -> None:
        super().__init__(f"{what} needs the package {missing}; install it with: pip install 'edgeloop[{extra}]'")
