"""The MQTT client of the agent. Publishing never waits for the network."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Literal, NamedTuple, Self

import msgspec
import paho.mqtt.client as paho

from ..clock import Stamp, age_s, correction_s
from ..config import MqttSettings
from ..errors import BrokerError
from ..messages import CameraState, Health, Info, Observation, Reply, SpoolHealth, Tunables, shifted
from .commands import MAX_BYTES, Commands, Envelope, Handlers
from .connection import WINDOW, Connection, Loss, Refusal, Session, packet_size
from .discovery import discovery, discovery_topic
from .outbox import Outbox
from .poison import PoisonFinder
from .published import Published
from .spool import SpooledEvent
from .topics import Topics, can_be_answered

log = logging.getLogger(__name__)

ONLINE, OFFLINE = b"online", b"offline"
_STOP_TIMEOUT_S = 2.0
_MAX_UNSENT = 100
_MAX_UNSENT_BYTES = 4 * 2**20
"""Limits for messages of QoS 0 that are not written yet. A single message may be larger."""
_MAX_REPLIES = 20
_CALM_S = 10.0
"""A broker that still accepts messages this many seconds after a connect has got all that waited."""
_LARGE = 8 * 1024
_AFTERMATH_S = 3.0
"""A large message of QoS 0 is suspected if the broker closes the connection within this many seconds."""

_encode = msgspec.json.Encoder().encode


class _Sent(NamedTuple):
    """A message that the broker has not acknowledged yet."""

    kind: Literal["retained", "event", "reply"]
    topic: str
    key: int


class MqttPublisher:
    """A `Publisher` that sends messages to a broker. A context manager.

    The client connects in the background, and retries until it succeeds. After each connect, it sends the current
    retained messages (status, info, labels), in case the broker has lost them, and then the waiting events. When the
    context exits, the client publishes ``offline``. If the process dies, the broker publishes it (last will).

    What is kept for the broker is limited: the latest value of each retained topic, the events of the spool, and a few
    replies and messages of QoS 0.

    Args:
        settings: Settings of the connection.
        device: Name of this device.
        spool: File for events that wait for the broker; None keeps them in memory.
        published: File that remembers the retained topics, so that those of removed cameras and former names are
            cleared; None clears nothing.

    Raises:
        ConfigError: The password or the certificates cannot be used.
    """

    def __init__(
        self, settings: MqttSettings, device: str, spool: Path | None = None, *, published: Path | None = None
    ) -> None:
        self.topics = Topics(settings.prefix, device)
        self.wants_results = settings.results
        self.skipped = 0
        """Messages of QoS 0 that were not sent because the broker did not keep up."""
        self.outbox = Outbox(spool, self._send_event, expiry_s=settings.event_expiry_s)
        self._settings = settings
        self._published = Published(published)
        self._discovery_topic = settings.discovery and discovery_topic(settings.discovery, self.topics)
        self._info: Info | None = None
        self._commands: Commands | None = None
        # A fixed client id, so that the broker closes a stale connection of this device when it reconnects.
        self._connection = Connection(settings, f"{settings.prefix}-{device}", (self.topics.status, OFFLINE), self)

        self._lock = threading.Condition()
        # The lock protects everything below.
        self._session: Session | None = None
        self._retained: dict[str, bytes] = {self.topics.status: ONLINE}
        self._waiting: dict[str, bytes] = {}
        self._in_flight: dict[int, _Sent] = {}
        self._unsent: dict[int, int] = {}
        self._poison = PoisonFinder()
        self._connected_s = 0.0
        self._accepted = 0
        self._complained: set[str] = set()
        self._largest: int | None = None
        self._last_large: tuple[str, int, float] = ("", 0, 0.0)

    def __enter__(self) -> Self:
        self.outbox.__enter__()
        if self._commands is not None:
            self._commands.__enter__()
        self._connection.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.outbox.__exit__()
        if self._commands is not None:
            self._commands.__exit__()
        self._retain(self.topics.status, OFFLINE)
        with self._lock:
            self._lock.wait_for(
                lambda: self._session is None or not (self._in_flight or self._waiting), timeout=_STOP_TIMEOUT_S
            )
        self._connection.__exit__()

    def serve(self, handlers: Handlers) -> None:
        """Accept commands. Call it before entering the context; without it, no commands are accepted."""
        self._commands = Commands(self.topics.device, handlers, self._answer)

    def check(self) -> None:
        """Raise the error that a thread found, if any.

        Raises:
            BrokerError: The broker refused the first connection, and retrying does not help; or a thread has ended.
        """
        self._connection.check()
        if not self.outbox.is_working:
            raise BrokerError("the thread that sends events has ended unexpectedly; see the log above")

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that the broker has accepted."""
        return self._session is not None

    def info(self, info: Info) -> None:
        """See `Publisher`; retained, QoS 1."""
        self._info = info
        messages = {self.topics.info: _encode(_with_protocol(info, self._session))}
        if self._discovery_topic is not None:
            message = discovery(self.topics, info)
            platforms = {key: component["platform"] for key, component in message["components"].items()}
            # Home Assistant removes a component that is announced with its platform alone.
            message["components"] |= self._published.removed_components(self._discovery_topic, platforms)
            messages[self._discovery_topic] = _encode(message)
        of_cameras = [name(camera) for camera in info.cameras for name in (self.topics.label, self.topics.camera)]
        for topic in self._published.no_longer([self.topics.status, self.topics.tunables, *of_cameras, *messages]):
            self._retain(topic, b"")
        for topic, payload in messages.items():
            self._retain(topic, payload)

    def label(self, observation: Observation) -> None:
        """See `Publisher`; retained, QoS 1. While there is no connection, only the latest label is kept."""
        self._retain(self.topics.label(observation.camera), _encode(observation))

    def event(self, observation: Observation) -> None:
        """See `Publisher`; QoS 1, through the spool."""
        self.outbox.put(SpooledEvent(self.topics.event(observation.camera), _encode(observation), Stamp.now()))

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

    def snapshot(self, camera: str, jpeg: bytes) -> None:
        """See `Publisher`; QoS 0, dropped if there is no connection, as an old image is of no use."""
        self._send_or_drop(self.topics.snapshot(camera), jpeg)

    def last_labels(self, max_age_s: float) -> dict[str, str]:
        """The labels of the last events, by camera; also those of earlier processes. Call it inside the context.

        Args:
            max_age_s: Labels that are known to be older are left out.
        """
        now = Stamp.now()
        labels = {}
        for topic, payload, at in self.outbox.latest:
            try:
                observation = msgspec.json.decode(payload, type=Observation)
            except msgspec.MsgspecError:
                continue  # Of another version.
            if topic == self.topics.event(observation.camera) and (age_s(at, now) or 0.0) <= max_age_s:
                labels[observation.camera] = observation.label
        return labels

    def spool_health(self) -> SpoolHealth:
        """State of the event spool."""
        outbox = self.outbox
        return SpoolHealth(outbox.depth, outbox.dropped, outbox.on_disk, outbox.refused)

    def size_limit(self) -> int | None:
        """Size of the largest payload that the broker accepts, in bytes; None if no limit is known."""
        limit = self._packet_limit(self._session)
        return None if limit is None else max(0, limit - packet_size(self.topics.snapshot("x" * 64), b""))

    def _send_or_drop(self, topic: str, payload: bytes) -> None:
        """Send a message that is only useful now. The number of messages that are not written yet is limited."""
        with self._lock:
            session = self._session
            if session is None or not self._fits(session, topic, payload):
                return
            unsent_bytes = sum(self._unsent.values())
            if len(self._unsent) >= _MAX_UNSENT or (unsent_bytes and unsent_bytes + len(payload) > _MAX_UNSENT_BYTES):
                self.skipped += 1
                return
            self._unsent[session.publish(topic, payload, qos=0)] = len(payload)
            if len(payload) > _LARGE:
                self._last_large = topic, len(payload), time.monotonic()

    def _answer(self, reply: Reply, command: Envelope) -> None:
        topic, correlation = self.topics.reply(reply.id), None
        if command.topic is not None and can_be_answered(command.topic, self.topics):
            topic, correlation = command.topic, command.correlation
        with self._lock:
            session = self._session
            # A reply is not kept for the next connection: whoever asked may ask again.
            if session is None or self._count("reply") >= _MAX_REPLIES or not self._may_send(session):
                log.warning("dropped the reply to a command: the broker does not keep up")
                return
            payload = _encode(reply)
            if not self._fits(session, topic, payload):
                payload = _encode(
                    msgspec.structs.replace(
                        reply,
                        ok=False,
                        result=None,
                        error=f"the reply has {len(payload)} bytes, too many for the broker",
                    )
                )
            self._send(session, "reply", topic, payload, correlation=correlation)

    def _retain(self, topic: str, payload: bytes) -> None:
        with self._lock:
            self._retained[topic] = payload
            # At the end: what is published last arrives last.
            self._waiting.pop(topic, None)
            self._waiting[topic] = payload
            self._send_waiting()

    # --- with the lock held ---

    def _send_waiting(self) -> None:
        """Send retained messages, as many as may be under way. Of each topic, only the latest value waits."""
        session = self._session
        if session is None:
            self._waiting.clear()  # Connecting sends everything.
            return
        while self._waiting and self._count("retained") < WINDOW and self._may_send(session):
            topic = next(iter(self._waiting))
            payload = self._waiting.pop(topic)
            if self._fits(session, topic, payload):
                self._send(session, "retained", topic, payload)

    def _send(
        self,
        session: Session,
        kind: Literal["retained", "event", "reply"],
        topic: str,
        payload: bytes,
        *,
        expiry_s: float | None = None,
        correlation: bytes | None = None,
    ) -> int:
        packet = session.publish(
            topic, payload, qos=1, retain=kind == "retained", expiry_s=expiry_s, correlation=correlation
        )
        self._in_flight[packet] = _Sent(kind, topic, hash((topic, payload)))
        return packet

    def _may_send(self, session: Session) -> bool:
        return len(self._in_flight) < (1 if self._poison.is_cautious else session.receive_maximum)

    def _count(self, kind: str) -> int:
        return sum(sent.kind == kind for sent in self._in_flight.values())

    def _fits(self, session: Session, topic: str, payload: bytes) -> bool:
        size, limit = packet_size(topic, payload), self._packet_limit(session)
        if limit is None or size <= limit:
            return True
        self._complain(
            topic,
            f"the message on {topic} has {size} bytes, but the broker accepts at most {limit}; it is not sent. "
            "Increase the broker's maximum packet size",
        )
        return False

    def _packet_limit(self, session: Session | None) -> int | None:
        """Size of the largest packet that the broker accepts, as it said or as it was learnt; None if not known."""
        said = None if session is None else session.max_packet
        return min((limit for limit in (said, self._largest) if limit is not None), default=None)

    def _complain(self, topic: str, text: str) -> None:
        """Log a warning once for each topic, until the process ends."""
        if topic not in self._complained:
            self._complained.add(topic)
            log.warning("%s", text)

    # --- called by the thread of the outbox ---

    def _send_event(self, event: SpooledEvent, left_s: float) -> int | Refusal | None:
        with self._lock:
            session = self._session
            if session is None or not self._may_send(session):
                return None
            payload = _corrected(event)
            if self._fits(session, event.topic, payload):
                return self._send(session, "event", event.topic, payload, expiry_s=left_s)
        return Refusal("too large for the broker", lasting=True)

    # --- called by the network thread; see `Listener` ---

    def connected(self, session: Session) -> None:
        """Send the current state."""
        with self._lock:
            self._session = session
            self._connected_s = time.monotonic()
            self._accepted = 0
            if self._info is not None and self.topics.info in self._retained:
                self._retained[self.topics.info] = _encode(_with_protocol(self._info, session))
            self._waiting = dict(self._retained)
            self._send_waiting()
        if self._commands is not None and self._connection.accepts_commands:
            session.subscribe(self.topics.commands, qos=1)
        if self._settings.discovery is not None:
            session.subscribe(f"{self._settings.discovery}/status", qos=0)
        self.outbox.wake()

    def acknowledged(self, packet: int, refusal: Refusal | None) -> None:
        """Send what waits for this acknowledgement."""
        with self._lock:
            session = self._session
            was_full = session is not None and not self._may_send(session)
            self._unsent.pop(packet, None)
            sent = self._in_flight.pop(packet, None)
            if sent is None:
                return
            self._accepted += refusal is None
            if sent.kind != "event" and refusal is not None:
                self._complain(
                    sent.topic,
                    f"the broker refuses a message on {sent.topic} ({refusal.reason}); allow this device to publish "
                    "on this topic in the broker's access list",
                )
            is_cleared = sent.kind == "retained" and refusal is None and self._retained.get(sent.topic) == b""
            if is_cleared:
                del self._retained[sent.topic]
            self._send_waiting()
            if not self._in_flight and not self._waiting:
                if time.monotonic() - self._connected_s >= _CALM_S:
                    self._poison.all_acknowledged()
                self._lock.notify_all()
        if is_cleared:
            self._published.cleared(sent.topic)
        if sent.kind == "event":
            self.outbox.acknowledge(packet, refusal)
        elif was_full:
            self.outbox.wake()

    def received(self, topic: str, message: paho.MQTTMessage) -> None:
        """Take a command, or announce the device to Home Assistant, which has just started."""
        if topic == f"{self._settings.discovery}/status":
            if message.payload == ONLINE and self._discovery_topic in self._retained:
                self._retain(self._discovery_topic, self._retained[self._discovery_topic])
        elif message.retain:
            log.warning("ignoring a retained command, as it would be repeated at every connection")
        elif self._commands is not None:
            response_topic = getattr(message.properties, "ResponseTopic", None)
            correlation = getattr(message.properties, "CorrelationData", None)
            # One byte over the limit is enough to refuse the command.
            payload = bytes(message.payload[: MAX_BYTES + 1])
            self._commands.take(Envelope(topic.rpartition("/")[2], payload, response_topic, correlation))

    def lost(self, loss: Loss) -> None:
        """Forget what was under way; the next connection begins with the current state."""
        with self._lock:
            self._session = None
            under_way = list(self._in_flight.items())
            self._in_flight.clear()
            self._unsent.clear()
            self._waiting.clear()
            self._lock.notify_all()
            to_blame = self._poison.lost(
                [sent.key for _packet, sent in under_way], by_broker=loss.by_broker, accepted_others=self._accepted > 0
            )
            poison = [(packet, sent) for packet, sent in under_way if sent.key == to_blame]
            for _packet, sent in poison:
                log.error(
                    "the broker closes the connection whenever it gets the message on %s; it is not sent again. The "
                    "broker's log may say why",
                    sent.topic,
                )
                if sent.kind == "retained":
                    self._retained.pop(sent.topic, None)
            self._learn_size(loss)
        for packet, sent in poison:
            if sent.kind == "event":
                self.outbox.acknowledge(
                    packet, Refusal("the broker closes the connection when it gets it", lasting=True)
                )
        self.outbox.connection_lost()

    def _learn_size(self, loss: Loss) -> None:
        """Send no more messages of a size that the broker answers by closing the connection, as MQTT 3.1.1 does."""
        topic, size, at_s = self._last_large
        self._last_large = "", 0, 0.0
        if not loss.by_broker or not size or time.monotonic() - at_s > _AFTERMATH_S:
            return
        self._largest = min(size - 1, self._largest or size)
        log.warning(
            "the broker closed the connection after a message of %d bytes on %s; no messages of this size are sent "
            "until the agent restarts. Increase the broker's maximum packet size",
            size,
            topic,
        )


def _with_protocol(info: Info, session: Session | None) -> Info:
    return info if session is None else msgspec.structs.replace(info, mqtt_protocol=session.protocol)


def _corrected(event: SpooledEvent) -> bytes:
    """The payload, with the capture time corrected if the clock has been set since."""
    shift_s = correction_s(event.at, Stamp.now())
    if shift_s is None:
        return event.payload
    try:
        observation = msgspec.json.decode(event.payload, type=Observation)
        captured_at = shifted(observation.captured_at, shift_s)
    except (msgspec.MsgspecError, ValueError, OverflowError):
        return event.payload
    return _encode(msgspec.structs.replace(observation, captured_at=captured_at, clock=None))
