"""Commands over MQTT: what may be asked for, and that anything else is answered and changes nothing.

A command is a JSON object on ``cmd/<verb>``. Its answer goes to the response topic of MQTT 5 with the correlation data,
else to ``reply/<id>`` with the command's own ``id``, ``reply/none`` without one.
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
_WAITING = 16
_REMEMBERED = 64
_GOODBYE_S = 1.0

Ident = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
Url = Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s\x00-\x1f]+\Z", max_length=2048)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every command may carry: ``id``, repeated in its answer; a command of the same id is not done twice."""

    id: Ident | None = None


class Snapshot(Command, frozen=True, forbid_unknown_fields=True):
    """Publish an image of a camera as it took it; of every camera when none is named."""

    camera: Slug | None = None


class Set(Command, frozen=True, forbid_unknown_fields=True):
    """Change settings until the agent ends; see `Tunables`."""

    enter: Fraction | None = None
    leave: Fraction | None = None
    min_time_s: Seconds | None = None
    smoothing_s: Seconds | None = None
    results: bool | None = None


class Install(Command, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Fetch a bundle, check it and prove it here; ``activate`` runs it then. ``sha256``: of the file."""

    url: Url
    sha256: Sha256
    activate: bool = True


class Activate(Command, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Run an installed model: its name, name-version, or the beginning of its digest."""

    model: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Rollback(Command, frozen=True, forbid_unknown_fields=True):
    """Run the model before this one."""


class Bench(Command, frozen=True, forbid_unknown_fields=True):
    """Measure this many inferences beside the running agent."""

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
"""By verb, what does it: from the command to what its answer tells. What it raises becomes the answer's error."""


class Envelope(NamedTuple):
    """A command as it came: ``topic`` and ``correlation`` are where and with what its sender wants the answer."""

    verb: str
    payload: bytes
    topic: str | None = None
    correlation: bytes | None = None


class Commands:
    """Does commands one after the other, in a thread of its own. A context manager.

    Args:
        device: this device's name.
        handlers: by verb; verbs without one are refused.
        answer: where replies go, with the command they answer.
    """

    def __init__(self, device: str, handlers: Handlers, answer: Callable[[Reply, Envelope], None]) -> None:
        self._device = device
        self._handlers = handlers
        self._answer = answer
        self._queue: queue.Queue[Envelope | None] = queue.Queue(_WAITING)
        self._done: OrderedDict[tuple[str | None, str | bytes | None], Reply] = OrderedDict()
        self._thread = threading.Thread(target=self._work, name="commands", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return  # its thread dies with the process
        self._thread.join(_GOODBYE_S)

    def take(self, envelope: Envelope) -> None:
        """Have a command done; never waits. For the network thread."""
        try:
            self._queue.put_nowait(envelope)
        except queue.Full:
            self._answer(self._refusal(envelope.verb, None, "busy with other commands; ask again later"), envelope)

    def _work(self) -> None:
        while (envelope := self._queue.get()) is not None:
            try:
                self._answer(self.reply(envelope), envelope)
            except Exception:
                log.exception("a command could not be answered")

    def reply(self, envelope: Envelope) -> Reply:
        """Do a command, or find what is wrong with it; its answer. Raises nothing."""
        verb, ident = envelope.verb, _ident(envelope.payload)
        key = (envelope.topic, envelope.correlation) if ident is None else (None, ident)
        if key[1] and key in self._done:
            # Delivered twice, as QoS 1 may, or sent again by one who got no answer.
            return self._done[key]
        try:
            result = self._handler(verb)(parsed(verb, envelope.payload))
        except EdgeloopError as error:
            log.warning("command %s: %s", verb, error)
            return self._refusal(verb, ident, one_line(error))
        except Exception:
            log.exception("command %s: failed by a bug", verb)
            return self._refusal(verb, ident, "failed inside; the device's log says more")
        log.info("command %s: done", verb)
        reply = Reply(VERSION, self._device, ident, verb, True, None, result)
        self._done[key] = reply
        if len(self._done) > _REMEMBERED:
            self._done.popitem(last=False)
        return reply

    def _handler(self, verb: str) -> Callable[[Any], dict[str, Any] | None]:
        if verb not in VERBS:
            raise CommandError(f"unknown command; known are {', '.join(VERBS)}")
        if verb not in self._handlers:
            raise CommandError(f"{verb} cannot be done here")
        return self._handlers[verb]

    def _refusal(self, verb: str, ident: str | None, why: str) -> Reply:
        return Reply(VERSION, self._device, ident, verb if verb in VERBS else "unknown", False, why[:1000], None)


def parsed(verb: str, payload: bytes) -> Command:
    """A command's payload as a value; nothing at all stands for no arguments.

    Raises:
        CommandError: with what is wrong with it.
    """
    if len(payload) > MAX_BYTES:
        raise CommandError(f"{len(payload)} bytes; a command may have {MAX_BYTES}")
    try:
        return msgspec.json.decode(payload.strip() or b"{}", type=VERBS[verb])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CommandError(f"malformed: {error}") from error


class _Named(msgspec.Struct):
    id: Ident | None = None


def _ident(payload: bytes) -> str | None:
    """The id alone, so that a command that is wrong elsewhere can be answered."""
    if len(payload) > MAX_BYTES:
        return None
    try:
        return msgspec.json.decode(payload, type=_Named).id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
