"""Real parts, made once: photographs, a trained run, its bundle, a broker."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Self
from unittest.mock import patch

import cv2
import hypothesis
import numpy as np
import pytest
from rich.console import Console

import edge_agent
from edge_agent.preprocessing import Pixels

from .pi.root import can_emulate

# By default, an example that takes over 200 ms fails, so that a test would depend on the speed of the machine.
hypothesis.settings.register_profile("any-speed", deadline=None)
hypothesis.settings.load_profile("any-speed")

QUIET = Console(quiet=True)
CLASSES = ("brick", "grass", "stars")
IMAGE_SIZE = 48


def _missing_mosquitto() -> str:
    clients = all(shutil.which(name) for name in ("mosquitto_sub", "mosquitto_pub", "mosquitto_passwd"))
    return "" if clients and shutil.which("mosquitto", path=SEARCH) else "Mosquitto or its clients are not installed"


def _missing_index() -> str:
    check = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--no-deps", "--ignore-installed", "click"]
    return "" if subprocess.run(check, check=False, capture_output=True).returncode == 0 else "no package index answers"


def _missing_cc() -> str:
    return "" if shutil.which("cc") else "no C compiler is installed"


def _missing_git() -> str:
    """Why git cannot list the files, as in an unpacked source distribution; "" where it can."""
    if not shutil.which("git"):
        return "git is not installed"
    listed = subprocess.run(["git", "ls-files"], cwd=Path(__file__).parents[1], check=False, capture_output=True)
    return "" if listed.returncode == 0 and listed.stdout else "this is no git checkout"


def _missing_loop() -> str:
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        return "not root, or no loop devices here"
    programs = shutil.which("losetup", path=SEARCH) and Path("/usr/sbin/mkfs.ext4").exists()
    return "" if programs else "losetup or mkfs.ext4 is not installed"


# What starts a command in a mount namespace of its own, as root there.
NAMESPACE = ("unshare", "-m") if os.getuid() == 0 else ("unshare", "-rm")


def _missing_namespace() -> str:
    works = (
        shutil.which("unshare")
        and subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode == 0
    )
    return "" if works else "this machine lets nobody mount a small disk"


def _missing_rtsp() -> str:
    code = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, GstRtspServer; \
Gst.init(None); assert Gst.ElementFactory.find('x264enc') and Gst.ElementFactory.find('rtph264pay')"
    python = "/usr/bin/python3"
    works = (
        Path(python).exists() and subprocess.run([python, "-c", code], check=False, capture_output=True).returncode == 0
    )
    return "" if works else "GStreamer's RTSP server, its x264 and Debian's python3-gi are not installed"


def _missing(module: str, extra: str) -> Callable[[], str]:
    return lambda: "" if find_spec(module) else f"{module} is not installed: pip install 'edgeloop[{extra}]'"


SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
PARTS: dict[str, Callable[[], str]] = {
    "root": lambda: (
        "" if os.geteuid() == 0 and shutil.which("dpkg-deb") else "not root on Debian, who alone can chroot"
    ),
    "pi": lambda: (
        "" if can_emulate() else "arm64 programs do not run here with setuid (scripts/emulate_arm64), or no root"
    ),
    "ssh-keygen": lambda: "" if shutil.which("ssh-keygen") else "OpenSSH's ssh-keygen is not installed",
    "mosquitto": _missing_mosquitto,
    "index": _missing_index,
    "mtools": lambda: (
        ""
        if shutil.which("mcopy") and shutil.which("mkfs.fat", path=SEARCH)
        else "mtools or dosfstools is not installed"
    ),
    "systemd": lambda: "" if shutil.which("systemd-analyze") else "systemd-analyze is not installed",
    "qemu": lambda: "" if shutil.which("qemu-system-aarch64") else "qemu-system-aarch64 is not installed",
    "loop": _missing_loop,
    "lsblk": lambda: "" if shutil.which("lsblk") else "lsblk is not installed",
    "git": _missing_git,
    "cc": _missing_cc,
    "namespace": _missing_namespace,
    "rtsp": _missing_rtsp,
    "sshd": lambda: "" if shutil.which("sshd", path=SEARCH) else "OpenSSH's sshd is not installed",
    "nginx": lambda: "" if shutil.which("nginx", path=SEARCH) else "nginx is not installed",
    "chromium": lambda: "" if shutil.which("chromium") else "Chromium is not installed",
    "jax": _missing("jax", "jax"),
    "torch": _missing("torch", "torch"),
    "tensorboard": _missing("tensorboard", "tensorboard"),
    "serving": _missing("tensorflow_serving", "serving"),
    "hub": _missing("keras_hub", "hub"),
    "ray": _missing("ray", "scale"),
}
_BEGIN_WITH = (
    "test_demo",
    "test_resume",
    "test_search",
    "test_tf_serving",
    "test_shortlist",
    "test_trainer",
    "test_review",
)
_verdicts: dict[str, str] = {}


SLOW_PARTS = {"index", "chromium"}
LONG_PARTS = {"qemu", "jax", "torch", "tensorboard", "serving", "hub", "ray"}
"""Parts that are gigabytes, or slow; CI leaves out what needs one, as it does all of tests/pi."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow or long by what it needs, and begin with the longest files, which would run alone at the end.

    What is long is slow, too, so that ``-m "not slow"`` selects the quick tests.
    """
    for item in items:
        parts = {part for marker in item.iter_markers("needs") for part in marker.args}
        if parts & LONG_PARTS or "pi" in item.path.parts:
            item.add_marker(pytest.mark.long)
        if parts & SLOW_PARTS or item.get_closest_marker("long"):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: ("pi" not in item.path.parts, item.path.stem not in _BEGIN_WITH))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what lacks its real part; fail it where all parts are required."""
    for marker in item.iter_markers("needs"):
        for part in marker.args:
            if part not in _verdicts:
                _verdicts[part] = PARTS[part]()
            if _verdicts[part]:
                if os.environ.get("EDGELOOP_REQUIRE") == "all":
                    pytest.fail(f"{_verdicts[part]}, and EDGELOOP_REQUIRE=all")
                pytest.skip(_verdicts[part])


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The pixel cache of these tests alone, for child processes, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclass(frozen=True)
class Ran:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line it said on standard error."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, f"expected one line, got: {self.err}"
        return lines[0]


