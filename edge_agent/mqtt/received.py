"""Decodes messages from agents for subscribers: turns a topic and a payload into a typed value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from ..errors import MessageError
from ..messages import VERSION, Health, Info, Observation, Reply, Tunables

Body: TypeAlias = Observation | Health | Info | Tunables | Reply | str | bytes

# The last part of a topic, below the device or one of its cameras, to the type of its payload.
_OF_DEVICE: dict[str, Any] = {"status": str, "info": Info, "health": Health, "settings": Tunables}
_OF_CAMERA: dict[str, Any] = {
    "label": Observation,
    "event": Observation,
    "result": Observation,
    "status": str,
    "snapshot": bytes,
}


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message that an agent published.

    Attributes:
        device: name of the device.
        camera: name of the camera; None for messages about the whole device.
        kind: last part of the topic: ``label``, ``event``, ``result``, ``snapshot``, ``status``, ``info``, ``health``,
            ``settings``, or ``reply``.
        body: `Observation` for labels, events and results; `Info`, `Health`, `Tunables` (settings) or `Reply`; the text
            of a status, such as ``online``; the JPEG bytes of a snapshot.
    """

    device: str
    camera: str | None
    kind: str
    body: Body


def read_message(topic: str, payload: bytes | bytearray, *, prefix: str = "edgeloop") -> ReceivedMessage | None:
    """Decode a message of an agent.

    Fields that this version does not know are ignored, so that messages of newer agents can be read.

    Args:
        topic: the topic it was published on.
        payload: its bytes.
        prefix: ``mqtt.prefix`` of the agents.

    Returns:
        The message; None for topics that are not an agent's messages, such as commands.

    Raises:
        MessageError: the payload is not what agents publish on this topic, or has another format version.
    """
    start, _, rest = topic.partition("/")
    device, _, rest = rest.partition("/")
    if start != prefix or not device:
        return None
    match rest.split("/"):
        case ["camera", camera, kind] if kind in _OF_CAMERA:
            return ReceivedMessage(device, camera, kind, _decoded(topic, payload, _OF_CAMERA[kind]))
        case ["reply", _]:
            return ReceivedMessage(device, None, "reply", _decoded(topic, payload, Reply))
        case [kind] if kind in _OF_DEVICE:
            return ReceivedMessage(device, None, kind, _decoded(topic, payload, _OF_DEVICE[kind]))
    return None


class _Version(msgspec.Struct):
    """The field that every format has."""

    v: int


def _decoded(topic: str, payload: bytes | bytearray, kind: Any) -> Any:
    if kind is bytes:
        return bytes(payload)
    try:
        if kind is str:
            return payload.decode()
        version = msgspec.json.decode(payload, type=_Version).v
        if version == VERSION:
            return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MessageError(f"{topic}: not a message of an edgeloop agent: {error}") from error
    raise MessageError(
        f"{topic}: format version {version}, expected {VERSION}; install the version that the device runs"
    )
