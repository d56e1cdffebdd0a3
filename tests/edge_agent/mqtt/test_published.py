"""What was removed or renamed leaves nothing retained at the broker."""

from __future__ import annotations

import json
import logging
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edge_agent.config import MqttSettings
from edge_agent.messages import CameraInfo, Info, ModelId, Observation, Timing
from edge_agent.mqtt import MqttPublisher
from edge_agent.mqtt.published import Published

from ...conftest import Mosquitto, wait_until

pytestmark = pytest.mark.needs("mosquitto")


def run(
    folder: Path, port: int, cameras: list[str], *, device: str = "pi", answered: bool = True, **settings: Any
) -> None:
    """An agent with these cameras, from its start to its end; ``answered``: whether a broker is there."""
    model = ModelId("m", "1", "d")
    info = Info(
        1, device, model, ("robin",), {c: CameraInfo("0") for c in cameras}, 1, None, "litert", "0", "3", recorder=False
    )
    mqtt = MqttSettings(host="127.0.0.1", port=port, **settings)
    publisher = MqttPublisher(mqtt, device, folder / "spool.sqlite", published=folder / "published.json")
    with publisher:
        publisher.info(info)
        for camera in cameras:
            publisher.camera(camera, "online")
            publisher.label(Observation(1, device, camera, 1, "", "robin", 0.9, (), model, Timing(1, 2, 3)))
        if answered:
            wait_until(lambda: publisher.is_connected and not publisher._in_flight, 20, "all to be acknowledged")


def retained(port: int) -> dict[str, str]:
    """All retained messages, by topic."""
    command = ["mosquitto_sub", "-p", str(port), "-t", "#", "-W", "1", "--retained-only", "-F", "%t %p"]
    said = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    return dict(line.split(" ", 1) for line in said.splitlines())


def test_a_removed_camera_is_cleared_and_home_assistant_removes_it(mosquitto: Mosquitto, tmp_path: Path) -> None:
    run(tmp_path, mosquitto.port, ["yard", "shed"], discovery="homeassistant")
    assert "edgeloop/pi/camera/shed/label" in retained(mosquitto.port)
    for _ in range(2):  # for good: Home Assistant may be off for any time
        run(tmp_path, mosquitto.port, ["yard"], discovery="homeassistant")
        left = retained(mosquitto.port)
        assert {topic for topic in left if "/camera/" in topic} == {
            "edgeloop/pi/camera/yard/label",
            "edgeloop/pi/camera/yard/status",
        }
        components = json.loads(left["homeassistant/device/edgeloop_pi/config"])["components"]
        assert components["camera_shed_label"] == {"platform": "sensor"}
        assert len(components["camera_yard_label"]) > 1
    # It comes back whole.
    run(tmp_path, mosquitto.port, ["yard", "shed"], discovery="homeassistant")
    components = json.loads(retained(mosquitto.port)["homeassistant/device/edgeloop_pi/config"])["components"]
    assert len(components["camera_shed_label"]) > 1


def test_a_former_name_or_prefix_leaves_nothing_also_when_the_broker_was_away(
    mosquitto: Mosquitto, tmp_path: Path, free_port: int
) -> None:
    run(tmp_path, mosquitto.port, ["yard"], discovery="homeassistant")
    assert "homeassistant/device/edgeloop_pi/config" in retained(mosquitto.port)
    run(tmp_path, free_port, ["yard"], device="porch", discovery="homeassistant", answered=False)
    run(tmp_path, mosquitto.port, ["yard"], device="porch", prefix="garden")
    assert set(retained(mosquitto.port)) == {
        "garden/porch/status",
        "garden/porch/info",
        "garden/porch/camera/yard/label",
        "garden/porch/camera/yard/status",
    }
    remembered = json.loads((tmp_path / "published.json").read_bytes())
    assert remembered["components"] == {}
    assert all(topic.startswith("garden/porch/") for topic in remembered["topics"])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"topics": 5}'])
def test_a_damaged_file_is_named_and_written_again(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "published.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert Published(path).no_longer(["a"]) == []
    assert f"{path} cannot be read" in caplog.text
    assert Published(path).no_longer(["b"]) == ["a"]
