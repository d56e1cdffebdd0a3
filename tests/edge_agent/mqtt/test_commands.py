"""Commands over MQTT: done once, answered, and harmless when they are nonsense."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.errors import StoreError
from edge_agent.messages import Reply
from edge_agent.mqtt.commands import MAX_BYTES, VERBS, Commands, Envelope, Set, parsed

SHA = "0" * 64
GOOD: dict[str, dict[str, Any]] = {
    "snapshot": {"id": "a1", "camera": "door"},
    "set": {"enter": 0.8, "results": True},
    "install": {"id": "a2", "url": "https://host/x.edgeloop", "sha256": SHA},
    "activate": {"model": "birds-3"},
    "rollback": {},
    "bench": {"runs": 10},
}


def commands_of(done: list[str]) -> Commands:
    def handler(verb: str) -> Any:
        def do(_command: object) -> dict[str, Any]:
            done.append(verb)
            return {"verb": verb}

        return do

    return Commands("pi", {verb: handler(verb) for verb in VERBS}, lambda _reply, _envelope: None)


@pytest.mark.parametrize("verb", VERBS)
def test_each_command_is_done_and_answered(verb: str) -> None:
    done: list[str] = []
    reply = commands_of(done).reply(Envelope(verb, json.dumps(GOOD[verb]).encode()))
    assert done == [verb]
    assert reply == Reply(1, "pi", GOOD[verb].get("id"), verb, True, None, {"verb": verb})


def test_nothing_at_all_stands_for_no_arguments() -> None:
    assert parsed("set", b"") == parsed("set", b" {} ") == Set()


BAD: list[tuple[str, bytes, str]] = [
    ("format-disk", b"{}", "unknown command; expected one of snapshot"),
    ("set", b"{", "malformed"),
    ("set", b"[]", "malformed"),
    ("set", b"null", "malformed"),
    ("set", b"\xff\xfe", "malformed"),
    ("set", b'{"enter": 1.5}', "<= 1"),
    ("set", b'{"enter": "0.5"}', "Expected `float | null`"),
    ("set", b'{"enter": NaN}', "malformed"),
    ("set", b'{"enter": 1e999}', "malformed"),
    ("set", b'{"device": "x"}', "unknown field"),
    ("set", b'{"id": "../../x"}', "malformed"),
    ("set", b"[" * 10_000, "malformed"),
    ("set", b'{"enter": 0.5, "x": ' + b"[" * 7000 + b"]" * 7000 + b"}", "malformed"),
    ("snapshot", b'{"camera": "../etc"}', "malformed"),
    ("install", b"{}", "missing required field"),
    ("install", b'{"url": "file:///etc/passwd", "sha256": "' + SHA.encode() + b'"}', "malformed"),
    ("install", b'{"url": "https://host/x", "sha256": "abc"}', "malformed"),
    ("activate", b'{"model": ""}', "malformed"),
    ("bench", b'{"runs": 1000000}', "<= 1000"),
    ("bench", b" " * (MAX_BYTES + 1), "16385 bytes"),
]


@pytest.mark.parametrize(("verb", "payload", "message"), BAD)
def test_what_is_malformed_is_answered_with_why_and_not_done(verb: str, payload: bytes, message: str) -> None:
    done: list[str] = []
    reply = commands_of(done).reply(Envelope(verb, payload))
    assert (reply.ok, reply.result, done) == (False, None, [])
    assert message in str(reply.error)
    assert "\n" not in str(reply.error)


def test_a_wrong_command_is_answered_under_its_own_id() -> None:
    reply = commands_of([]).reply(Envelope("set", b'{"id": "a7", "enter": 7}'))
    assert (reply.id, reply.ok) == ("a7", False)


def test_what_is_delivered_twice_is_done_once() -> None:
    done: list[str] = []
    commands = commands_of(done)
    for envelope in (
        Envelope("rollback", b'{"id": "x"}'),
        Envelope("bench", b"{}", "answers/me", b"7"),
        Envelope("bench", b"{}", "answers/you", b"7"),
    ):
        assert commands.reply(envelope) == commands.reply(envelope)
    assert done == ["rollback", "bench", "bench"]
    for _ in range(2):
        commands.reply(Envelope("rollback", b"{}"))
    assert done[3:] == ["rollback", "rollback"]  # nothing says that these are one and the same


@pytest.mark.parametrize(
    ("error", "told"),
    [(StoreError("no space\nleft"), "no space\\x0aleft"), (RuntimeError("secret"), "unexpected error")],
)
def test_what_cannot_be_done_is_answered_too(error: Exception, told: str) -> None:
    def fail(_command: object) -> None:
        raise error

    reply = Commands("pi", {"rollback": fail}, lambda _reply, _envelope: None).reply(Envelope("rollback", b"{}"))
    assert not reply.ok
    assert told in str(reply.error)
    assert "secret" not in str(reply.error)
    assert "is not available on this device" in str(Commands("pi", {}, print).reply(Envelope("bench", b"")).error)


def test_what_was_refused_may_be_asked_again_under_the_same_id() -> None:
    tries: list[object] = []

    def at_second_try(command: object) -> dict[str, Any]:
        tries.append(command)
        if len(tries) == 1:
            raise StoreError("the disk is full")
        return {}

    commands = Commands("pi", {"rollback": at_second_try}, lambda _reply, _envelope: None)
    assert [commands.reply(Envelope("rollback", b'{"id": "x"}')).ok for _ in range(3)] == [False, True, True]
    assert len(tries) == 2


def test_what_was_done_long_ago_is_forgotten() -> None:
    done: list[str] = []
    commands = commands_of(done)
    for number in range(1000):
        commands.reply(Envelope("rollback", f'{{"id": "{number}"}}'.encode()))
    assert len(commands._done) <= 100
    commands.reply(Envelope("rollback", b'{"id": "999"}'))
    assert len(done) == 1000


def test_an_answer_that_cannot_be_sent_does_not_end_the_answering() -> None:
    answered: list[str | None] = []

    def answer(reply: Reply, _envelope: Envelope) -> None:
        answered.append(reply.id)
        if reply.id == "1":
            raise ValueError("no such topic")

    with Commands("pi", {"bench": lambda _command: {}}, answer) as commands:
        for number in (1, 2):
            commands.take(Envelope("bench", f'{{"id": "{number}"}}'.encode()))
        deadline = time.monotonic() + 120
        while len(answered) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert answered == ["1", "2"]


def test_commands_that_come_faster_than_they_are_done_are_turned_away() -> None:
    hold, replies = threading.Event(), list[Reply]()

    def wait(_command: object) -> None:
        hold.wait(20)

    with Commands("pi", {"bench": wait}, lambda reply, _envelope: replies.append(reply)) as commands:
        for number in range(30):
            commands.take(Envelope("bench", f'{{"id": "{number}"}}'.encode()))
        busy = [reply for reply in replies if "busy" in str(reply.error)]
        hold.set()
    assert 10 <= len(busy) <= 14
    assert not any(reply.ok for reply in busy)


def mutated(payload: bytes, edits: list[tuple[int, int]]) -> bytes:
    changed = bytearray(payload)
    for place, value in edits:
        if value > 255:
            del changed[place % (len(changed) or 1) :]
        elif changed:
            changed[place % len(changed)] = value
    return bytes(changed)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
NAMES = st.sampled_from(
    ["id", "enter", "leave", "camera", "url", "sha256", "model", "runs", "activate", "results", "v"]
)
PAYLOADS = st.one_of(
    st.binary(max_size=200),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(NAMES, JSON, max_size=4).map(lambda value: json.dumps(value).encode()),
    st.tuples(
        st.sampled_from([json.dumps(command).encode() for command in GOOD.values()]),
        st.lists(st.tuples(st.integers(0, 200), st.integers(0, 300)), min_size=1, max_size=4),
    ).map(lambda pair: mutated(*pair)),
)


@pytest.mark.long
@settings(max_examples=int(os.environ.get("EDGELOOP_PAYLOADS", "1000")))
@given(st.sampled_from([*VERBS, "", "Set", "+", "\x00"]), PAYLOADS)
def test_no_payload_does_anything_that_was_not_asked_for(verb: str, payload: bytes) -> None:
    done: list[str] = []
    reply = commands_of(done).reply(Envelope(verb, payload))
    assert msgspec.json.encode(reply)
    assert reply.ok == (done == [verb])
    assert reply.ok or reply.error
    if reply.ok:
        # Whatever it was, it was a command by every rule: written out and read again it is the same.
        command = parsed(verb, payload)
        assert parsed(verb, msgspec.json.encode(command)) == command
