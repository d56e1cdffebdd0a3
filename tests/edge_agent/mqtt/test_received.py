"""Messages of an agent, read back by a subscriber."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from edge_agent.errors import MessageError
from edge_agent.messages import Info, ModelId, Observation, Reply, Timing, TopScore, Tunables
from edge_agent.mqtt import ReceivedMessage, Topics, read_message

TOPICS = Topics("edgeloop", "pi")
MODEL = ModelId("birds", "3", "0" * 64)
OBSERVATION = Observation(
    v=1,
    device="pi",
    camera="door",
    seq=7,
    captured_at="2026-01-31T12:00:00.123Z",
    label="robin",
    score=0.93,
    top=(TopScore("robin", 0.97),),
    model=MODEL,
    timing_ms=Timing(0.5, 3.0, 4.0),
)
INFO = Info(1, "pi", MODEL, ("robin",), {}, 2, None, "litert", "0.1.0", "3.11", recorder=False)
TUNABLES = Tunables(1, "pi", 0.6, 0.4, 0.5, 0.3, results=False)
REPLY = Reply(1, "pi", "7", "set", ok=True, error=None, result={})


@pytest.mark.parametrize(
    ("topic", "body", "camera", "kind"),
    [
        (TOPICS.label("door"), OBSERVATION, "door", "label"),
        (TOPICS.event("door"), OBSERVATION, "door", "event"),
        (TOPICS.result("door"), OBSERVATION, "door", "result"),
        (TOPICS.info, INFO, None, "info"),
        (TOPICS.tunables, TUNABLES, None, "settings"),
        (TOPICS.reply("7"), REPLY, None, "reply"),
    ],
)
def test_what_the_agent_publishes_is_read_back(topic: str, body: Any, camera: str | None, kind: str) -> None:
    assert read_message(topic, msgspec.json.encode(body)) == ReceivedMessage("pi", camera, kind, body)


def test_states_and_snapshots_are_text_and_bytes() -> None:
    assert read_message(TOPICS.status, b"offline") == ReceivedMessage("pi", None, "status", "offline")
    assert read_message(TOPICS.camera("door"), b"lost") == ReceivedMessage("pi", "door", "status", "lost")
    assert read_message(TOPICS.snapshot("door"), b"\xff\xd8") == ReceivedMessage("pi", "door", "snapshot", b"\xff\xd8")


@pytest.mark.parametrize(
    "topic",
    [
        "edgeloop/pi/cmd/set",
        "edgeloop/pi",
        "edgeloop/pi/camera/door",
        "edgeloop/pi/camera/door/label/more",
        "edgeloop//status",
        "other/pi/status",
        "homeassistant/status",
        "",
    ],
)
def test_other_topics_are_none_of_an_agents_messages(topic: str) -> None:
    assert read_message(topic, b"{}") is None


def test_another_prefix_is_followed() -> None:
    assert read_message("birds/pi/status", b"online", prefix="birds") == ReceivedMessage("pi", None, "status", "online")


def test_fields_of_newer_agents_are_ignored() -> None:
    document = {**msgspec.to_builtins(OBSERVATION), "later": 1}
    message = read_message(TOPICS.label("door"), json.dumps(document).encode())
    assert message is not None
    assert message.body == OBSERVATION


@pytest.mark.parametrize("payload", [b"", b"{}", b"null", b"[]", b'{"v": 1}', b'{"v": "1"}', b"\xff", b"online"])
def test_a_payload_that_no_agent_publishes_is_refused_by_topic(payload: bytes) -> None:
    with pytest.raises(MessageError, match="edgeloop/pi/health: not a message of an edgeloop agent"):
        read_message(TOPICS.health, payload)


def test_a_status_that_is_no_text_is_refused() -> None:
    with pytest.raises(MessageError, match="status: not a message"):
        read_message(TOPICS.status, b"\xff\xfe")


def test_another_format_version_is_named_with_the_remedy() -> None:
    with pytest.raises(MessageError, match="format version 2, expected 1; install the version that the device runs"):
        read_message(TOPICS.label("door"), b'{"v": 2, "label": 5}')
