"""The agent as a process, against a real Mosquitto, watched by `mosquitto_sub`."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from edge_agent.config import MqttSettings, TlsSettings
from edge_agent.errors import ConfigError
from edge_agent.mqtt import MqttPublisher, Topics

from ...conftest import Mosquitto, Run, Subscriber, wait_until
from ...support.delegates import compiled_delegate
from ...support.processes import AgentProcess

pytestmark = pytest.mark.needs("mosquitto")


@contextmanager
def agent(
    folder: Path, bundle: Path, video: Path, port: int, *options: str, loop: bool = True, **mqtt: Any
) -> Iterator[AgentProcess]:
    settings = {
        "device": "pi",
        "bundle": str(bundle),
        "cameras": {"door": {"source": str(video), "loop": loop}},
        "mqtt": {"host": "127.0.0.1", "port": port, "keepalive_s": 2, **mqtt},
        "state": "state",
    }
    running = AgentProcess(folder, settings, *options)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait(60)


def label_of(message: dict[str, Any]) -> str:
    return str(message["payload"]["label"])


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_foreign_subscriber_gets_status_info_labels_and_events(
    mosquitto: Mosquitto, subscriber: Subscriber, bundle_file: Path, video_file: Path, tmp_path: Path, protocol: str
) -> None:
    with agent(tmp_path, bundle_file, video_file, mosquitto.port, loop=False, protocol=protocol) as running:
        assert running.end(timeout_s=60) == 0, running.log.read_text()
    subscriber.wait_for("/status", "offline")
    assert [m["payload"] for m in subscriber.messages("/pi/status")] == ["online", "offline"]
    assert [m["payload"] for m in subscriber.messages("/camera/door/status")] == ["online", "ended"]
    labels = [label_of(m) for m in subscriber.messages("/camera/door/label")]
    assert labels[-1] == "stars"
    assert "brick" in labels
    assert [label_of(m) for m in subscriber.messages("/event")] == labels
    info: Any = subscriber.wait_for("/info")["payload"]
    assert info["model"]["name"] == "ground"
    said = running.log.read_text()
    assert "camera door: has ended" in said
    assert "all cameras have ended" in said


@pytest.mark.needs("cc")
def test_threads_and_delegate_of_the_command_line_go_before_the_settings(
    mosquitto: Mosquitto, subscriber: Subscriber, bundle_file: Path, video_file: Path, tmp_path: Path
) -> None:
    library = str(compiled_delegate(tmp_path))
    options = ("--threads", "3", "--delegate", library)
    with agent(tmp_path, bundle_file, video_file, mosquitto.port, *options) as running:
        info: Any = subscriber.wait_for("/info")["payload"]
        assert (info["threads"], info["delegate"]) == (3, library)
        subscriber.wait_for("/label")
        assert running.end(signal.SIGTERM) == 0, running.log.read_text()


def test_who_subscribes_later_gets_the_retained_state(
    mosquitto: Mosquitto, subscriber: Subscriber, bundle_file: Path, video_file: Path, tmp_path: Path
) -> None:
    with agent(tmp_path, bundle_file, video_file, mosquitto.port):
        subscriber.wait_for("/camera/door/label")
        with Subscriber(mosquitto.port, "edgeloop/pi/#") as late:
            for ending, payload in (("/status", "online"), ("/info", None), ("/label", None)):
                assert late.wait_for(ending, payload)["retain"] == 1
            assert not [m for m in late.messages("/event") if m["retain"]]


def test_the_broker_tells_of_an_agent_killed_with_9(
    mosquitto: Mosquitto, subscriber: Subscriber, bundle_file: Path, video_file: Path, tmp_path: Path
) -> None:
    with agent(tmp_path, bundle_file, video_file, mosquitto.port) as running:
        subscriber.wait_for("/status", "online")
        subscriber.wait_for("/label")
        assert running.end(signal.SIGKILL) == -signal.SIGKILL
    subscriber.wait_for("/status", "offline")
    with Subscriber(mosquitto.port, "edgeloop/pi/status") as late:
        assert late.wait_for("/status", "offline")["retain"] == 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_the_agent_stops_cleanly_when_told_to(
    mosquitto: Mosquitto,
    subscriber: Subscriber,
    bundle_file: Path,
    video_file: Path,
    tmp_path: Path,
    how: signal.Signals,
) -> None:
    with agent(tmp_path, bundle_file, video_file, mosquitto.port) as running:
        subscriber.wait_for("/label")
        assert running.end(how) == 0
        assert f"stopped by {how.name}" in running.log.read_text()
    subscriber.wait_for("/status", "offline")
    assert "Traceback" not in running.log.read_text()


def test_every_result_comes_on_request_with_the_frames_age(
    mosquitto: Mosquitto, subscriber: Subscriber, bundle_file: Path, video_file: Path, tmp_path: Path
) -> None:
    with agent(tmp_path, bundle_file, video_file, mosquitto.port, loop=False, results=True) as running:
        assert running.end(timeout_s=60) == 0
    subscriber.wait_for("/status", "offline")
    results: list[Any] = [m["payload"] for m in subscriber.messages("/result")]
    assert len(results) > 20
    assert [r["seq"] for r in results] == sorted({r["seq"] for r in results})
    for result in results:
        timing = result["timing_ms"]
        assert timing["capture_to_publish"] >= timing["preprocess"] + timing["inference"]
        assert len(result["top"]) == 3


def test_a_refused_password_ends_the_agent_with_one_clear_line(
    tmp_path: Path, free_port: int, bundle_file: Path, video_file: Path
) -> None:
    folder = tmp_path / "broker"
    folder.mkdir()
    passwords = folder / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "me", "right"], check=True)
    (folder / "mosquitto.conf").write_text(
        f"listener {free_port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\nuser root\n"
    )
    broker = Mosquitto(folder, free_port)
    broker.start()
    try:
        (tmp_path / "secret").write_text("wrong-secret\n")
        with agent(
            tmp_path, bundle_file, video_file, free_port, username="me", password_file=str(tmp_path / "secret")
        ) as running:
            assert running.end(timeout_s=30) == 1
        last = running.log.read_text().splitlines()[-1]
        assert last.startswith("edgeloop: the broker at 127.0.0.1:")
        assert "refuses the user name or password" in last or "does not authorise" in last
        assert "wrong-secret" not in running.log.read_text()
        (tmp_path / "secret").write_text("right\n")
        with agent(
            tmp_path, bundle_file, video_file, free_port, username="me", password_file=str(tmp_path / "secret")
        ) as running:
            wait_until(lambda: "connected to" in running.log.read_text(), 20, "the connection")
            assert running.end(signal.SIGTERM) == 0
    finally:
        broker.stop()


def test_a_broker_that_is_away_stops_nothing_and_hears_the_present_when_it_is_back(
    mosquitto: Mosquitto, bundle_file: Path, video_file: Path, tmp_path: Path
) -> None:
    mosquitto.stop()
    with agent(tmp_path, bundle_file, video_file, mosquitto.port) as running:
        wait_until(lambda: "camera door: " in running.log.read_text(), 20, "a label without a broker")
        mosquitto.start()
        with Subscriber(mosquitto.port, "edgeloop/#") as first:
            first.wait_for("/status", "online")
            first.wait_for("/camera/door/label")
        mosquitto.stop()  # this Mosquitto keeps nothing on disk: it forgets what was retained
        time.sleep(0.5)
        mosquitto.start()
        with Subscriber(mosquitto.port, "edgeloop/#") as second:
            second.wait_for("/status", "online")
            second.wait_for("/info")
            second.wait_for("/camera/door/label")
        assert running.end(signal.SIGTERM) == 0


def test_events_outlive_the_broker_and_the_agent_in_order_and_once(
    mosquitto: Mosquitto, bundle_file: Path, video_file: Path, tmp_path: Path
) -> None:
    mosquitto.stop()
    for turn in range(2):  # two agents, one after the other, of which the second is killed; nobody hears them
        with agent(tmp_path, bundle_file, video_file, mosquitto.port) as running:
            wait_until(lambda: running.log.read_text().count("camera door: ") >= 4, 30, "a few labels")
            if turn == 0:
                assert running.end(signal.SIGTERM) == 0
            else:
                wait_until(lambda: spooled(tmp_path) >= 8, 10, "the events to be stored")
                running.end(signal.SIGKILL)
    waiting = spooled(tmp_path)
    assert waiting >= 8
    mosquitto.start()
    with (
        Subscriber(mosquitto.port, "edgeloop/#") as subscriber,
        agent(tmp_path, bundle_file, video_file, mosquitto.port) as running,
    ):
        wait_until(lambda: len(subscriber.messages("/event")) > waiting, 20, "old events and a new one")
        mosquitto.stop()
        before = running.log.read_text().count("camera door: ")
        wait_until(lambda: running.log.read_text().count("camera door: ") >= before + 3, 30, "labels meanwhile")
        heard = [m["payload"] for m in subscriber.messages("/event")]
        mosquitto.start()
        with Subscriber(mosquitto.port, "edgeloop/#") as later:
            wait_until(lambda: len(later.messages("/event")) >= 4, 30, "those of the outage and another")
            assert running.end(signal.SIGTERM) == 0
            heard += [m["payload"] for m in later.messages("/event")]
    times = [(m["captured_at"], m["seq"]) for m in heard]  # type: ignore[index]
    assert times == sorted(set(times))
    assert spooled(tmp_path) == 0


def spooled(folder: Path) -> int:
    with sqlite3.connect(folder / "state" / "spool.sqlite") as database:
        return int(database.execute("SELECT count(*) FROM event").fetchone()[0])


def test_events_expire_at_the_broker_labels_do_not(
    mosquitto: Mosquitto, subscriber: Subscriber, bundle_file: Path, video_file: Path, tmp_path: Path
) -> None:
    with agent(tmp_path, bundle_file, video_file, mosquitto.port, loop=False, event_expiry_s=1000) as running:
        assert running.end(timeout_s=60) == 0
    for message in subscriber.messages("/event"):
        assert 990 <= message["properties"]["message-expiry-interval"] <= 1000  # type: ignore[index]
    assert subscriber.messages("/event")
    assert all("properties" not in message for message in subscriber.messages("/label"))


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    return made


@pytest.fixture
def tls_broker(tmp_path: Path, free_port: int, authority: trustme.CA) -> Iterator[Mosquitto]:
    """Mosquitto that speaks TLS, and only with those who have a certificate of the same authority."""
    folder = tmp_path / "tls"
    folder.mkdir()
    identity = authority.issue_cert("127.0.0.1", "localhost")
    identity.private_key_pem.write_to_path(folder / "key.pem")
    identity.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    (folder / "mosquitto.conf").write_text(
        f"listener {free_port} 127.0.0.1\nallow_anonymous true\nuser root\nrequire_certificate true\n"
        f"cafile {tmp_path}/ca.pem\ncertfile {folder}/cert.pem\nkeyfile {folder}/key.pem\n"
    )
    broker = Mosquitto(folder, free_port)
    broker.start()
    yield broker
    broker.stop()


def test_tls_with_a_certificate_on_both_sides(
    tls_broker: Mosquitto, authority: trustme.CA, bundle_file: Path, video_file: Path, tmp_path: Path
) -> None:
    mine = authority.issue_cert("pi")
    mine.private_key_pem.write_to_path(tmp_path / "pi.key")
    mine.cert_chain_pems[0].write_to_path(tmp_path / "pi.pem")
    tls = {"ca": "ca.pem", "certificate": "pi.pem", "key": "pi.key"}
    with agent(tmp_path, bundle_file, video_file, tls_broker.port, tls=tls) as running:
        wait_until(lambda: "connected to" in running.log.read_text(), 20, "the connection")
        wait_until(lambda: spooled(tmp_path) == 0, 20, "events delivered")
        assert running.end(signal.SIGTERM) == 0


def test_a_broker_of_another_authority_is_not_spoken_to_and_the_log_says_why(
    tls_broker: Mosquitto, bundle_file: Path, video_file: Path, tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    for number, tls in enumerate(({"ca": "other.pem"}, {})):
        with agent(tmp_path, bundle_file, video_file, tls_broker.port, tls=tls, host="localhost") as running:
            wait_until(
                lambda: "cannot be reached (its certificate is not trusted: " in running.log.read_text(), 20, "it"
            )
            assert "connected to" not in running.log.read_text(), number
            assert running.end(signal.SIGTERM) == 0


def test_certificates_that_cannot_be_used_are_refused_at_the_start(tmp_path: Path, authority: trustme.CA) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    for tls, named in (
        (TlsSettings(ca=str(tmp_path / "none.pem")), "none.pem"),
        (TlsSettings(ca=str(tmp_path / "text.pem")), "text.pem"),
        (
            TlsSettings(ca=str(tmp_path / "ca.pem"), certificate=str(tmp_path / "ca.pem")),
            "expected a client certificate and a key without a passphrase",
        ),
    ):
        with pytest.raises(ConfigError, match=named) as caught:
            MqttPublisher(MqttSettings(tls=tls), "pi")
        assert "\n" not in str(caught.value)


def test_an_unreachable_broker_is_no_reason_to_hang_at_the_end(
    bundle_file: Path, video_file: Path, tmp_path: Path, free_port: int
) -> None:
    with agent(tmp_path, bundle_file, video_file, free_port, loop=False) as running:
        assert running.end(timeout_s=30) == 0
        assert "cannot be reached (Connection refused); retrying" in running.log.read_text()


def test_publishing_does_not_wait_for_a_broker_that_does_not_answer(free_port: int) -> None:
    """A listener that accepts and never says a word: the worst kind of broker."""
    import socket

    from edge_agent.messages import ModelId, Observation, Timing

    observation = Observation(
        1, "pi", "door", 0, "2026-01-01T00:00:00.000Z", "x", 1.0, (), ModelId("m", "1", "0"), Timing(0, 0, 0)
    )
    with socket.create_server(("127.0.0.1", free_port)) as server:
        accepted: list[socket.socket] = []
        threading.Thread(target=lambda: accepted.append(server.accept()[0]), daemon=True).start()
        publisher = MqttPublisher(MqttSettings(host="127.0.0.1", port=free_port), "pi")
        with publisher:
            wait_until(lambda: bool(accepted), 5, "the connection")
            # Any wait for the network would be for ever, and the test's time limit would end it.
            for _ in range(200):
                publisher.label(observation)
                publisher.event(observation)
                publisher.result(observation)
        accepted[0].close()


def test_topics_are_the_documented_ones() -> None:
    topics = Topics("edgeloop", "pi")
    assert topics.status == "edgeloop/pi/status"
    assert topics.info == "edgeloop/pi/info"
    assert topics.label("door") == "edgeloop/pi/camera/door/label"
    assert topics.event("door") == "edgeloop/pi/camera/door/event"
    assert topics.result("door") == "edgeloop/pi/camera/door/result"


def test_two_agents_that_claim_one_name_are_noticed_in_the_log(
    mosquitto: Mosquitto, bundle_file: Path, video_file: Path, tmp_path: Path, edgeloop: Run
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with (
        agent(tmp_path / "a", bundle_file, video_file, mosquitto.port) as one,
        agent(tmp_path / "b", bundle_file, video_file, mosquitto.port),
    ):
        wait_until(lambda: "lost the connection to the broker" in one.log.read_text(), 20, "the first to be told")
