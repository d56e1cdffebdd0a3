"""The MQTT client of the agent. Publishing never waits for the network."""

from __future__ import annotations

import logging
import socket
import ssl
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from ..config import MqttSettings, TlsSettings, mqtt_password
from ..errors import BrokerError, ConfigError
from ..messages import CameraState, Health, Info, Observation, Reply, SpoolHealth, Tunables
from .commands import MAX_BYTES, Commands, Envelope, Handlers
from .discovery import discovery, discovery_topic
from .outbox import Outbox
from .spool import SpooledEvent
from .topics import Topics

log = logging.getLogger(__name__)

ONLINE, OFFLINE = b"online", b"offline"
_STOP_TIMEOUT_S = 2.0
_RECONNECT_S = (1, 30)
_MAX_UNSENT = 100
_MAX_TOPIC = 512
# Refusals for which retrying does not help. These are MQTT 5 codes; paho maps those of 3.1.1 to them.
_REFUSALS = {
    0x84: "does not support this MQTT version",
    0x86: "refuses the user name or password",
    0x87: "does not authorise this device",
}

_encode = msgspec.json.Encoder().encode


class MqttPublisher:
    """A `Publisher` that sends messages to a broker. A context manager.

    The client connects in the background, and retries until it succeeds. After each connect, it sends the retained
    messages (status, info, labels) again, in case the broker has lost them, and then the waiting events. When the
    context exits, the client publishes ``offline``. If the process dies, the broker publishes it (last will).

    Args:
        settings: Settings of the connection.
        device: Name of this device.
        spool: File for events that wait for the broker; None keeps them in memory.

    Raises:
        ConfigError: The password or the certificates cannot be used.
    """

    def __init__(self, settings: MqttSettings, device: str, spool: Path | None = None) -> None:
        self.topics = Topics(settings.prefix, device)
        self.wants_results = settings.results
        self._discovery_topic = settings.discovery and discovery_topic(settings.discovery, self.topics)
        self.refused = threading.Event()
        """Set when the broker refuses the first connection for a reason that retrying does not change."""
        self._settings = settings
        self._reason = ""
        self._was_connected = False
        self._lock = threading.Lock()
        self._retained: dict[str, bytes] = {}
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            # A fixed client id, so that the broker closes a stale connection of this device when it reconnects.
            client_id=f"{settings.prefix}-{device}",
            protocol=paho.MQTTv5 if settings.protocol == "5" else paho.MQTTv311,
        )
        if settings.username is not None:
            self._client.username_pw_set(settings.username, mqtt_password(settings))
        self._client.will_set(self.topics.status, OFFLINE, qos=1, retain=True)
        if settings.tls is not None:
            self._client.tls_set_context(_tls_context(settings.tls))
        self._client.reconnect_delay_set(*_RECONNECT_S)
        self.outbox = Outbox(spool, self._send_event, expiry_s=settings.event_expiry_s)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_publish = self._on_publish
        self._client.on_message = self._on_message
        self._client.on_subscribe = self._on_subscribe
        self._client.on_socket_open = _disable_nagle
        self._commands: Commands | None = None
        self._unsent: deque[paho.MQTTMessageInfo] = deque()
        self.skipped = 0
        """Messages of QoS 0 that were not sent because the broker did not keep up."""

    def __enter__(self) -> Self:
        self.outbox.__enter__()
        if self._commands is not None:
            self._commands.__enter__()
        self._client.connect_async(self._settings.host, self._settings.port, keepalive=self._settings.keepalive_s)
        self._client.loop_start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.outbox.__exit__()
        if self._commands is not None:
            self._commands.__exit__()
        if self._client.is_connected():
            offline = self._client.publish(self.topics.status, OFFLINE, qos=1, retain=True)
            try:
                offline.wait_for_publish(_STOP_TIMEOUT_S)
            except (RuntimeError, ValueError) as error:
                log.warning("cannot publish the status offline: %s", error)
        self._client.disconnect()
        self._client.loop_stop()

    def serve(self, handlers: Handlers) -> None:
        """Accept commands. Call it before entering the context; without it, no commands are accepted."""
        self._commands = Commands(self.topics.device, handlers, self._answer)

    def check(self) -> None:
        """Raise the error that the network thread found, if any.

        Raises:
            BrokerError: The broker refused the first connection, and retrying does not help.
        """
        if self.refused.is_set():
            raise BrokerError(f"{self._broker_name} {self._reason}; check mqtt in agent.yaml")

    def info(self, info: Info) -> None:
        """See `Publisher`; retained, QoS 1."""
        self._retain(self.topics.info, _encode(info))
        if self._discovery_topic is not None:
            self._retain(self._discovery_topic, _encode(discovery(self.topics, info)))

    def label(self, observation: Observation) -> None:
        """See `Publisher`; retained, QoS 1. While there is no connection, only the latest label is kept."""
        self._retain(self.topics.label(observation.camera), _encode(observation))

    def event(self, observation: Observation) -> None:
        """See `Publisher`; QoS 1, through the spool."""
        self.outbox.put(SpooledEvent(self.topics.event(observation.camera), _encode(observation), time.time()))

    def result(self, observation: Observation) -> None:
        """See `Publisher`; QoS 0, dropped if there is no connection or the broker does not keep up."""
        self._send_or_drop(self.topics.result(observation.camera), _encode(observation))

    def camera(self, name: str, state: CameraState) -> None:
        """See `Publisher`; retained, QoS 1."""
        self._retain(self.topics.camera(name), state.encode())

    def health(self, health: Health) -> None:
        """See `Publisher`; QoS 0, dropped if there is no connection or the broker does not keep up."""
        self._send_or_drop(self.topics.health, _encode(health))

    def tunables(self, tunables: Tunables) -> None:
        """See `Publisher`; retained, QoS 1."""
        self._retain(self.topics.tunables, _encode(tunables))

    def spool_health(self) -> SpoolHealth:
        """State of the event spool."""
        return SpoolHealth(self.outbox.depth, self.outbox.dropped, self.outbox.on_disk)

    def snapshot(self, camera: str, jpeg: bytes) -> None:
        """See `Publisher`; QoS 0, dropped if there is no connection, as an old image is of no use."""
        self._send_or_drop(self.topics.snapshot(camera), jpeg)

    def _send_or_drop(self, topic: str, payload: bytes) -> None:
        """Send a message that is only useful now. The number of messages that paho has not sent yet is limited."""
        while self._unsent and self._unsent[0].is_published():
            self._unsent.popleft()
        if not self._client.is_connected():
            return
        if len(self._unsent) >= _MAX_UNSENT:
            self.skipped += 1
            return
        sent = self._client.publish(topic, payload, qos=0)
        if sent.rc == paho.MQTT_ERR_SUCCESS:
            self._unsent.append(sent)

    def _answer(self, reply: Reply, command: Envelope) -> None:
        properties = None
        topic = self.topics.reply(reply.id)
        if command.topic is not None and self._is_answerable(command.topic):
            topic = command.topic
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            if command.correlation is not None:
                properties.CorrelationData = command.correlation
        self._client.publish(topic, _encode(reply), qos=1, properties=properties)

    def _is_answerable(self, topic: str) -> bool:
        """Whether a reply may be published on this topic. Topics of this device itself are excluded, except replies."""
        own = f"{self._settings.prefix}/{self.topics.device}/"
        return not (
            set(topic) & {"+", "#", "\0"}
            or topic.startswith("$")
            or len(topic) > _MAX_TOPIC
            or (topic.startswith(own) and not topic.startswith(f"{own}reply/"))
        )

    def _retain(self, topic: str, payload: bytes) -> None:
        # The lock prevents a reconnect in between from sending an older state after this one.
        with self._lock:
            self._retained[topic] = payload
            if self._client.is_connected():
                self._client.publish(topic, payload, qos=1, retain=True)

    # --- called by the thread of the outbox ---

    def _send_event(self, event: SpooledEvent, left_s: float) -> int | None:
        if not self._client.is_connected():
            return None
        properties = None
        if self._settings.protocol == "5":
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.MessageExpiryInterval = max(1, round(left_s))
        return self._client.publish(event.topic, event.payload, qos=1, properties=properties).mid

    # --- called by paho's network thread ---

    def _on_publish(self, _client: paho.Client, _data: Any, packet: int, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            log.warning("%s rejected a message: %s", self._broker_name, reason)
        self.outbox.acknowledge(packet)

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._reason = _REFUSALS.get(reason.value, f"refuses the connection: {reason}")
            if reason.value in _REFUSALS and not self._was_connected:
                self.refused.set()
            log.warning("%s %s", self._broker_name, self._reason)
            return
        self._was_connected = True
        log.info("connected to %s", self._broker_name)
        with self._lock:
            for topic, payload in {self.topics.status: ONLINE, **self._retained}.items():
                client.publish(topic, payload, qos=1, retain=True)
        if self._commands is not None:
            client.subscribe(self.topics.commands, qos=1)
        if self._settings.discovery is not None:
            client.subscribe(f"{self._settings.discovery}/status", qos=0)
        self.outbox.wake()

    def _on_message(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        topic = message.topic
        if topic == f"{self._settings.discovery}/status":
            if message.payload == ONLINE:
                self._announce(client)
        elif message.retain:
            log.warning("ignoring a retained command, as it would be repeated at every connection")
        elif self._commands is not None:
            response_topic = getattr(message.properties, "ResponseTopic", None)
            correlation = getattr(message.properties, "CorrelationData", None)
            # One byte over the limit is enough to refuse the command.
            payload = bytes(message.payload[: MAX_BYTES + 1])
            self._commands.take(Envelope(topic.rpartition("/")[2], payload, response_topic, correlation))

    def _on_subscribe(self, _client: paho.Client, _data: Any, _ident: int, reasons: Any, _properties: Any) -> None:
        for reason in reasons:
            if reason.is_failure:
                log.warning("%s refuses a subscription: %s; commands will not be received", self._broker_name, reason)

    def _announce(self, client: paho.Client) -> None:
        """Publish the discovery message again, because Home Assistant has restarted."""
        with self._lock:
            messages = {topic: payload for topic, payload in self._retained.items() if topic == self._discovery_topic}
            for topic, payload in messages.items():
                client.publish(topic, payload, qos=1, retain=True)

    def _on_disconnect(self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._unsent.clear()
        if reason.is_failure:
            log.warning("lost the connection to %s (%s); reconnecting", self._broker_name, reason)

    def _on_connect_fail(self, _client: paho.Client, _data: Any) -> None:
        # paho calls this inside its exception handler, but does not pass the exception.
        error = sys.exc_info()[1]
        reason = f" ({_reason_of(error)})" if error is not None else ""
        log.warning("%s cannot be reached%s; retrying", self._broker_name, reason)

    @property
    def _broker_name(self) -> str:
        return f"the broker at {self._settings.host}:{self._settings.port}"


def _disable_nagle(_client: paho.Client, _data: Any, connection: Any) -> None:
    """Send small messages at once, without waiting for the previous acknowledgement (Nagle's algorithm)."""
    with suppress(OSError, AttributeError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _tls_context(settings: TlsSettings) -> ssl.SSLContext:
    """Create a TLS context that verifies the broker's certificate and host name.

    The certificate is verified against the given authorities, or those of the system.

    Raises:
        ConfigError: A file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=settings.ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{settings.ca}: no certificate authority can be read from this file: {_reason_of(error)}"
        ) from error
    if settings.certificate is not None:
        try:
            # An empty password, so that OpenSSL does not ask for one on the terminal.
            context.load_cert_chain(settings.certificate, settings.key, password="")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{settings.certificate}, {settings.key or settings.certificate}: expected a client certificate and "
                f"a key without a passphrase: {_reason_of(error)}"
            ) from error
    return context


def _reason_of(error: BaseException) -> str:
    """Reason of an error, without OpenSSL's source line numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return str(getattr(error, "strerror", None) or getattr(error, "reason", None) or error)
