"""The connection to the broker. Publishing never waits for the network."""

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
_GOODBYE_S = 2.0
_RECONNECT_S = (1, 30)
_MOST_PASSING = 100
_LONGEST_TOPIC = 512
# Reasons that will not go away by trying again: MQTT 5 codes; paho maps those of 3.1.1 to them.
_REFUSALS = {
    0x84: "does not speak this MQTT version",
    0x86: "refuses the user name or password",
    0x87: "does not authorise this device",
}

_encode = msgspec.json.Encoder().encode


class MqttPublisher:
    """Publishes to a broker; a context manager.

    Connecting happens in the background and goes on for as long as it takes. After every connect
    the retained messages (status, info, labels) are sent again, so that a broker that lost them
    knows the present, and the events that waited follow. Leaving the block says ``offline``; dying
    without leaving it lets the broker say so.

    Args:
        settings: the broker.
        device: this device's name.
        spool: file for events that wait for the broker; in memory when left out.

    Raises:
        ConfigError: the password or the certificates cannot be used.
    """

    def __init__(self, settings: MqttSettings, device: str, spool: Path | None = None) -> None:
        self.topics = Topics(settings.prefix, device)
        self.wants_results = settings.results
        self._discovery_topic = settings.discovery and discovery_topic(settings.discovery, self.topics)
        self.refused = threading.Event()
        """Set when the broker turned us away at the first connection for a reason that will not pass."""
        self._settings = settings
        self._reason = ""
        self._was_connected = False
        self._lock = threading.Lock()
        self._retained: dict[str, bytes] = {}
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            # Fixed, so that the broker ends a half-dead older connection of ours when we come back.
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
        self._client.on_socket_open = _send_at_once
        self._commands: Commands | None = None
        self._passing: deque[paho.MQTTMessageInfo] = deque()
        self.passed_over = 0
        """Messages of QoS 0 that were not sent because the broker does not keep up."""

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
            goodbye = self._client.publish(self.topics.status, OFFLINE, qos=1, retain=True)
            try:
                goodbye.wait_for_publish(_GOODBYE_S)
            except (RuntimeError, ValueError) as error:
                log.warning("could not say goodbye to the broker: %s", error)
        self._client.disconnect()
        self._client.loop_stop()

    def serve(self, handlers: Handlers) -> None:
        """Take commands; to be said before entering the block. None are taken without."""
        self._commands = Commands(self.topics.device, handlers, self._answer)

    def check(self) -> None:
        """Raise what the network thread found out.

        Raises:
            BrokerError: the broker refused the first connection for good.
        """
        if self.refused.is_set():
            raise BrokerError(f"{self._where} {self._reason}; check mqtt in agent.yaml")

    def info(self, info: Info) -> None:
        """See `Publisher`; retained, QoS 1."""
        self._retain(self.topics.info, _encode(info))
        if self._discovery_topic is not None:
            self._retain(self._discovery_topic, _encode(discovery(self.topics, info)))

    def label(self, observation: Observation) -> None:
        """See `Publisher`; retained, QoS 1. While the broker is away only the latest is kept."""
        self._retain(self.topics.label(observation.camera), _encode(observation))

    def event(self, observation: Observation) -> None:
        """See `Publisher`; QoS 1, through the spool."""
        self.outbox.put(SpooledEvent(self.topics.event(observation.camera), _encode(observation), time.time()))

    def result(self, observation: Observation) -> None:
        """See `Publisher`; QoS 0, dropped while the broker is away or does not keep up."""
        self._pass(self.topics.result(observation.camera), _encode(observation))

    def camera(self, name: str, state: CameraState) -> None:
        """See `Publisher`; retained, QoS 1."""
        self._retain(self.topics.camera(name), state.encode())

    def health(self, health: Health) -> None:
        """See `Publisher`; QoS 0, dropped while the broker is away."""
        self._pass(self.topics.health, _encode(health))

    def tunables(self, tunables: Tunables) -> None:
        """See `Publisher`; retained, QoS 1."""
        self._retain(self.topics.tunables, _encode(tunables))

    def spool_health(self) -> SpoolHealth:
        """Events that wait, that were lost, and whether they wait on disk."""
        return SpoolHealth(self.outbox.depth, self.outbox.dropped, self.outbox.on_disk)

    def snapshot(self, camera: str, jpeg: bytes) -> None:
        """See `Publisher`; QoS 0, dropped while the broker is away: an image of the past is no answer."""
        self._pass(self.topics.snapshot(camera), jpeg)

    def _pass(self, topic: str, payload: bytes) -> None:
        """Send what is only worth something now. What paho has not written yet is bounded: a broker may be slow."""
        while self._passing and self._passing[0].is_published():
            self._passing.popleft()
        if not self._client.is_connected():
            return
        if len(self._passing) >= _MOST_PASSING:
            self.passed_over += 1
            return
        sent = self._client.publish(topic, payload, qos=0)
        if sent.rc == paho.MQTT_ERR_SUCCESS:
            self._passing.append(sent)

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
        """A topic that may be published to, and that does not make us command ourselves or speak as ourselves."""
        own = f"{self._settings.prefix}/{self.topics.device}/"
        return not (
            set(topic) & {"+", "#", "\0"}
            or topic.startswith("$")
            or len(topic) > _LONGEST_TOPIC
            or (topic.startswith(own) and not topic.startswith(f"{own}reply/"))
        )

    def _retain(self, topic: str, payload: bytes) -> None:
        # Under the lock, so that a reconnect in between cannot send an older state after this one.
        with self._lock:
            self._retained[topic] = payload
            if self._client.is_connected():
                self._client.publish(topic, payload, qos=1, retain=True)

    # --- called by the outbox' thread ---

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
            log.warning("%s does not take a message: %s", self._where, reason)
        self.outbox.acknowledge(packet)

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._reason = _REFUSALS.get(reason.value, f"refuses the connection: {reason}")
            if reason.value in _REFUSALS and not self._was_connected:
                self.refused.set()
            log.warning("%s %s", self._where, self._reason)
            return
        self._was_connected = True
        log.info("connected to %s", self._where)
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
            log.warning("a retained command was ignored: it would be done again at every connection")
        elif self._commands is not None:
            wanted = getattr(message.properties, "ResponseTopic", None)
            correlation = getattr(message.properties, "CorrelationData", None)
            # One byte more than it may have is enough to refuse it.
            payload = bytes(message.payload[: MAX_BYTES + 1])
            self._commands.take(Envelope(topic.rpartition("/")[2], payload, wanted, correlation))

    def _on_subscribe(self, _client: paho.Client, _data: Any, _ident: int, reasons: Any, _properties: Any) -> None:
        for reason in reasons:
            if reason.is_failure:
                log.warning("%s does not let us subscribe: %s; commands will not come", self._where, reason)

    def _announce(self, client: paho.Client) -> None:
        """Home Assistant has started: it wants to hear again what is here."""
        with self._lock:
            again = {topic: payload for topic, payload in self._retained.items() if topic == self._discovery_topic}
            for topic, payload in again.items():
                client.publish(topic, payload, qos=1, retain=True)

    def _on_disconnect(self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._passing.clear()
        if reason.is_failure:
            log.warning("lost %s (%s); trying again", self._where, reason)

    def _on_connect_fail(self, _client: paho.Client, _data: Any) -> None:
        # paho calls this while it handles what went wrong, and does not say what that is.
        error = sys.exc_info()[1]
        reason = f" ({_shown(error)})" if error is not None else ""
        log.warning("%s cannot be reached%s; trying again", self._where, reason)

    @property
    def _where(self) -> str:
        return f"the broker at {self._settings.host}:{self._settings.port}"


def _send_at_once(_client: paho.Client, _data: Any, connection: Any) -> None:
    """A small message is not kept back until the one before was acknowledged (Nagle's algorithm)."""
    with suppress(OSError, AttributeError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _tls_context(settings: TlsSettings) -> ssl.SSLContext:
    """Certificates checked against the given authority, or the system's, and the host's name with them.

    Raises:
        ConfigError: a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=settings.ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{settings.ca}: no certificate authority can be read from it: {_shown(error)}") from error
    if settings.certificate is not None:
        try:
            # An empty password: a locked key would otherwise be asked for on the terminal.
            context.load_cert_chain(settings.certificate, settings.key, password="")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{settings.certificate}, {settings.key or settings.certificate}: no client certificate and key "
                f"without a passphrase can be read: {_shown(error)}"
            ) from error
    return context


def _shown(error: BaseException) -> str:
    """What went wrong, without the numbers of OpenSSL's source lines."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return str(getattr(error, "strerror", None) or getattr(error, "reason", None) or error)
