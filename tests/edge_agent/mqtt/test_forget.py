"""`edgeloop forget`: nothing of a device that is gone stays at a real broker."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from ...conftest import Mosquitto, Run

pytestmark = pytest.mark.needs("mosquitto")

GONE = {
    "edgeloop/porch/status": "offline",
    "edgeloop/porch/info": "{}",
    "edgeloop/porch/camera/door/label": "{}",
    "edgeloop/porch/camera/door/state": "lost",
    "homeassistant/device/edgeloop_porch/config": "{}",
}
OTHERS = {
    "edgeloop/porch2/status": "offline",
    "edgeloop/garden/info": "{}",
    "homeassistant/device/edgeloop_garden/config": "{}",
}


def publish(port: int, topic: str, payload: str) -> None:
    command = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(port), "-q", "1", "-r", "-t", topic, "-m", payload]
    subprocess.run(command, check=True)


def retained(port: int) -> set[str]:
    command = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(port), "-t", "#", "--retained-only", "-W", "2", "-F", "%t"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return set(done.stdout.split())


@pytest.fixture
def config(mosquitto: Mosquitto, tmp_path: Path) -> Path:
    document = {
        "device": "garden",
        "cameras": {"x": {"source": 0}},
        "mqtt": {"host": "127.0.0.1", "port": mosquitto.port},
    }
    (tmp_path / "agent.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "agent.yaml"


def test_everything_of_a_device_goes_and_nothing_of_another(mosquitto: Mosquitto, config: Path, edgeloop: Run) -> None:
    for topic, payload in (GONE | OTHERS).items():
        publish(mosquitto.port, topic, payload)
    ran = edgeloop("forget", "porch", "--config", config)
    assert (ran.code, ran.out.splitlines()) == (
        0,
        [*sorted(GONE), "cleared 5 retained messages of porch"],
    )
    assert retained(mosquitto.port) == set(OTHERS)
    again = edgeloop("forget", "porch", "--config", config)
    assert again.code != 0
    assert "has no retained messages of porch under edgeloop/" in again.line


def test_a_device_that_is_online_is_not_forgotten_by_mistake(mosquitto: Mosquitto, config: Path, edgeloop: Run) -> None:
    publish(mosquitto.port, "edgeloop/porch/status", "online")
    ran = edgeloop("forget", "porch", "--config", config)
    assert "porch is online; stop its agent first, or use --force" in ran.line
    assert retained(mosquitto.port) == {"edgeloop/porch/status"}
    assert edgeloop("forget", "porch", "--config", config, "--force").code == 0
    assert retained(mosquitto.port) == set()


@pytest.mark.parametrize("name", ["porch/#", "+", "", "a/b", "#"])
def test_a_name_reaches_no_other_device(config: Path, edgeloop: Run, name: str) -> None:
    assert "is not the name of a device" in edgeloop("forget", name, "--config", config).line
