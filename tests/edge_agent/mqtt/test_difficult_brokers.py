"""Brokers that hang, refuse, close the connection, or do not speak MQTT 5; and what they must not do to the agent."""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.clock import Stamp
from edge_agent.config import MqttSettings
from edge_agent.messages import Info, ModelId, Observation, Reply, Timing
from edge_agent.mqtt import MqttPublisher, connection
from edge_agent.mqtt.commands import Envelope
from edge_agent.mqtt.poison import PoisonFinder
from edge_agent.mqtt.spool import Spool, SpooledEvent
from edge_agent.mqtt.topics import Topics, can_be_answered

from ...conftest import Mosquitto, Subscriber, start_mosquitto, wait_until

OUTAGES = int(os.environ.get("EDGELOOP_OUTAGES", "50"))


def observed(seq: int, label: str = "robin", camera: str = "door") -> Observation:
    return Observation(1, "pi", camera, seq, "", label, 0.9, (), ModelId("m", "1", "d"), Timing(1, 2, 3))


def info(labels: int = 3) -> Info:
    names = tuple(f"label number {number}" for number in range(labels))
    return Info(1, "pi", ModelId("m", "1", "d"), names, {}, 1, None, "litert", "0", "3.11", recorder=False)


def settings(port: int, protocol: str = "auto", **more: Any) -> MqttSettings:
    return MqttSettings(host="127.0.0.1", port=port, protocol=protocol, keepalive_s=2, **more)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def every_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnect within a tenth of a second."""
    monkeypatch.setattr(connection, "_MIN_DELAY_S", 0.02)
    monkeypatch.setattr(connection, "_MAX_DELAY_S", 0.1)


def retained(port: int, topic: str) -> str:
    """The retained message of a topic, as a new subscriber gets it."""
    command = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(port), "-t", topic, "-C", "1", "-W", "30"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class ScriptedBroker:
    """A broker made of bytes: answers each packet of a client as the test wants."""

    def __init__(self, answer: Callable[[int, bytes], bytes | None]) -> None:
        self.connects: list[int] = []
        """Protocol levels of the CONNECT packets: 4 is MQTT 3.1.1, 5 is MQTT 5."""
        self.published: list[tuple[str, bytes]] = []
        self._answer = answer
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._server.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        stream = client.makefile("rb")
        with suppress(OSError, IndexError, struct.error), client, stream:
            while kind := stream.read(1):
                size = shift = 0
                while True:
                    (byte,) = stream.read(1)
                    size |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        break
                body = stream.read(size)
                if kind[0] >> 4 == 1:
                    self.connects.append(body[6])
                if kind[0] >> 4 == 3:
                    (length,) = struct.unpack_from("!H", body)
                    self.published.append((body[2 : 2 + length].decode(), body[2 + length :]))
                answer = self._answer(kind[0], body)
                if answer is None:
                    return
                client.sendall(answer)


CONNACK, SUBACK = b"\x20\x02\x00\x00", 8


def obliging(kind: int, body: bytes) -> bytes:
    """What a broker of MQTT 3.1.1 answers."""
    if kind >> 4 == 1:
        return CONNACK
    if kind >> 4 == 3 and kind & 6:
        (length,) = struct.unpack_from("!H", body)
        return b"\x40\x02" + body[2 + length : 4 + length]
    if kind >> 4 == SUBACK:
        return b"\x90\x03" + body[:2] + b"\x01"
    return b"\xd0\x00" if kind >> 4 == 12 else b""


def test_no_connection_leaves_a_socket_behind(tmp_path: Path, quick_retries: None) -> None:
    """Before the collector of cyclic references runs, which may be hours later."""

    def sockets() -> int:
        found = 0
        for handle in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                found += str(handle.readlink()).startswith("socket:")
        return found

    def answer(kind: int, body: bytes) -> bytes | None:
        return None if kind >> 4 == 3 else obliging(kind, body)  # the first message ends each connection

    broker = ScriptedBroker(answer)
    gc.disable()
    try:
        with MqttPublisher(settings(broker.port, "3.1.1"), "pi", tmp_path / "spool.sqlite"):
            wait_until(lambda: len(broker.connects) >= 2, 20, "a reconnect")
            before = sockets()
            wait_until(lambda: len(broker.connects) >= 8, 60, "reconnects")
            assert sockets() - before <= 3  # those of the connection of this moment
    finally:
        gc.enable()
        broker.close()


@pytest.mark.needs("mosquitto")
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("outages", [4, pytest.param(OUTAGES, marks=pytest.mark.slow)])
def test_after_an_outage_the_retained_label_is_the_present_one(
    mosquitto: Mosquitto, tmp_path: Path, protocol: str, outages: int, quick_retries: None
) -> None:
    with MqttPublisher(settings(mosquitto.port, protocol), "pi", tmp_path / "spool.sqlite") as publisher:
        for outage in range(outages):
            wait_until(lambda: publisher.is_connected, 20, "a connection")
            assert mosquitto.process is not None
            mosquitto.process.send_signal(signal.SIGSTOP)
            for number in range(5):
                publisher.label(observed(number, f"old {outage}"))
            mosquitto.process.kill()
            mosquitto.process.wait(60)
            publisher.label(observed(9, f"present {outage}"))
            mosquitto.start()
            wait_until(lambda: publisher.is_connected and not publisher._in_flight, 20, "all to be acknowledged")
            label = json.loads(retained(mosquitto.port, "edgeloop/pi/camera/door/label"))["label"]
            assert label == f"present {outage}"


@pytest.mark.parametrize("silent", [False, True])
def test_a_broker_that_does_not_answer_mqtt_5_is_connected_with_3_1_1_within_10_s(
    *, silent: bool, tmp_path: Path
) -> None:
    hang = threading.Event()

    def answer(kind: int, body: bytes) -> bytes | None:
        if kind >> 4 == 1 and body[6] == 5:
            if silent:
                hang.wait(60)
            return None
        return obliging(kind, body)

    broker = ScriptedBroker(answer)
    with MqttPublisher(settings(broker.port), "pi", tmp_path / "spool.sqlite") as publisher:
        started = time.monotonic()
        publisher.info(info())
        wait_until(lambda: any(topic == "edgeloop/pi/info" for topic, _ in broker.published), 20, "info")
        took_s = time.monotonic() - started
    # Each attempt may take as long as this; on a machine that does nothing else, the test takes four seconds at most.
    assert connection._ANSWER_S + connection._TCP_S < 10
    assert took_s < 6 * 10
    assert broker.connects == [5, 4]
    (payload,) = [payload for topic, payload in broker.published if topic == "edgeloop/pi/info"]
    assert json.loads(payload[2:])["mqtt_protocol"] == "3.1.1"
    hang.set()
    broker.close()


def test_mqtt_5_alone_is_tried_if_agent_yaml_says_so(tmp_path: Path, quick_retries: None) -> None:
    broker = ScriptedBroker(lambda _kind, _body: None)
    with MqttPublisher(settings(broker.port, "5"), "pi", tmp_path / "spool.sqlite"):
        wait_until(lambda: len(broker.connects) >= 3, 20, "three attempts")
    assert set(broker.connects) == {5}
    broker.close()


def test_a_fleet_comes_back_spread_out() -> None:
    delays = sorted(connection._delay_s(5, taken_over=False) for _ in range(1000))
    assert delays[0] < 2
    assert 28 < delays[-1] <= 30
    assert 10 < delays[500] < 20
    assert all(0.5 <= connection._delay_s(1, taken_over=False) <= 2 for _ in range(100))
    assert all(connection._delay_s(0, taken_over=True) >= 30 for _ in range(100))


@pytest.mark.needs("mosquitto")
def test_a_message_that_makes_the_broker_close_the_connection_is_dropped_and_named(
    tmp_path: Path, quick_retries: None, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        start_mosquitto(tmp_path / "broker", "max_packet_size 2000") as broker,
        Subscriber(broker.port, "edgeloop/#") as subscriber,
        MqttPublisher(settings(broker.port, "3.1.1"), "pi", tmp_path / "spool.sqlite") as publisher,
    ):
        subscriber.wait_for("/pi/status", "online")
        publisher.info(info(labels=500))
        publisher.event(observed(1))
        publisher.event(observed(2, "x" * 3000))
        publisher.event(observed(3))
        publisher.label(observed(3))
        wait_until(lambda: len(subscriber.messages("/event")) >= 2, 60, "the events that fit")
        subscriber.wait_for("/label")
        wait_until(lambda: publisher.outbox.depth == 0, 60, "an empty spool")
        assert publisher.spool_health().dropped == 1
        assert {message["payload"]["seq"] for message in subscriber.messages("/event")} == {1, 3}  # type: ignore[index]
        connects = caplog.text.count("connected to the broker")
        time.sleep(1)
        assert caplog.text.count("connected to the broker") == connects
    assert "it gets the message on edgeloop/pi/info;" in caplog.text
    assert "it gets the message on edgeloop/pi/camera/door/event;" in caplog.text


@pytest.mark.needs("mosquitto")
def test_a_broker_that_says_its_maximum_packet_size_is_sent_nothing_larger(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        start_mosquitto(tmp_path / "broker", "max_packet_size 2000") as broker,
        Subscriber(broker.port, "edgeloop/#") as subscriber,
        MqttPublisher(settings(broker.port), "pi", tmp_path / "spool.sqlite") as publisher,
    ):
        subscriber.wait_for("/pi/status", "online")
        publisher.info(info(labels=500))
        publisher.event(observed(1, "x" * 3000))
        publisher.event(observed(2))
        publisher.snapshot("door", bytes(5000))
        subscriber.wait_for("/event")
        wait_until(lambda: publisher.spool_health().dropped == 1, 20, "the large event to be counted")
        limit = publisher.size_limit()
        assert limit is not None
        assert 1800 < limit < 2000
    assert caplog.text.count("connected to the broker") == 1
    for topic in ("edgeloop/pi/info", "edgeloop/pi/camera/door/snapshot", "edgeloop/pi/camera/door/event"):
        assert f"the message on {topic} has" in caplog.text


@pytest.mark.needs("mosquitto")
def test_a_snapshot_that_cuts_the_connection_is_sent_once(
    tmp_path: Path, quick_retries: None, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        start_mosquitto(tmp_path / "broker", "max_packet_size 20000") as broker,
        MqttPublisher(settings(broker.port, "3.1.1"), "pi", tmp_path / "spool.sqlite") as publisher,
    ):
        for _ in range(3):
            wait_until(lambda: publisher.is_connected, 20, "a connection")
            publisher.snapshot("door", bytes(55_000))
            time.sleep(0.5)
        assert caplog.text.count("connected to the broker") == 2
        assert "after a message of 55000 bytes on edgeloop/pi/camera/door/snapshot" in caplog.text
        limit = publisher.size_limit()
        assert limit is not None
        assert limit < 55_000


@pytest.mark.needs("mosquitto")
def test_refused_events_wait_for_the_access_list_and_do_not_hold_up_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edge_agent.mqtt.outbox._RETRY_S", 0.2)
    monkeypatch.setattr("edge_agent.mqtt.outbox._MAX_RETRY_S", 0.5)
    acl = tmp_path / "acl"
    acl.write_text("topic read #\ntopic write edgeloop/pi/camera/gate/#\ntopic write edgeloop/pi/status\n")
    acl.chmod(0o644)
    with (
        start_mosquitto(tmp_path / "broker", f"acl_file {acl}") as broker,
        Subscriber(broker.port, "edgeloop/#") as subscriber,
        MqttPublisher(settings(broker.port), "pi", tmp_path / "spool.sqlite") as publisher,
    ):
        subscriber.wait_for("/pi/status", "online")
        for seq in range(50):
            publisher.event(observed(seq))
        publisher.event(observed(99, camera="gate"))
        publisher.label(observed(1))
        subscriber.wait_for("/gate/event")
        wait_until(lambda: publisher.spool_health().refused >= 3, 20, "several attempts")
        wait_until(lambda: publisher.outbox.depth == 50, 20, "the other event to leave the spool")
        assert publisher.spool_health().dropped == 0
        acl.write_text("topic readwrite #\n")
        assert broker.process is not None
        broker.process.send_signal(signal.SIGHUP)
        wait_until(lambda: publisher.outbox.depth == 0, 20, "the events to be delivered")
        wait_until(lambda: len(subscriber.messages("/door/event")) == 50, 20, "the events")
        assert sorted(m["payload"]["seq"] for m in subscriber.messages("/door/event")) == list(range(50))  # type: ignore[index]
    assert caplog.text.count("the broker refuses events on edgeloop/pi/camera/door/event") == 1
    assert caplog.text.count("the broker refuses a message on edgeloop/pi/camera/door/label") == 1


@pytest.mark.parametrize(
    ("topic", "fine"),
    [
        ("answers/me", True),
        ("edgeloop/pi/reply/7", True),
        ("desk/" + "x" * 500, True),
        ("", False),
        ("/".join("a" * 250), False),
        ("x" * 600, False),
        ("a/+/b", False),
        ("a/#", False),
        ("a\0b", False),
        ("a\nb", False),
        ("\ud800", False),
        ("$SYS/x", False),
        ("edgeloop/pi/status", False),
        ("edgeloop/pi", False),
        ("edgeloop/other/cmd/install", False),
        ("edgeloop/pi/cmd/bench", False),
    ],
)
def test_replies_go_only_where_a_reply_may_go(*, topic: str, fine: bool) -> None:
    assert can_be_answered(topic, Topics("edgeloop", "pi")) is fine


@pytest.mark.needs("mosquitto")
def test_a_command_with_an_impossible_response_topic_costs_no_connection(
    mosquitto: Mosquitto, subscriber: Subscriber, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = MqttPublisher(settings(mosquitto.port), "pi", tmp_path / "spool.sqlite")
    publisher.serve({"bench": lambda _command: {"runs": 1}})
    with publisher:
        subscriber.wait_for("/pi/status", "online")
        time.sleep(0.5)
        for number, topic in enumerate(("/".join("a" * 150), "$SYS/x", "edgeloop/pi/cmd/rollback")):
            command = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(mosquitto.port), "-V", "5", "-q", "1"]
            command += ["-t", "edgeloop/pi/cmd/bench", "-m", json.dumps({"id": f"n{number}"})]
            subprocess.run([*command, "-D", "publish", "response-topic", topic], check=True)
            assert subscriber.wait_for(f"/reply/n{number}")["payload"]["ok"]  # type: ignore[index]
    assert caplog.text.count("connected to the broker") == 1


def test_replies_are_not_carried_over_to_the_next_connection(tmp_path: Path, quick_retries: None) -> None:
    """The broker closes the connection when it gets a reply: once."""

    def answer(kind: int, body: bytes) -> bytes | None:
        if kind >> 4 == 3 and b"/reply/" in body:
            return None
        return obliging(kind, body)

    broker = ScriptedBroker(answer)
    with MqttPublisher(settings(broker.port, "3.1.1"), "pi", tmp_path / "spool.sqlite") as publisher:
        wait_until(lambda: publisher.is_connected, 20, "a connection")
        publisher._answer(Reply(1, "pi", "a", "bench", True, None, None), Envelope("bench", b""))
        wait_until(lambda: len(broker.connects) >= 2 and publisher.is_connected, 20, "the next connection")
        time.sleep(0.5)
    assert [topic for topic, _ in broker.published if "/reply/" in topic] == ["edgeloop/pi/reply/a"]
    broker.close()


@pytest.mark.needs("mosquitto")
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_huge_command_takes_no_memory(
    mosquitto: Mosquitto, tmp_path: Path, protocol: str, quick_retries: None, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = MqttPublisher(settings(mosquitto.port, protocol), "pi", tmp_path / "spool.sqlite")
    publisher.serve({})
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(100_000_000)
    with publisher:
        wait_until(lambda: publisher.is_connected, 20, "a connection")
        time.sleep(0.5)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        command = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(mosquitto.port), "-q", "1"]
        subprocess.run([*command, "-t", "edgeloop/pi/cmd/bench", "-f", str(big)], check=True)
        if protocol == "3.1.1":
            wait_until(lambda: "sent a packet of more than 64 KiB" in caplog.text, 20, "the packet to be refused")
        publisher.label(observed(1, "still here"))
        wait_until(lambda: publisher.is_connected and not publisher._in_flight, 20, "a connection")
        time.sleep(1)
        assert publisher.is_connected
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000
    assert caplog.text.count("connected to the broker") == (1 if protocol == "5" else 2)


def test_a_broker_that_never_acknowledges_makes_nothing_grow(tmp_path: Path) -> None:
    broker = ScriptedBroker(lambda kind, body: b"" if kind >> 4 == 3 else obliging(kind, body))
    with MqttPublisher(settings(broker.port, "3.1.1"), "pi", tmp_path / "spool.sqlite") as publisher:
        wait_until(lambda: publisher.is_connected, 20, "a connection")
        for seq in range(1000):
            publisher.label(observed(seq, camera=f"camera-{seq % 3}"))
            publisher.event(observed(seq))
            publisher.result(observed(seq))
        assert len(publisher._in_flight) <= 2 * connection.WINDOW
        assert len(publisher._waiting) <= 4
        assert len(publisher._unsent) <= 100
    broker.close()


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(b"\x30\x06\x00\x02\xff\xfehi", id="a topic that is not UTF-8"),
        pytest.param(b"\x30\x02\x00\x09", id="a topic longer than its packet"),
        pytest.param(b"\xf0\x00", id="a packet of no kind"),
        pytest.param(b"\x40\x00", id="an acknowledgement of nothing"),
        pytest.param(b"\x90\x01\x00", id="a cut acknowledgement of a subscription"),
        pytest.param(b"\x30\xff\xff\xff\xff\x7f", id="a length of five bytes"),
    ],
)
def test_whatever_the_broker_sends_the_agent_goes_on(packet: bytes, tmp_path: Path, quick_retries: None) -> None:
    def answer(kind: int, body: bytes) -> bytes | None:
        return obliging(kind, body) + (packet if kind >> 4 == 1 and len(broker.connects) == 1 else b"")

    broker = ScriptedBroker(answer)
    with MqttPublisher(settings(broker.port, "3.1.1"), "pi", tmp_path / "spool.sqlite") as publisher:
        wait_until(lambda: publisher.is_connected, 20, "a connection")
        publisher.event(observed(7))
        wait_until(
            lambda: publisher.outbox.depth == 0 and any("event" in t for t, _ in broker.published), 20, "the event"
        )
        publisher.check()
    broker.close()


# --- events of a clock that was not set ---


def test_the_capture_time_is_corrected_once_the_clock_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broker = ScriptedBroker(obliging)
    behind = msgspec.structs.replace(observed(1), captured_at="1970-01-01T00:05:00.250Z", clock="unset")
    now = Stamp.now()
    stamp = Stamp(300.0, now.boot, now.uptime_s - 60, is_set=False)
    with Spool(tmp_path / "spool.sqlite") as spool:
        spool.put([SpooledEvent("edgeloop/pi/camera/door/event", msgspec.json.encode(behind), stamp)])
        spool.put([SpooledEvent("edgeloop/pi/camera/door/event", b"not JSON", stamp)])
    monkeypatch.setattr("edge_agent.clock.is_clock_set", lambda: True)
    with MqttPublisher(settings(broker.port, "3.1.1"), "pi", tmp_path / "spool.sqlite"):
        wait_until(lambda: sum(topic.endswith("/event") for topic, _ in broker.published) == 2, 20, "the events")
    first, second = (payload[2:] for topic, payload in broker.published if topic.endswith("/event"))
    sent = json.loads(first)
    captured = datetime.fromisoformat(sent["captured_at"]).timestamp()
    assert captured == pytest.approx(now.wall_s - 60, abs=5)
    assert "clock" not in sent
    assert second == b"not JSON"
    broker.close()


# --- which message is to blame ---


def test_a_message_is_to_blame_if_it_was_alone_three_times_in_a_row() -> None:
    finder = PoisonFinder()
    states = [finder.is_cautious]
    for _ in range(2):
        assert finder.lost([1, 2, 3], by_broker=True, accepted_others=True) is None
        states.append(finder.is_cautious)
    assert states == [False, False, True]
    assert finder.lost([2], by_broker=True, accepted_others=True) is None
    assert finder.lost([3], by_broker=True, accepted_others=True) is None
    assert finder.lost([2], by_broker=True, accepted_others=True) is None
    assert finder.lost([2], by_broker=True, accepted_others=True) is None
    assert finder.lost([2], by_broker=True, accepted_others=True) == 2
    assert not finder.is_cautious


def test_a_bad_network_and_a_broker_that_accepts_nothing_put_the_blame_on_no_message() -> None:
    finder = PoisonFinder()
    for _ in range(10):
        assert finder.lost([1], by_broker=False, accepted_others=True) is None
        assert finder.lost([1], by_broker=True, accepted_others=False) is None
        assert finder.lost([], by_broker=True, accepted_others=True) is None
    finder.all_acknowledged()
    assert not finder.is_cautious
