"""A running agent under command, through a real broker: images, settings, other models."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paho.mqtt.client as paho
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_agent.store.canary import CanaryLimits
from edge_agent.store.model_store import ModelStore

from ...conftest import Mosquitto, Subscriber, wait_until
from ...support.bundles import repacked
from ...support.processes import AgentProcess
from ..mqtt.test_commands import PAYLOADS

pytestmark = pytest.mark.needs("mosquitto")


class Asker:
    """Sends commands as another program would, and waits for their answers."""

    def __init__(self, port: int) -> None:
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self.messages: queue.SimpleQueue[paho.MQTTMessage] = queue.SimpleQueue()
        self._client.on_message = lambda _client, _data, message: self.messages.put(message)
        self._client.connect("127.0.0.1", port)
        self._client.subscribe([("answers/me", 1), ("edgeloop/pi/reply/+", 1)])
        self._client.loop_start()

    def send(self, verb: str, payload: bytes, *, topic: str | None = "answers/me", mark: bytes = b"x") -> None:
        properties = None
        if topic is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ResponseTopic = topic
            properties.CorrelationData = mark
        self._client.publish(f"edgeloop/pi/cmd/{verb}", payload, qos=1, properties=properties).wait_for_publish(60)

    def ask(self, verb: str, **arguments: object) -> dict[str, Any]:
        mark = str(time.monotonic_ns()).encode()
        self.send(verb, json.dumps(arguments).encode(), mark=mark)
        message = self.messages.get(timeout=40)
        assert message.topic == "answers/me"
        assert message.properties.CorrelationData == mark  # type: ignore[union-attr]
        return json.loads(message.payload)  # type: ignore[no-any-return]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def asker(mosquitto: Mosquitto) -> Iterator[Asker]:
    asker = Asker(mosquitto.port)
    yield asker
    asker.close()


@pytest.fixture(scope="session")
def models(bundle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles 1 to 3, the same but for their version."""
    folder = tmp_path_factory.mktemp("models")
    return {number: repacked(bundle_file, folder / f"ground-{number}.edgeloop", version=number) for number in "123"}


@contextmanager
def running(folder: Path, video: Path, port: int, **settings: Any) -> Iterator[AgentProcess]:
    written = {
        "device": "pi",
        "cameras": {"door": {"source": str(video), "loop": True}},
        "mqtt": {"host": "127.0.0.1", "port": port, "keepalive_s": 2, "discovery": "homeassistant"},
        "state": "state",
        "install": {"unsigned": True},
        "threads": 1,
        "health_every_s": 1,
        **settings,
    }
    process = AgentProcess(folder, written)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.terminate()
            assert process.process.wait(60) == 0, process.log.read_text()


@pytest.fixture
def agent(
    tmp_path: Path, video_file: Path, models: dict[str, Path], mosquitto: Mosquitto, subscriber: Subscriber
) -> Iterator[AgentProcess]:
    """One that runs model 1 of its store."""
    store = ModelStore(tmp_path / "state")
    store.install(models["1"], signers=None, limits=CanaryLimits(threads=1))
    with running(tmp_path, video_file, mosquitto.port) as process:
        subscriber.wait_for("/camera/door/label")
        yield process


