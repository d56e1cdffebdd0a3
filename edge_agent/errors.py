"""Exceptions that edgeloop raises deliberately.

    EdgeloopError
     ├─ ConfigError        invalid settings or arguments
     ├─ ImageError         not a readable image of a supported size
     ├─ BundleError        a damaged, malicious or too new bundle
     ├─ SignatureError     a missing or invalid bundle signature
     ├─ ModelError         a model that the runtime cannot load, or whose tensors break the contract
     ├─ CameraError        a camera that cannot be opened or has failed
     ├─ BrokerError        an MQTT broker that refuses the connection
     ├─ StoreError         a failed canary test, a model that is not installed, or an unusable model store
     ├─ DeviceError        a device that cannot be reached over SSH, or a step that failed on it
     ├─ CommandError       an invalid or failed MQTT command
     ├─ MessageError       an MQTT message that no agent of this version publishes
     ├─ DataError          unusable images or an unusable run directory
     ├─ ResourceError      not enough memory
     ├─ GateError          a quantized model that lost too much accuracy
     └─ MissingExtraError  optional packages that are not installed

Library code raises these errors. The command line and the agent's main loop catch them and print the message unchanged.
A message says what was expected, what was found and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence


class EdgeloopError(Exception):
    """Base class of all errors. ``exit_code`` is the exit status of the command line."""

    exit_code = 1


def one_line(error: BaseException) -> str:
    """Return the message on one line. Control characters are escaped, so that they cannot control the terminal."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in str(error))


class ConfigError(EdgeloopError):
    """The settings or arguments are invalid. Nothing was started."""

    exit_code = 2


class ImageError(EdgeloopError):
    """The file is not a complete image, or its size is not supported."""


class BundleError(EdgeloopError):
    """The bundle must not be used. ``problems`` lists all reasons."""

    def __init__(self, where: object, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{where}: not a usable bundle: {'; '.join(self.problems)}")


class SignatureError(EdgeloopError):
    """The required signature is missing, does not match the bundle, or cannot be checked."""


class ModelError(EdgeloopError):
    """The runtime cannot load the model, or the model's tensors break the contract."""


class CameraError(EdgeloopError):
    """The camera cannot be opened, or it stopped delivering frames."""


class BrokerError(EdgeloopError):
    """The MQTT broker refuses the connection, and retrying would not help."""


class StoreError(EdgeloopError):
    """The model failed its canary test on this device or is not installed, or the model store cannot be used."""


class DeviceError(EdgeloopError):
    """The device cannot be reached over SSH, or a step failed on it."""


class CommandError(EdgeloopError):
    """The MQTT command is malformed or cannot be carried out. Nothing was changed."""


class MessageError(EdgeloopError):
    """No agent of this format version publishes such an MQTT message."""


class DataError(EdgeloopError):
    """The images or the run directory cannot be used."""


class ResourceError(EdgeloopError):
    """The machine does not have enough memory."""


class GateError(EdgeloopError):
    """The quantized model lost more accuracy than allowed. Nothing was written."""


class MissingExtraError(EdgeloopError):
    """The command needs optional packages that are not installed."""

    exit_code = 2

    def __init__(self, what: str, extra: str, missing: str | None) -> None:
        super().__init__(f"{what} needs the package {missing}; install it with: pip install 'edgeloop[{extra}]'")
