"""A restart is no change of label, and a state directory belongs to one agent at a time."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.preprocessing import Pixels

from ...conftest import Mosquitto, Subscriber, wait_until, write_crop
from ...support.processes import AgentProcess
from ..mqtt.test_mqtt import spooled

pytestmark = pytest.mark.needs("mosquitto")


@pytest.fixture
def scene(areas: dict[str, dict[str, Pixels]], tmp_path: Path) -> Path:
    """A folder whose images a camera shows, again and again."""
    folder = tmp_path / "scene"
    show(folder, areas["brick"]["video"])
    return folder


def show(folder: Path, area: Pixels) -> None:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(3)
    for number in range(3):
        write_crop(folder / f"{number}.png", area, random)


@contextmanager
def agent(folder: Path, bundle: Path, scene: Path, port: int, **more: Any) -> Iterator[AgentProcess]:
    settings = {
        "device": "pi",
        "bundle": str(bundle),
        "cameras": {"door": {"source": str(scene), "loop": True, "fps": 10}},
        "mqtt": {"host": "127.0.0.1", "port": port},
        "state": "state",
        **more,
    }
    running = AgentProcess(folder, settings)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait(60)


def labels(subscriber: Subscriber, kind: str) -> list[str]:
    return [m["payload"]["label"] for m in subscriber.messages(kind)]  # type: ignore[index]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_over_the_same_scene_is_no_event(
    mosquitto: Mosquitto,
    bundle_file: Path,
    scene: Path,
    areas: dict[str, dict[str, Pixels]],
    tmp_path: Path,
    how: signal.Signals,
) -> None:
    with (
        Subscriber(mosquitto.port, "edgeloop/#") as subscriber,
        agent(tmp_path, bundle_file, scene, mosquitto.port) as running,
    ):
        wait_until(lambda: labels(subscriber, "/event")[-1:] == ["brick"], 30, "the event")
        # Otherwise it would be delivered again, as MQTT's QoS 1 allows.
        wait_until(lambda: spooled(tmp_path) == 0, 30, "the acknowledgement")
        running.end(how)
    # The broker has lost everything, too: the label is published again, the event is not.
    mosquitto.stop()
    mosquitto.start()
    with Subscriber(mosquitto.port, "edgeloop/#") as subscriber:
        with agent(tmp_path, bundle_file, scene, mosquitto.port, health_every_s=1) as running:
            subscriber.wait_for("/health", timeout_s=30)
            wait_until(lambda: labels(subscriber, "/label") == ["brick"], 20, "the label")
            wait_until(lambda: len(subscriber.messages("/health")) > 3, 30, "some seconds")
            assert labels(subscriber, "/label") == ["brick"]
            assert labels(subscriber, "/event") == []
            running.end(signal.SIGTERM)
        show(scene, areas["stars"]["video"])
        with agent(tmp_path, bundle_file, scene, mosquitto.port) as running:
            wait_until(lambda: labels(subscriber, "/event") == ["stars"], 30, "the change, once")
            running.end(signal.SIGTERM)
        assert "unknown" not in labels(subscriber, "/label")


def test_a_label_that_the_model_does_not_have_is_forgotten(
    mosquitto: Mosquitto, bundle_file: Path, scene: Path, tmp_path: Path
) -> None:
    from edge_agent.clock import Stamp
    from edge_agent.mqtt.spool import Spool, SpooledEvent

    payload = b'{"v":1,"device":"pi","camera":"door","seq":1,"captured_at":"","label":"otter","score":1,"top":[],'
    payload += b'"model":{"name":"m","version":"1","digest":"d"},"timing_ms":{"preprocess":1,"inference":1,'
    payload += b'"capture_to_publish":1}}'
    with Spool(tmp_path / "state" / "spool.sqlite") as spool:
        spool.put([SpooledEvent("edgeloop/pi/camera/door/event", payload, Stamp.now())])
        spool.put([SpooledEvent("edgeloop/pi/camera/gone/event", b"not JSON", Stamp.now())])
    with (
        Subscriber(mosquitto.port, "edgeloop/pi/camera/door/#") as subscriber,
        agent(tmp_path, bundle_file, scene, mosquitto.port) as running,
    ):
        wait_until(lambda: labels(subscriber, "/event")[-1:] == ["brick"], 30, running.log.read_text())


def test_a_second_agent_with_the_same_state_is_refused(
    mosquitto: Mosquitto, bundle_file: Path, scene: Path, tmp_path: Path
) -> None:
    (tmp_path / "second").mkdir()
    state = {"state": str(tmp_path / "state")}
    with agent(tmp_path, bundle_file, scene, mosquitto.port, **state) as first:
        wait_until(lambda: "connected to" in first.log.read_text(), 30, "the first agent")
        with agent(tmp_path / "second", bundle_file, scene, mosquitto.port, **state, device="other") as second:
            assert second.end() == 2
        last = second.log.read_text().splitlines()[-1]
        assert last.startswith(f"edgeloop: {tmp_path}/state: another agent (process {first.process.pid}) uses this")
        assert first.process.poll() is None
        first.end(signal.SIGKILL)
    # The lock ends with its process.
    with agent(tmp_path / "second", bundle_file, scene, mosquitto.port, **state, device="other") as second:
        wait_until(lambda: "connected to" in second.log.read_text(), 30, "the second agent")
