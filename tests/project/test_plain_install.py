"""The plain wheel in an empty environment: what a device gets."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ..conftest import Mosquitto, Subscriber

pytestmark = pytest.mark.needs("index")
REPOSITORY = Path(__file__).parents[2]
DEVICE_PACKAGES = {
    "ai-edge-litert",
    "click",
    "edgeloop",
    "msgspec",
    "numpy",
    "opencv-python-headless",
    "paho-mqtt",
    "pyyaml",
}
# What ai-edge-litert itself asks for.
THEIRS = {"backports-strenum", "flatbuffers", "ml-dtypes", "protobuf", "tqdm", "typing-extensions"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(REPOSITORY)],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin directory of an environment with nothing but the wheel."""
    env = tmp_path_factory.mktemp("device") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(env)], check=True)
    install = [
        str(env / "bin/python"),
        "-m",
        "pip",
        "install",
        "-q",
        "-c",
        str(REPOSITORY / "constraints.txt"),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    return env / "bin"


def run(device: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd)}
    command = [str(device / "edgeloop"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False, timeout=120)


def test_the_wheel_holds_the_four_packages_with_their_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "edge_agent",
        "trainer",
        "converter",
        "deploy",
    }
    assert "trainer/report/templates/report.html.j2" in names


@pytest.mark.long
def test_a_device_gets_these_packages_and_no_others(device: Path) -> None:
    listed = subprocess.run(
        [str(device / "python"), "-m", "pip", "list", "--format", "freeze"], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split("==")[0].lower().replace("_", "-").replace(".", "-") for line in listed.splitlines()}
    assert names - {"pip", "setuptools"} - THEIRS == DEVICE_PACKAGES


def test_help_inspect_and_predict_work(device: Path, bundle_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    shown = run(device, "--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert "predict" in shown.stdout
    inspected = run(device, "inspect", bundle_file, cwd=tmp_path)
    assert inspected.returncode == 0, inspected.stderr
    predicted = run(device, "predict", bundle_file, photo_folder / "stars/00.jpg", cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    assert ": stars" in predicted.stdout
    assert predicted.stderr == ""


@pytest.mark.needs("mosquitto")
def test_run_works(
    device: Path, bundle_file: Path, video_file: Path, tmp_path: Path, mosquitto: Mosquitto, subscriber: Subscriber
) -> None:
    (tmp_path / "agent.yaml").write_text(
        f"device: pi\nbundle: {bundle_file}\ncameras: {{door: {{source: {video_file}}}}}\n"
        f"mqtt: {{port: {mosquitto.port}, host: 127.0.0.1}}\nstate: state\n"
    )
    ran = run(device, "run", "--config", "agent.yaml", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    subscriber.wait_for("/pi/status", "offline")
    labels = [m["payload"]["label"] for m in subscriber.messages("/label")]  # type: ignore[index]
    assert labels[-1] == "stars"


@pytest.mark.parametrize(("command", "extra"), [("train", "train"), ("convert", "train"), ("demo", "demo")])
def test_a_desktop_command_names_the_extra_it_needs(device: Path, tmp_path: Path, command: str, extra: str) -> None:
    ran = run(device, command, "x", "--out", "y", cwd=tmp_path)
    assert ran.returncode == 2
    assert len(ran.stderr.splitlines()) == 1
    assert f"pip install 'edgeloop[{extra}]'" in ran.stderr
