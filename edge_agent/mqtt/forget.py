"""Clears everything that a device has left at the broker, for a device that is gone for good."""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from ..config import MqttSettings, mqtt_password
from ..errors import BrokerError
from .connection import reason_of, tls_context
from .discovery import discovery_topic
from .topics import Topics

HOME_ASSISTANT = "homeassistant"
_ANSWER_S = 15.0
_QUIET_S = 2.0
"""Seconds without a further retained message after which all have arrived."""


def forget(settings: MqttSettings, device: str, *, force: bool = False) -> list[str]:
    """Clear the retained messages of a device, including its announcement to Home Assistant.

    Args:
        settings: broker, login, and prefix of the topics.
        device: name of the device.
        force: also clear those of a device that is online.

    Returns:
        The topics that were cleared, sorted. A broker that gives nothing retained to wildcard subscriptions (RabbitMQ)
        hides the topics of cameras; then only those of the device itself are found.

    Raises:
        BrokerError: the broker cannot be reached, or refuses; or the device is online.
        ConfigError: the password or a certificate cannot be read.
    """
    topics = Topics(settings.prefix, device)
    announcement = discovery_topic(settings.discovery or HOME_ASSISTANT, topics)
    wanted = [f"{settings.prefix}/{device}/#", topics.status, topics.info, topics.health, topics.tunables, announcement]
    with _connected(settings, wanted) as (client, arrived):
        found = _found(arrived)
        if found.get(topics.status) == b"online" and not force:
            raise BrokerError(f"{device} is online; stop its agent first, or use --force")
        cleared = [client.publish(topic, b"", qos=1, retain=True) for topic in found]
        deadline = time.monotonic() + _ANSWER_S
        for one in cleared:
            one.wait_for_publish(max(0.1, deadline - time.monotonic()))
            if not one.is_published():
                who = settings.username or "this client"
                raise BrokerError(f"{_broker(settings)} does not acknowledge; may {who} publish to {topics.status}?")
    return sorted(found)


def _broker(settings: MqttSettings) -> str:
    return f"the broker at {settings.host}:{settings.port}"


@contextmanager
def _connected(
    settings: MqttSettings, wanted: list[str]
) -> Iterator[tuple[paho.Client, queue.Queue[tuple[str, bytes]]]]:
    """Connect, and yield the client and the retained messages of the wanted topics as they arrive."""
    arrived: queue.Queue[tuple[str, bytes]] = queue.Queue()
    answers: queue.Queue[str] = queue.Queue()

    def on_connect(client: paho.Client, _data: object, _flags: object, reason: object, _properties: object) -> None:
        if str(reason) == "Success":
            client.subscribe([(topic, 1) for topic in wanted])
        answers.put(str(reason))

    def on_message(_client: object, _data: object, message: paho.MQTTMessage) -> None:
        if message.retain:
            arrived.put((message.topic, bytes(message.payload)))

    # MQTT 3.1.1, which every broker speaks.
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"edgeloop-forget-{uuid.uuid4().hex[:8]}")
    client.on_connect, client.on_message = on_connect, on_message
    if settings.username is not None:
        client.username_pw_set(settings.username, mqtt_password(settings))
    if settings.tls is not None:
        client.tls_set_context(tls_context(settings.tls))
    try:
        client.connect(settings.host, settings.port)
    except (OSError, ValueError) as error:
        raise BrokerError(f"{_broker(settings)} cannot be reached: {reason_of(error)}") from error
    client.loop_start()
    try:
        answer = answers.get(timeout=_ANSWER_S)
        if answer != "Success":
            raise BrokerError(f"{_broker(settings)} refuses the connection: {answer}")
        yield client, arrived
    except queue.Empty:
        raise BrokerError(f"{_broker(settings)} does not answer within {_ANSWER_S:g} s") from None
    finally:
        client.disconnect()
        client.loop_stop()


def _found(arrived: queue.Queue[tuple[str, bytes]]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    while True:
        try:
            topic, payload = arrived.get(timeout=_QUIET_S)
        except queue.Empty:
            return found
        if payload:
            found[topic] = payload
