"""Commands over MQTT. Invalid commands are answered with an error, and change nothing.

A command is a JSON object on ``cmd/<verb>``. The reply is published on the command's MQTT 5 response topic, with its
correlation data. Without a response topic, it is published on ``reply/<id>``, with the ``id`` of the command, or on
``reply/none`` if it has no ``id``.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, Self

import msgspec

from ..config import Fraction, Seconds, Slug
from ..errors import CommandError, EdgeloopError, one_line
from ..messages import VERSION, Reply

log = logging.getLogger(__name__)

MAX_BYTES = 16 * 1024
_QUEUE_SIZE = 16
_REMEMBERED = 64
_STOP_TIMEOUT_S = 1.0

Ident = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
Url = Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s\x00-\x1f]+\Z", max_length=2048)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all commands. The reply contains the same ``id``. A command whose ``id`` was already executed is not
    executed again.
    """

    id: Ident | None = None


class Snapshot(Command, frozen=True, forbid_unknown_fields=True):
    """Publish the newest full image of a camera, or of all cameras if ``camera`` is omitted."""

    camera: Slug | None = None


class Set(Command, frozen=True, forbid_unknown_fields=True):
    """Change settings until the agent stops; see `Tunables`."""

    enter: Fraction | None = None
    leave: Fraction | None = None
    min_time_s: Seconds | None = None
    smoothing_s: Seconds | None = None
    results: bool | None = None


class Install(Command, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Download a bundle, verify it and run its canary test.

    ``sha256``: checksum of the file. ``activate``: whether to run the model.
    """

    url: Url
    sha256: Sha256
    activate: bool = True


class Activate(Command, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Activate an installed model. ``model``: its name, name-version, or the first digits of its digest."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Rollback(Command, frozen=True, forbid_unknown_fields=True):
    """Go back to the previous model."""


class Bench(Command, frozen=True, forbid_unknown_fields=True):
    """Measure the time of ``runs`` inferences while the agent runs."""

    runs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100


VERBS: Mapping[str, type[Command]] = {
    "snapshot": Snapshot,
    "set": Set,
    "install": Install,
    "activate": Activate,
    "rollback": Rollback,
    "bench": Bench,
}

Handlers = Mapping[str, Callable[[Any], dict[str, Any] | None]]
"""Functions by verb that carry out a command and return the ``result`` of the reply. An exception becomes its error."""


class Envelope(NamedTuple):
    """A received command. ``topic`` and ``correlation``: response topic and correlation data for the reply."""

    verb: str
    payload: bytes
    topic: str | None = None
    correlation: bytes | None = None


class Commands:
    """Carries out commands one at a time, in a separate thread. A context manager.

    Args:
        device: Name of this device.
        handlers: Handlers by verb; verbs without a handler are refused.
        answer: Function that publishes a reply; it is called with the reply and the received command.
    """

    def __init__(self, device: str, handlers: Handlers, answer: Callable[[Reply, Envelope], None]) -> None:
        self._device = device
        self._handlers = handlers
        self._answer = answer
        self._queue: queue.Queue[Envelope | None] = queue.Queue(_QUEUE_SIZE)
        self._done: OrderedDict[tuple[str | None, str | bytes | None], Reply] = OrderedDict()
        self._thread = threading.Thread(target=self._work, name="commands", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return  # The daemon thread ends with the process.
        self._thread.join(_STOP_TIMEOUT_S)

    def take(self, envelope: Envelope) -> None:
        """Queue a command. Never blocks; called by the network thread."""
        try:
            self._queue.put_nowait(envelope)
        except queue.Full:
            self._answer(self._refusal(envelope.verb, None, "busy with other commands; try again later"), envelope)

    def _work(self) -> None:
        while (envelope := self._queue.get()) is not None:
            try:
                self._answer(self.reply(envelope), envelope)
            except Exception:
                log.exception("cannot reply to a command")

    def reply(self, envelope: Envelope) -> Reply:
        """Carry out a command, and return the reply. Errors are part of the reply; nothing is raised."""
        verb, ident = envelope.verb, _ident(envelope.payload)
        key = (envelope.topic, envelope.correlation) if ident is None else (None, ident)
        if key[1] and key in self._done:
            # Delivered twice, which QoS 1 permits, or sent again because the reply was lost.
            return self._done[key]
        try:
            result = self._handler(verb)(parsed(verb, envelope.payload))
        except EdgeloopError as error:
            log.warning("command %s: %s", verb, error)
            return self._refusal(verb, ident, one_line(error))
        except Exception:
            log.exception("command %s: unexpected error", verb)
            return self._refusal(verb, ident, "unexpected error; see the device's log")
        log.info("command %s: done", verb)
        reply = Reply(VERSION, self._device, ident, verb, True, None, result)
        self._done[key] = reply
        if len(self._done) > _REMEMBERED:
            self._done.popitem(last=False)
        return reply

    def _handler(self, verb: str) -> Callable[[Any], dict[str, Any] | None]:
        if verb not in VERBS:
            raise CommandError(f"unknown command; expected one of {', '.join(VERBS)}")
        if verb not in self._handlers:
            raise CommandError(f"{verb} is not available on this device")
        return self._handlers[verb]

    def _refusal(self, verb: str, ident: str | None, reason: str) -> Reply:
        return Reply(VERSION, self._device, ident, verb if verb in VERBS else "unknown", False, reason[:1000], None)


def parsed(verb: str, payload: bytes) -> Command:
    """Parse the payload of a command. An empty payload means no arguments.

    Raises:
        CommandError: The payload is malformed or too large.
    """
    if len(payload) > MAX_BYTES:
        raise CommandError(f"{len(payload)} bytes; the limit for a command is {MAX_BYTES}")
    try:
        return msgspec.json.decode(payload.strip() or b"{}", type=VERBS[verb])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CommandError(f"malformed: {error}") from error


class _Named(msgspec.Struct):
    id: Ident | None = None


def _ident(payload: bytes) -> str | None:
    """Read only the ``id``, so that an invalid command can be answered."""
    if len(payload) > MAX_BYTES:
        return None
    try:
        return msgspec.json.decode(payload, type=_Named).id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
