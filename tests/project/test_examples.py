"""Every file in examples/ works as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.fleet.inventory import choose
from edge_agent.bundle import open_bundle
from edge_agent.config import MqttSettings, load_settings
from edge_agent.messages import CameraInfo, Health, Info, Latency, ModelId, Observation, Percentiles, Timing, TopScore
from edge_agent.mqtt import MqttPublisher, Topics
from edge_agent.mqtt.discovery import discovery

from ..conftest import Mosquitto, find_free_port, wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = ModelId("birds", "3", "0" * 64)


def run(name: str, *arguments: object) -> str:
    """Run an example that ends by itself; what it printed."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def entities(document: Any) -> Iterator[str]:
    """Every entity id in a Home Assistant dashboard."""
    if isinstance(document, dict):
        if isinstance(document.get("entity"), str):
            yield document["entity"]
        for value in document.values():
            yield from entities(value)
    elif isinstance(document, list):
        for value in document:
            yield from entities(value)


def entity_id(platform: str, device: str, name: str) -> str:
    """The id that Home Assistant makes of an MQTT entity: "_" for all but letters and digits."""
    return f"{platform}.{re.sub(r'[^a-z0-9]+', '_', f'{device} {name}'.lower())}"


def test_every_example_is_in_the_list_and_in_a_test() -> None:
    listed = set(re.findall(r"\]\(([\w.-]+)\)", (EXAMPLES / "README.md").read_text()))
    assert listed == {path.name for path in EXAMPLES.iterdir() if path.is_file()} - {"README.md"}
    tests = Path(__file__).read_text()
    assert [name for name in sorted(listed) if f'"{name}"' not in tests] == []


def test_classify_names_the_class(bundle_file: Path, photo_folder: Path) -> None:
    assert re.search(r"00\.jpg: stars \([01]\.\d\d\)", run("classify.py", bundle_file, photo_folder / "stars/00.jpg"))


def test_the_webcam_loop_follows_a_video(bundle_file: Path, video_file: Path) -> None:
    printed = run("webcam_loop.py", bundle_file, video_file)
    labels = re.findall(r"^(\w+) \(\d\.\d\d\), \d+\.\d ms$", printed, re.MULTILINE)
    assert (labels[0], labels[-1]) == ("brick", "stars")


def test_the_webcam_loop_says_where_there_is_no_camera(bundle_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "webcam_loop.py"), str(bundle_file), str(tmp_path / "no.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "no.mp4: no camera or video there; edgeloop cameras lists what this machine has" in done.stderr


@pytest.mark.long
def test_training_and_converting_from_python_reports_progress(photo_folder: Path, tmp_path: Path) -> None:
    printed = run("train_and_convert.py", photo_folder, tmp_path / "work", "--quick")
    assert "Reading images: done\n" in printed
    assert re.search(r"^60 images, 3 classes", printed, re.MULTILINE)
    assert re.search(r"^test accuracy [01]\.\d{3}, 95 % interval [01]\.\d{3} to [01]\.\d{3}$", printed, re.MULTILINE)
    assert re.search(r"^bundle on \d+ images it was not trained on: [01]\.\d{3}$", printed, re.MULTILINE)
    assert open_bundle(tmp_path / "work/model-1.edgeloop").manifest.name == "model"


@pytest.mark.needs("mosquitto")
def test_the_subscriber_prints_what_an_agent_publishes(mosquitto: Mosquitto, tmp_path: Path) -> None:
    settings = MqttSettings(host="127.0.0.1", port=mosquitto.port)
    printed = tmp_path / "printed"
    with (
        printed.open("w") as out,
        subprocess.Popen(
            [sys.executable, str(EXAMPLES / "mqtt_subscriber.py"), "127.0.0.1", str(mosquitto.port)],
            stdout=out,
            stderr=out,
        ) as subscriber,
    ):
        try:
            with MqttPublisher(settings, "pi") as publisher:
                publisher.info(Info(1, "pi", MODEL, ("robin",), {}, 2, None, "litert", "0.1.0", "3.11", recorder=False))
                publisher.label(observation())
                wait_until(lambda: "robin" in printed.read_text(), 30, "the label")
                nothing = Percentiles(0, 0, 0, 0, 0)
                latency = Latency(nothing, nothing, nothing)
                moment = "2026-01-31T12:00:00.123Z"
                publisher.health(Health(1, "pi", moment, 1, MODEL, 51.5, (), 1, 90, 9, 9, latency, {}, None, None))
                wait_until(lambda: "51.5" in printed.read_text(), 30, "the health")
            wait_until(lambda: "pi: offline" in printed.read_text(), 30, "the end")
        finally:
            subscriber.terminate()
    text = printed.read_text()
    assert "pi: online\n" in text
    assert "pi: runs birds 3 with 1 labels\n" in text
    assert "pi/door: label robin (0.93), 4.0 ms old\n" in text
    assert "pi: 51.5 °C, 90.0 MB\n" in text


def observation() -> Observation:
    return Observation(
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


def test_the_settings_are_accepted() -> None:
    assert set(load_settings(EXAMPLES / "agent.yaml").cameras) == {"feeder", "gate"}


def test_the_inventory_is_accepted() -> None:
    inventory = EXAMPLES / "devices.yaml"
    assert [host.name for host in choose((), inventory)] == ["porch", "barn", "office"]
    porch, barn = choose(("outside",), inventory)
    assert (porch.user, porch.host, barn.port) == ("pi", "porch.local", 2222)
    assert "stall" in barn.settings["cameras"]


def test_the_home_assistant_dashboard_shows_entities_that_the_agent_announces(bundle_file: Path) -> None:
    settings = load_settings(EXAMPLES / "agent.yaml")
    labels = open_bundle(bundle_file).labels
    cameras = {name: CameraInfo("0") for name in settings.cameras}
    info = Info(1, settings.device, MODEL, labels, cameras, 2, None, "litert", "0.1.0", "3.11", recorder=False)
    announced = {
        entity_id(component["platform"], settings.device, component["name"])
        for component in discovery(Topics("edgeloop", settings.device), info)["components"].values()
    }
    shown = set(entities(yaml.safe_load((EXAMPLES / "home_assistant.yaml").read_text())))
    assert len(shown) > 8
    assert shown - announced == set()


@pytest.mark.needs("mosquitto")
def test_the_brokers_configuration_starts_a_broker_that_compose_mounts_where_it_looks(tmp_path: Path) -> None:
    service = yaml.safe_load((EXAMPLES / "docker-compose.yaml").read_text())["services"]["mosquitto"]
    assert service["ports"] == ["1883:1883"]
    assert "./mosquitto.conf:/mosquitto/config/mosquitto.conf:ro" in service["volumes"]
    text = (EXAMPLES / "mosquitto.conf").read_text()
    port = find_free_port()
    data = tmp_path / "data"
    data.mkdir()
    changed = text.replace("listener 1883\n", f"listener {port} 127.0.0.1\n").replace("/mosquitto/data/", f"{data}/")
    assert changed.count(str(port)) == changed.count(str(data)) == 1
    (tmp_path / "mosquitto.conf").write_text(f"{changed}user root\n")
    broker = Mosquitto(tmp_path, port)
    broker.start()
    try:
        with MqttPublisher(MqttSettings(host="127.0.0.1", port=port), "pi") as publisher:
            wait_until(lambda: publisher.is_connected, 20, "a connection")
    finally:
        broker.stop()
