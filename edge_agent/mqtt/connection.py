"""The connection to the broker.

Each connection has a paho client of its own. A paho client that reconnects sends its unacknowledged messages again,
after the messages that the agent publishes on connect, so that old labels would overwrite the current one. With a new
client, everything that was under way ends with its connection, and the caller decides what is still worth sending.
"""

from __future__ import annotations

import logging
import random
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Protocol, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from ..config import MqttSettings, TlsSettings, mqtt_password
from ..errors import BrokerError, ConfigError

log = logging.getLogger(__name__)

WINDOW = 20
"""Maximum number of unacknowledged retained messages, and of events; Mosquitto's default Receive Maximum."""
MAX_RECEIVED = 64 * 1024
"""Maximum size of a received MQTT packet in bytes. The largest packets that the agent
expects are commands, which have at most 16 KiB."""
_ANSWER_S = 4.0
"""Seconds to wait for the answer to a CONNECT. With the time for TCP and TLS, a broker that never answers MQTT 5 is
connected with MQTT 3.1.1 within 10 seconds."""
_TCP_S = 5.0
_LOOP_S = 1.0
_STOP_S = 2.0
_MIN_DELAY_S, _MAX_DELAY_S = 1.0, 30.0
_TAKEN_OVER_DELAY_S = 60.0
_HINT_AFTER = 2
_STABLE_S = 30.0
"""A connection that lasted this long counts as working, so that the next delay is a short one."""
_PAUSE_S = 600.0
"""Seconds without commands after a packet that is too large, with MQTT 3.1.1, which has no way to forbid it."""

# Refusals for which retrying does not help. These are MQTT 5 codes; paho maps those of 3.1.1 to them.
_WRONG_VERSION = 0x84
_REFUSALS = {
    _WRONG_VERSION: "does not support this MQTT version",
    0x86: "refuses the user name or password",
    0x87: "does not authorise this device",
}
_TAKEN_OVER = 0x8E
# Negative acknowledgements of messages that are not accepted whatever changes at the broker: invalid topic, packet too
# large, invalid payload. https://docs.oasis-open.org/mqtt/mqtt/v5.0/os/mqtt-v5.0-os.html#_Toc3901124
_NEVER = frozenset({0x90, 0x95, 0x99})


class Refusal(NamedTuple):
    """Why the broker does not accept a message. ``lasting``: whether it would refuse the same message for ever."""

    reason: str
    lasting: bool


class Loss(NamedTuple):
    """The end of a connection. ``by_broker``: whether the broker closed it, as opposed to a failure of the network."""

    reason: str
    by_broker: bool


class Listener(Protocol):
    """What happens on a connection. The network thread calls these methods, without holding a lock."""

    def connected(self, session: Session) -> None:
        """The broker has accepted the connection."""

    def acknowledged(self, packet: int, refusal: Refusal | None) -> None:
        """The broker has acknowledged a message (QoS 1), or it was written to the socket (QoS 0)."""

    def received(self, topic: str, message: paho.MQTTMessage) -> None:
        """A message has arrived."""

    def lost(self, loss: Loss) -> None:
        """The connection that `connected` announced has ended."""


class Session:
    """One accepted connection.

    Attributes:
        protocol: MQTT version, ``5`` or ``3.1.1``.
        max_packet: Size of the largest MQTT packet that the broker accepts, in bytes; None if it did not say.
        receive_maximum: Number of unacknowledged messages that the broker accepts.
    """

    def __init__(
        self, client: paho.Client, number: int, protocol: str, *, max_packet: int | None, receive_maximum: int
    ) -> None:
        self.protocol = protocol
        self.max_packet = max_packet
        self.receive_maximum = receive_maximum
        self._client = client
        self._number = number

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        expiry_s: float | None = None,
        correlation: bytes | None = None,
    ) -> int:
        """Send a message, without waiting for the network.

        Returns:
            Identifier for `Listener.acknowledged`, unique among all sessions.
        """
        properties = None
        if self.protocol == "5" and (expiry_s is not None or correlation is not None):
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            if expiry_s is not None:
                properties.MessageExpiryInterval = max(1, round(expiry_s))
            if correlation is not None:
                properties.CorrelationData = correlation
        return _packet(self._number, self._client.publish(topic, payload, qos, retain, properties).mid)

    def subscribe(self, topic: str, qos: int) -> None:
        """Subscribe to a topic."""
        self._client.subscribe(topic, qos)