@pytest.fixture
def address(models: dict[str, Path]) -> Iterator[Callable[[str], dict[str, str]]]:
    """Where a model can be fetched, as the arguments of `install`."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Quiet, directory=str(models["1"].parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

        def of(number: str) -> dict[str, str]:
            url = f"http://127.0.0.1:{server.server_port}/{models[number].name}"
            return {"url": url, "sha256": sha256(models[number].read_bytes()).hexdigest()}

        yield of
        server.shutdown()


def version_of(message: dict[str, Any]) -> str:
    return str(message["payload"]["model"]["version"])


def test_images_settings_and_timing_on_request(agent: AgentProcess, asker: Asker, subscriber: Subscriber) -> None:
    assert asker.ask("snapshot", id="s1")["result"] == {"cameras": ["door"]}
    assert subscriber.wait_for("/camera/door/snapshot")
    refused = asker.ask("snapshot", camera="gate")
    assert refused["error"] == "unknown camera gate; expected one of door"

    assert asker.ask("set", enter=0.95, leave=0.2, results=True)["ok"]
    wait_until(lambda: bool(subscriber.messages("/result")), 20, "results were switched on")
    told: Any = subscriber.messages("/settings")[-1]["payload"]
    assert (told["enter"], told["leave"], told["results"]) == (0.95, 0.2, True)
    assert asker.ask("set", enter=0.3, leave=0.9)["error"] == "leave (0.9) must not be above enter (0.3)"
    assert subscriber.messages("/settings")[-1]["payload"] == told

    timed = asker.ask("bench", runs=20)["result"]
    assert 0 < timed["p50_ms"] <= timed["p90_ms"] <= timed["p99_ms"]
    asker.send("bench", b'{"id": "b1", "runs": 1}', topic=None)
    assert asker.messages.get(timeout=120).topic == "edgeloop/pi/reply/b1"
    # An answer that would be a command itself goes elsewhere.
    asker.send("bench", b'{"id": "b2", "runs": 1}', topic="edgeloop/pi/cmd/rollback")
    assert asker.messages.get(timeout=120).topic == "edgeloop/pi/reply/b2"
    assert agent.process.poll() is None


def test_a_model_comes_goes_back_and_comes_again_while_the_agent_runs(
    agent: AgentProcess, asker: Asker, subscriber: Subscriber, address: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    assert version_of(subscriber.wait_for("/info")) == "1"
    before = len(subscriber.messages("/label"))
    assert asker.ask("install", **address("2"))["result"]["version"] == "2"
    wait_until(lambda: version_of(subscriber.messages("/info")[-1]) == "2", 20, "model 2 runs")
    wait_until(lambda: version_of(subscriber.messages("/label")[-1]) == "2", 20, "model 2 says what it sees")
    assert len(subscriber.messages("/label")) > before
    assert asker.ask("rollback")["result"]["version"] == "1"
    wait_until(lambda: version_of(subscriber.messages("/info")[-1]) == "1", 20, "model 1 runs again")
    again = asker.ask("install", **address("2"))
    assert "rolled back over MQTT" in again["error"]
    assert asker.ask("install", **address("3"), activate=False)["result"]["status"] == "installed"
    assert asker.ask("activate", model="ground-3")["ok"]
    wait_until(lambda: version_of(subscriber.messages("/info")[-1]) == "3", 20, "model 3 runs")
    assert "ground-9" in asker.ask("activate", model="ground-9")["error"]
    assert not list((tmp_path / "state" / "incoming").iterdir())
    # The first frame of all is decided after a moment; after that no label was lost, whichever model ran.
    assert "unknown" not in [m["payload"]["label"] for m in subscriber.messages("/event")][1:]  # type: ignore[index]
    assert agent.process.poll() is None


def test_a_download_that_is_not_what_was_asked_for_changes_nothing(
    agent: AgentProcess, asker: Asker, subscriber: Subscriber, address: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    good = address("2")
    said = [
        asker.ask("install", url=good["url"], sha256="0" * 64)["error"],
        asker.ask("install", url=good["url"] + "x", sha256=good["sha256"])["error"],
        asker.ask("install", url="http://127.0.0.1:9/x", sha256=good["sha256"])["error"],
    ]
    # All the same, so that nobody explores the network through the agent.
    assert said == ["the bundle could not be fetched and verified; the log of the device gives the reason"] * 3
    log = agent.log.read_text()
    for reason in ("checksum mismatch", "the server answered 404", "Connection refused"):
        assert reason in log
    assert not list((tmp_path / "state" / "incoming").iterdir())
    assert ModelStore(tmp_path / "state").status().installed[0].version == "1"
    assert agent.process.poll() is None
    assert [version_of(m) for m in subscriber.messages("/info")] == ["1"]


def test_without_signers_or_leave_no_model_comes_over_mqtt(
    tmp_path: Path,
    video_file: Path,
    models: dict[str, Path],
    mosquitto: Mosquitto,
    asker: Asker,
    subscriber: Subscriber,
) -> None:
    ModelStore(tmp_path / "state").install(models["1"], signers=None, limits=CanaryLimits(threads=1))
    with running(tmp_path, video_file, mosquitto.port, install={}):
        subscriber.wait_for("/camera/door/label")
        refused = asker.ask("install", url="http://127.0.0.1:9/x", sha256="0" * 64)
        assert "allowed_signers" in refused["error"]


def test_a_bundle_named_in_agent_yaml_is_not_replaced(
    tmp_path: Path,
    video_file: Path,
    models: dict[str, Path],
    mosquitto: Mosquitto,
    asker: Asker,
    subscriber: Subscriber,
) -> None:
    with running(tmp_path, video_file, mosquitto.port, bundle=str(models["1"])):
        subscriber.wait_for("/camera/door/label")
        for verb, arguments in (("rollback", {}), ("activate", {"model": "x"})):
            assert "agent.yaml names a bundle" in asker.ask(verb, **arguments)["error"]


@pytest.mark.long
def test_a_model_proves_itself_over_frames_and_is_good(
    agent: AgentProcess, subscriber: Subscriber, tmp_path: Path, asker: Asker
) -> None:
    store = ModelStore(tmp_path / "state")
    assert store.status().on_probation
    # 20 frames a second are a slow film for 500 of them; the camera is the video.
    wait_until(lambda: not store.status().on_probation, 60, "it became good")
    # The store says so first.
    wait_until(lambda: "has passed its probation of 500 frames" in agent.log.read_text(), 10, "the log says so")
    health: Any = subscriber.wait_for("/health")["payload"]
    assert health["cameras"]["door"]["state"] == "online"
    assert health["spool"]["on_disk"]


@pytest.mark.slow
def test_what_is_no_fault_of_the_model_does_not_roll_it_back(
    tmp_path: Path, video_file: Path, models: dict[str, Path]
) -> None:
    store = ModelStore(tmp_path / "state")
    for number in "12":
        store.install(models[number], signers=None, limits=CanaryLimits(threads=1))
        if number == "1":
            store.good()
    broker = {"host": "127.0.0.1", "username": "pi", "password_file": "missing"}
    for _ in range(5):
        with running(tmp_path, video_file, 0, mqtt=broker) as process:
            assert process.end(timeout_s=30) == 2
        assert "the MQTT password cannot be read" in process.log.read_text()
    current = store.current()
    assert current is not None
    assert (current.version, current.status) == ("2", "probation")


def test_home_assistant_finds_the_device_and_finds_it_again_when_it_starts(
    agent: AgentProcess, asker: Asker, mosquitto: Mosquitto, subscriber: Subscriber
) -> None:
    topic = "homeassistant/device/edgeloop_pi/config"
    with Subscriber(mosquitto.port, topic) as home:
        told: Any = home.wait_for(topic)
        assert told["retain"] == 1
        count = len(home.messages(topic))
        asker._client.publish("homeassistant/status", "online")
        wait_until(lambda: len(home.messages(topic)) == count + 1, 20, "it was told again")
    config = told["payload"]
    # What its number entity sends arrives, and its state topic says so.
    number = config["components"]["enter"]
    payload = number["command_template"].replace("{{ value }}", "0.77")
    asker._client.publish(number["command_topic"], payload, qos=1)
    wait_until(lambda: subscriber.messages("/settings")[-1]["payload"]["enter"] == 0.77, 20, "the threshold was set")  # type: ignore[index]
    button = config["components"]["camera_door_snapshot"]
    asker._client.publish(button["command_topic"], button["payload_press"], qos=1)
    asker._client.subscribe(config["components"]["camera_door_picture"]["image_topic"])
    asker._client.publish(button["command_topic"], button["payload_press"], qos=1)
    deadline = time.monotonic() + 120
    while True:
        assert time.monotonic() < deadline
        message = asker.messages.get(timeout=120)
        if message.topic.endswith("/snapshot"):
            break
    image = cv2.imdecode(np.frombuffer(message.payload, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.shape == (120, 160, 3)
    assert agent.process.poll() is None


@pytest.mark.slow
def test_nonsense_is_answered_and_changes_nothing(
    agent: AgentProcess, asker: Asker, subscriber: Subscriber, tmp_path: Path
) -> None:
    store = ModelStore(tmp_path / "state")
    # The end of the probation would be a change, too.
    wait_until(lambda: (store.current() or pytest.fail("no model")).status == "good", 60, "the end of the probation")
    before = store.status()
    asker._client.publish("edgeloop/pi/cmd/rollback", "{}", qos=1, retain=True).wait_for_publish(60)
    asker.send("../../etc", b"{}")
    assert not json.loads(asker.messages.get(timeout=120).payload)["ok"]

    @hypothesis(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(PAYLOADS)
    def refused(payload: bytes) -> None:
        asker.send("install", payload)
        answer = json.loads(asker.messages.get(timeout=120).payload)
        assert (answer["ok"], answer["device"]) == (False, "pi")

    refused()
    assert agent.process.poll() is None
    after = store.status()
    assert (after.current, after.installed) == (before.current, before.installed)
    assert asker.ask("snapshot")["ok"]