Run = Callable[..., Ran]


@pytest.fixture(scope="session")
def edgeloop() -> Run:
    """Run the command line in a process of its own, as a user does."""

    def run(*arguments: object, timeout: float = 600, **environment: str) -> Ran:
        command = [sys.executable, "-m", "edge_agent.cli", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, env={**os.environ, **environment}
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def areas() -> dict[str, dict[str, Pixels]]:
    """The demo's photographs, cut into areas that do not overlap."""
    from deploy.pipelines.demo.photographs import load_areas

    return load_areas()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run of the tests share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def make_once(path: Path, make: Callable[[Path], object]) -> Path:
    """Make a file or folder, unless another process has made it; wait while another process is making it.

    Args:
        path: where it is afterwards.
        make: makes it at the path it is given, whole or not at all.
    """
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            make(path)
    return path


@pytest.fixture(scope="session")
def photo_folder(areas: dict[str, dict[str, Pixels]], shared_folder: Path) -> Path:
    """A folder per class of real photographs, 20 each."""

    def make(path: Path) -> None:
        folder = path.with_name("unfinished-photos")
        random = np.random.default_rng(5)
        for label in CLASSES:
            (folder / label).mkdir(parents=True)
            for number in range(20):
                write_crop(folder / label / f"{number:02d}.jpg", areas[label]["train"], random)
        folder.rename(path)

    return make_once(shared_folder / "photos", make)


def write_crop(path: Path, area: Pixels, random: np.random.Generator, side: int = 120) -> None:
    """A random part of a photograph as an image file."""
    top, left = (int(random.integers(0, limit - side)) for limit in area.shape[:2])
    cv2.imwrite(str(path), area[top : top + side, left : left + side])


@pytest.fixture(scope="session")
def run_folder(photo_folder: Path, shared_folder: Path) -> Path:
    """A real training run of a small network; see `tests.support.small_network`."""
    from trainer.pipeline import train
    from trainer.training.recipe import Recipe

    from .support.small_network import small_backbone, write_weights

    def make(path: Path) -> None:
        with small_backbone() as name:
            weights = path.with_name("small-network.keras")
            write_weights(weights, photo_folder, IMAGE_SIZE)
            recipe = Recipe(backbone=name, image_size=IMAGE_SIZE, weights=str(weights), fine_tune="none")
            train(photo_folder, path, recipe, console=QUIET)

    return make_once(shared_folder / "run", make)


@pytest.fixture(scope="session")
def small_weights(run_folder: Path) -> Path:
    """Weights of the small network, fitted to the photographs."""
    return run_folder.with_name("small-network.keras")


@pytest.fixture(scope="session")
def efficientnet_run(photo_folder: Path, shared_folder: Path) -> Path:
    """A real training run of the default backbone, on its ImageNet features."""
    from trainer.pipeline import train
    from trainer.training.recipe import Recipe

    recipe = Recipe(image_size=96, fine_tune="none")
    return make_once(shared_folder / "efficientnet-run", lambda path: train(photo_folder, path, recipe, console=QUIET))


@pytest.fixture(scope="session")
def float32_model(run_folder: Path, shared_folder: Path) -> bytes:
    """That run's network as float32 TFLite."""
    from converter.run_reader import open_run
    from converter.tflite import float_model

    def make(path: Path) -> None:
        model = float_model.of_run(open_run(run_folder), path.with_name("float32"))
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_bytes(model)
        unfinished.rename(path)

    return make_once(shared_folder / "float32.tflite", make).read_bytes()


@pytest.fixture(scope="session")
def bundle_file(run_folder: Path, shared_folder: Path) -> Path:
    """A real, small int8 bundle."""
    return make_once(shared_folder / "ground-1.2.edgeloop", lambda path: _convert(run_folder, path))


@pytest.fixture(scope="session")
def efficientnet_bundle(efficientnet_run: Path, shared_folder: Path) -> Path:
    """An int8 bundle of the default backbone."""
    return make_once(shared_folder / "efficientnet-1.edgeloop", lambda path: _convert(efficientnet_run, path))


def _convert(run: Path, out: Path) -> None:
    from converter.gate import GateLimits
    from converter.pipeline import convert

    # The gate times the models, and may find int8 slower on a busy machine.
    with patch("converter.pipeline.timed_ms", lambda *_: (1.0, 1.0)):
        # 9 test images: one more wrong is 11 points. These tests are not about the gate.
        convert(run, out, console=QUIET, limits=GateLimits(max_drop=12, max_class_drop=100))


@pytest.fixture(scope="session")
def classifier(bundle_file: Path) -> Iterator[edge_agent.Classifier]:
    """The bundle's model, loaded."""
    with edge_agent.open(bundle_file, threads=1) as opened:
        yield opened


def find_free_port() -> int:
    """A TCP port on loopback nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def listens(port: int) -> bool:
    """Whether something listens on a TCP port on loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), 0.2).close()
    except OSError:
        return False
    return True