def packet_size(topic: str, payload: bytes) -> int:
    """Size of a PUBLISH packet in bytes, with room for its header and the properties that the agent sets."""
    return len(topic.encode()) + len(payload) + 32


class Connection:
    """Keeps a connection to a broker, in a thread of its own. A context manager.

    With ``protocol: auto``, a broker that does not answer MQTT 5 is connected with MQTT 3.1.1, from then on.

    Args:
        settings: Settings of the connection.
        client_id: Client identifier. It is fixed, so that the broker closes a stale connection of the same device.
        will: Topic and retained payload that the broker publishes if the connection is lost.
        listener: Receives what happens.

    Raises:
        ConfigError: The password or the certificates cannot be used.
    """

    def __init__(self, settings: MqttSettings, client_id: str, will: tuple[str, bytes], listener: Listener) -> None:
        self._settings = settings
        self._client_id = client_id
        self._will = will
        self._listener = listener
        self._password = None if settings.username is None else mqtt_password(settings)
        self._tls = None if settings.tls is None else tls_context(settings.tls)
        self._protocol = "5" if settings.protocol == "auto" else settings.protocol
        self._client: paho.Client | None = None
        self._refused: str | None = None
        self._commands_from_s = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mqtt", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        client = self._client
        if client is not None:
            client.disconnect()
        self._thread.join(_STOP_S)

    @property
    def broker(self) -> str:
        """Name of the broker, as shown to the user in logs and errors."""
        return f"the broker at {self._settings.host}:{self._settings.port}"

    @property
    def accepts_commands(self) -> bool:
        """Whether to subscribe to commands; False for a while after a packet that was too large."""
        return time.monotonic() >= self._commands_from_s

    def check(self) -> None:
        """Raise the error that the network thread found, if any.

        Raises:
            BrokerError: The broker refused the first connection, and retrying does not help; or the thread has ended.
        """
        if self._refused is not None:
            raise BrokerError(f"{self.broker} {self._refused}; check mqtt in agent.yaml")
        if self._thread.ident is not None and not self._thread.is_alive() and not self._stopping.is_set():
            raise BrokerError("the thread that talks to the broker has ended unexpectedly; see the log above")

    def _work(self) -> None:
        number = failures = 0
        was_accepted = False
        while not self._stopping.is_set():
            number += 1
            client = self._client = self._new_client()
            attempt = _Attempt(client, number, self._protocol, self._listener, self.broker)
            attempt.run(self._connect, self._stopping)
            self._client = None
            if self._stopping.is_set():
                return
            was_accepted |= attempt.accepted
            self._report(attempt, failures)
            if attempt.accepted:
                self._listener.lost(Loss(attempt.reason, attempt.by_broker))
            elif self._tries_other_protocol(attempt):
                continue
            elif attempt.code in _REFUSALS and not was_accepted:
                self._refused = attempt.reason
                return
            failures = 0 if attempt.lasted_s >= _STABLE_S else failures + 1
            self._stopping.wait(_delay_s(failures, taken_over=attempt.code == _TAKEN_OVER))

    def _new_client(self) -> _BoundedClient:
        client = _BoundedClient(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=paho.MQTTv5 if self._protocol == "5" else paho.MQTTv311,
            reconnect_on_failure=False,
        )
        if self._settings.username is not None:
            client.username_pw_set(self._settings.username, self._password)
        client.will_set(*self._will, qos=1, retain=True)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        client.connect_timeout = _TCP_S
        client.max_inflight_messages_set(0)  # The listener limits them: paho ignores the broker's Receive Maximum.
        client.on_socket_open = _disable_nagle
        # With this callback, paho leaves all writing to the network thread, so that publishing never waits.
        client.on_socket_register_write = lambda *_arguments: None
        return client

    def _connect(self, client: paho.Client) -> None:
        properties = None
        if self._protocol == "5":
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.MaximumPacketSize = MAX_RECEIVED
            properties.ReceiveMaximum = WINDOW
        settings = self._settings
        client.connect(settings.host, settings.port, keepalive=settings.keepalive_s, properties=properties)

    def _report(self, attempt: _Attempt, failures: int) -> None:
        if attempt.too_large:
            self._commands_from_s = time.monotonic() + _PAUSE_S
            log.warning(
                "%s sent a packet of more than %d KiB; no commands are received for %.0f minutes. Restrict who may "
                "publish commands in the broker's access list",
                self.broker,
                MAX_RECEIVED // 1024,
                _PAUSE_S / 60,
            )
        elif attempt.code == _TAKEN_OVER:
            log.warning(
                "another client with the id %s has taken over the connection to %s: do two devices have this name? "
                "Give each its own `device` in agent.yaml; trying again in about %.0f s",
                self._client_id,
                self.broker,
                _TAKEN_OVER_DELAY_S,
            )
        elif attempt.accepted:
            log.warning("lost the connection to %s (%s); reconnecting", self.broker, attempt.reason)
            if attempt.by_broker and failures == _HINT_AFTER:
                # MQTT 3.1.1, and brokers that give no reason.
                log.warning("if this goes on, look for another client with the id %s", self._client_id)
        elif not attempt.reached:
            log.warning("%s cannot be reached (%s); retrying", self.broker, attempt.reason)
        else:
            log.warning("%s %s", self.broker, attempt.reason)

    def _tries_other_protocol(self, attempt: _Attempt) -> bool:
        """Change the MQTT version after a failure that may be due to it; returns whether to try the new one at once."""
        if self._settings.protocol != "auto" or not attempt.reached or attempt.code not in (None, _WRONG_VERSION):
            return False
        self._protocol = "3.1.1" if self._protocol == "5" else "5"
        return self._protocol == "3.1.1"