@pytest.fixture
def free_port() -> int:
    """A TCP port on loopback nobody listens on."""
    return find_free_port()


@dataclass
class Mosquitto:
    """A real Mosquitto on loopback."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        binary = shutil.which("mosquitto", path=SEARCH)
        assert binary is not None
        self.process = subprocess.Popen(
            [binary, "-c", str(self.folder / "mosquitto.conf")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._listens, 10, "Mosquitto to listen")

    def stop(self) -> None:
        """End it."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(60)

    def _listens(self) -> bool:
        return listens(self.port)


@contextmanager
def start_mosquitto(folder: Path, more: str = "") -> Iterator[Mosquitto]:
    """A broker that lets everyone in, for as long as the block; ``more``: further lines of its settings."""
    folder.mkdir(exist_ok=True)
    port = find_free_port()
    lines = f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n{more}\n"
    (folder / "mosquitto.conf").write_text(lines)
    broker = Mosquitto(folder, port)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """Mosquitto that lets everyone in."""
    folder = tmp_path / "mosquitto"
    folder.mkdir()
    with start_mosquitto(folder) as broker:
        yield broker


class Subscriber:
    """`mosquitto_sub`: a subscriber that is not ours. A context manager."""

    def __init__(self, port: int, topic: str) -> None:
        self._lines: list[str] = []
        self._command = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(port), "-t", topic, "-F", "%j", "-V", "5"]

    def __enter__(self) -> Self:
        # Images are no text; what is looked at are the other messages.
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True, errors="replace")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._thread.join(60)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)

    def messages(self, ending: str) -> list[dict[str, object]]:
        """What arrived so far on topics with this ending: topic, payload (decoded JSON or text), retain, qos."""
        found = []
        for line in list(self._lines):
            message = json.loads(line)
            if message["topic"].endswith(ending):
                payload = message["payload"]
                if isinstance(payload, str) and payload.startswith("{"):
                    message["payload"] = json.loads(payload)
                found.append(message)
        return found

    def wait_for(self, ending: str, payload: object = None, timeout_s: float = 20) -> dict[str, object]:
        """The first message there (with that payload)."""
        wait_until(lambda: self._matching(ending, payload) is not None, timeout_s, f"{ending} {payload or ''}")
        found = self._matching(ending, payload)
        assert found is not None
        return found

    def _matching(self, ending: str, payload: object) -> dict[str, object] | None:
        return next((m for m in self.messages(ending) if payload is None or m["payload"] == payload), None)


@pytest.fixture
def subscriber(mosquitto: Mosquitto) -> Iterator[Subscriber]:
    """`mosquitto_sub` on everything of the broker."""
    with Subscriber(mosquitto.port, "edgeloop/#") as opened:
        yield opened


BUSY = 6
"""A machine that does much else may take this many times as long."""


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll until a condition holds; fail with ``what`` was waited for.

    ``timeout_s`` is what is enough on a machine that does nothing else.
    """
    deadline = time.monotonic() + BUSY * timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {BUSY * timeout_s:g} s in vain for {what}")
        time.sleep(0.05)


@pytest.fixture(scope="session")
def video_file(areas: dict[str, dict[str, Pixels]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 40 frames at 20 frames/s: brick, then stars."""
    path = tmp_path_factory.mktemp("video") / "brick-stars.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20, (160, 120))
    for number in range(40):
        area = areas["brick" if number < 20 else "stars"]["video"]
        writer.write(np.ascontiguousarray(area[number : number + 120, :160]))
    writer.release()
    return path


@pytest.fixture(scope="session")
def fast_video(areas: dict[str, dict[str, Pixels]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Brick for a second, then stars, at 60 frames a second: probation is 500 frames."""
    path = tmp_path_factory.mktemp("video") / "fast.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 60, (160, 120))
    for number in range(120):
        area = areas["brick" if number < 60 else "stars"]["video"]
        shift = number % 60 // 2
        writer.write(np.ascontiguousarray(area[shift : shift + 120, :160]))
    writer.release()
    return path