class _Attempt:
    """One client, from its connect to its end.

    Attributes:
        reached: Whether the TCP (and TLS) connection was established.
        accepted: Whether the broker accepted the connection.
        code: MQTT 5 reason code of the refusal or of the disconnection, if the broker gave one.
        reason: Why the connection ended.
        by_broker: Whether the broker closed the connection.
        too_large: Whether the broker sent a packet that is too large.
        lasted_s: Seconds from acceptance to the end.
    """

    def __init__(self, client: _BoundedClient, number: int, protocol: str, listener: Listener, broker: str) -> None:
        self.reached = False
        self.accepted = False
        self.code: int | None = None
        self.reason = ""
        self.by_broker = False
        self.too_large = False
        self.lasted_s = 0.0
        self._client = client
        self._number = number
        self._protocol = protocol
        self._listener = listener
        self._broker = broker
        # paho holds its own locks while it calls back, and the listener may hold a lock while it publishes. To avoid a
        # deadlock, callbacks only note what happened, and the network thread handles it afterwards.
        self._happened: deque[Callable[[], None]] = deque()
        note = self._happened.append
        client.on_connect = lambda _c, _d, _f, reason, properties: note(partial(self._on_connect, reason, properties))
        client.on_disconnect = lambda _c, _d, flags, reason, _p: note(partial(self._on_disconnect, flags, reason))
        client.on_publish = lambda _c, _d, mid, reason, _p: note(partial(self._on_publish, mid, reason))
        client.on_message = lambda _c, _d, message: note(partial(self._on_message, message))
        client.on_subscribe = lambda _c, _d, _mid, reasons, _p: note(partial(self._on_subscribe, reasons))

    def run(self, connect: Callable[[paho.Client], None], stopping: threading.Event) -> None:
        """Connect, and return when the connection has ended."""
        try:
            connect(self._client)
        except (OSError, ValueError) as error:
            self.reason = reason_of(error)
            return
        self.reached = True
        accepted_s = None
        deadline_s = time.monotonic() + _ANSWER_S
        code = paho.MQTT_ERR_SUCCESS
        try:
            while code == paho.MQTT_ERR_SUCCESS:
                code = self._client.loop(_LOOP_S)
                while self._happened:
                    self._happened.popleft()()
                if self.accepted:
                    accepted_s = accepted_s or time.monotonic()
                elif stopping.is_set() or time.monotonic() > deadline_s:
                    break
        except Exception as error:
            # Whatever a broker sends must not end the network thread: the agent would look connected for ever.
            log.exception("cannot handle what %s sent", self._broker)
            self.reason = f"unexpected error: {error}"
        finally:
            self._client.let_go()
        self.too_large = self._client.too_large
        if accepted_s is not None:
            self.lasted_s = time.monotonic() - accepted_s
        elif not self.reason:
            how = "closes the connection" if code else f"does not answer within {_ANSWER_S:g} s"
            self.reason = f"{how} when the agent connects with MQTT {self._protocol}"

    def _on_connect(self, reason: ReasonCode, properties: Properties | None) -> None:
        if reason.is_failure:
            self.code = reason.value
            self.reason = _REFUSALS.get(reason.value, f"refuses the connection: {reason}")
            return
        self.accepted = True
        log.info("connected to %s with MQTT %s", self._broker, self._protocol)
        session = Session(
            self._client,
            self._number,
            self._protocol,
            max_packet=getattr(properties, "MaximumPacketSize", None),
            receive_maximum=getattr(properties, "ReceiveMaximum", 65_535),
        )
        self._listener.connected(session)

    def _on_disconnect(self, flags: paho.DisconnectFlags, reason: ReasonCode) -> None:
        if not self.accepted:
            return
        # paho calls it an unspecified error that the other side closed the TCP connection.
        closed = not flags.is_disconnect_packet_from_server and str(reason) == "Unspecified error"
        self.by_broker = closed or flags.is_disconnect_packet_from_server
        self.reason = "it closed the connection" if closed else str(reason)
        if flags.is_disconnect_packet_from_server:
            self.code = reason.value

    def _on_publish(self, mid: int, reason: ReasonCode) -> None:
        refusal = Refusal(str(reason), reason.value in _NEVER) if reason.is_failure else None
        self._listener.acknowledged(_packet(self._number, mid), refusal)

    def _on_message(self, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            log.warning("ignoring a message whose topic is not UTF-8")
            return
        self._listener.received(topic, message)

    def _on_subscribe(self, reasons: list[ReasonCode]) -> None:
        for reason in reasons:
            if reason.is_failure:
                log.warning("%s refuses a subscription: %s; commands will not be received", self._broker, reason)


class _BoundedClient(paho.Client):
    """A client that closes the connection instead of receiving a packet that is too large.

    MQTT 5 has a Maximum Packet Size, which brokers respect; MQTT 3.1.1 has none, and paho would keep up to 256 MB.
    """

    too_large = False

    def let_go(self) -> None:
        """Close the connection, and end the references of the client to itself.

        The client also holds a pair of sockets, which it closes when it ends: at once, or, with such references, when
        the collector of cyclic references finds it, perhaps hours later.
        """
        opened = self.socket()
        if opened is not None:
            opened.close()
        self.on_connect = self.on_disconnect = self.on_publish = self.on_message = self.on_subscribe = None

    def _sock_recv(self, bufsize: int) -> bytes:
        # paho asks for the rest of a packet at once.
        if bufsize > MAX_RECEIVED:
            self.too_large = True
            raise ConnectionAbortedError("the packet is too large")
        return super()._sock_recv(bufsize)


def _packet(session: int, mid: int) -> int:
    # A message id has 16 bits.
    return session << 16 | mid


def _delay_s(failures: int, *, taken_over: bool) -> float:
    """Seconds until the next attempt: random, so that a fleet does not come back all at once."""
    if taken_over:
        return random.uniform(_TAKEN_OVER_DELAY_S / 2, 1.5 * _TAKEN_OVER_DELAY_S)  # noqa: S311  no secret
    most = min(_MAX_DELAY_S, _MIN_DELAY_S * 2 ** min(failures, 10))
    return random.uniform(_MIN_DELAY_S / 2, most)  # noqa: S311


def _disable_nagle(_client: paho.Client, _data: Any, connection: Any) -> None:
    """Send small messages at once, without waiting for the previous acknowledgement (Nagle's algorithm)."""
    with suppress(OSError, AttributeError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def tls_context(settings: TlsSettings) -> ssl.SSLContext:
    """Create a TLS context that verifies the broker's certificate and host name.

    The certificate is verified against the given authorities, or those of the system.

    Raises:
        ConfigError: A file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=settings.ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{settings.ca}: no certificate authority can be read from this file: {reason_of(error)}"
        ) from error
    if settings.certificate is not None:
        try:
            # An empty password, so that OpenSSL does not ask for one on the terminal.
            context.load_cert_chain(settings.certificate, settings.key, password="")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{settings.certificate}, {settings.key or settings.certificate}: expected a client certificate and "
                f"a key without a passphrase: {reason_of(error)}"
            ) from error
    return context


def reason_of(error: BaseException) -> str:
    """Reason of an error, without OpenSSL's source line numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return str(getattr(error, "strerror", None) or getattr(error, "reason", None) or error)
