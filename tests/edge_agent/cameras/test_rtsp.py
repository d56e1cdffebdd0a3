"""A network camera: H.264 over RTSP from GStreamer's server, a process of its own."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_agent.cameras import Frame, reconnect
from edge_agent.cameras.opencv import OpenCVCamera
from edge_agent.cameras.reconnect import ReconnectingCamera
from edge_agent.cameras.sources import open_camera
from edge_agent.config import CameraSettings
from edge_agent.errors import CameraError
from edge_agent.preprocessing import Pixels

from ...conftest import wait_until
from ...support import SUPPORT

pytestmark = pytest.mark.needs("rtsp")


class Server:
    """Shows an image at 25 frames/s on `address`."""

    def __init__(self, image: Path, port: int = 0, login: str = "", key_every: int = 25) -> None:
        command = ["/usr/bin/python3", str(SUPPORT / "rtsp_server.py"), str(port), str(image), login, str(key_every)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.address = f"rtsp://127.0.0.1:{self.port}/door"

    def end(self) -> None:
        self.process.kill()
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()


StartServer = Callable[..., Server]


@pytest.fixture
def shown(areas: dict[str, dict[str, Pixels]]) -> Pixels:
    return cv2.resize(areas["brick"]["video"], (640, 480)).astype(np.uint8)


@pytest.fixture
def start(shown: Pixels, tmp_path: Path) -> Iterator[StartServer]:
    cv2.imwrite(str(tmp_path / "shown.png"), shown)
    servers: list[Server] = []

    def start(port: int = 0, login: str = "", key_every: int = 25) -> Server:
        servers.append(Server(tmp_path / "shown.png", port, login, key_every))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


def some(address: str, count: int = 5) -> list[Frame]:
    with open_camera(CameraSettings(address, timeout_s=10)) as camera:
        return list(islice(camera, count))


def test_frames_are_what_the_camera_sees(start: StartServer, shown: Pixels) -> None:
    frames = some(start().address)
    assert [frame.seq for frame in frames] == [0, 1, 2, 3, 4]
    assert np.abs(frames[-1].full().astype(int) - shown).mean() < 3


def test_the_password_opens_and_is_never_shown(start: StartServer) -> None:
    door = start(login="me:secret").address.removeprefix("rtsp://")
    assert len(some(f"rtsp://me:secret@{door}")) == 5
    for login in ("", "me:mistaken@"):
        with pytest.raises(CameraError, match=r"cannot be opened; is it reachable, .*password") as caught:
            some(f"rtsp://{login}{door}")
        assert "mistaken" not in str(caught.value)


def test_the_wait_for_a_key_frame_is_no_loss(start: StartServer) -> None:
    address = start(key_every=25 * 9).address
    states: list[tuple[str, str]] = []
    frames: list[Frame] = []
    kept = ReconnectingCamera(
        lambda: open_camera(CameraSettings(address, timeout_s=6)),
        live=True,
        timeout_s=6,
        frozen_s=0,
        deliver=frames.append,
        report=lambda state, reason: states.append((state, reason)),
    )
    stopping = threading.Event()
    thread = threading.Thread(target=kept.run, args=(stopping,), daemon=True)
    began = time.monotonic()
    thread.start()
    wait_until(lambda: len(frames) > 5, 60, f"frames after {states}")
    stopping.set()
    thread.join(60)
    assert frames[0].captured_s - began > 6, "there was a key frame at once, so that nothing was tried"
    assert [state for state, _ in states] == ["online"], states


def test_the_decoder_holds_back_no_frame(start: StartServer) -> None:
    with open_camera(CameraSettings(start().address, timeout_s=10)) as camera:
        assert isinstance(camera, OpenCVCamera)
        assert camera._capture is not None
        assert camera._capture.get(cv2.CAP_PROP_N_THREADS) == 1


def test_a_camera_that_is_away_or_hangs_is_noticed_and_comes_back(
    start: StartServer, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnect, "RETRY_S", (0.2, 0.5))
    settings = CameraSettings(f"rtsp://127.0.0.1:{free_port}/door", timeout_s=2)
    frames: list[Frame] = []
    reports: list[tuple[str, str, float]] = []
    kept = ReconnectingCamera(
        lambda: open_camera(settings),
        live=True,
        timeout_s=settings.timeout_s,
        frozen_s=0,
        deliver=frames.append,
        report=lambda state, reason: reports.append((state, reason, time.monotonic())),
    )
    stopping = threading.Event()
    thread = threading.Thread(target=kept.run, args=(stopping,), daemon=True)
    started = time.monotonic()
    thread.start()

    def delivers(more: int = 20) -> None:
        before = len(frames)
        wait_until(lambda: len(frames) >= before + more, 40, f"frames after {reports}")

    def lost_since(moment: float) -> None:
        wait_until(lambda: bool([r for r in reports if r[2] > moment and r[0] != "online"]), 30, f"{reports}")
        noticed = next(at for state, _, at in reports if at > moment and state != "online")
        # What is promised, with room for a busy machine.
        assert noticed - moment < 2 * 5

    lost_since(started)  # not there at the start
    server = start(free_port)
    delivers()
    away = time.monotonic()
    server.end()
    lost_since(away)
    server = start(free_port)
    delivers()
    server.process.send_signal(signal.SIGSTOP)
    hangs = time.monotonic()
    lost_since(hangs)
    server.process.send_signal(signal.SIGCONT)
    delivers()
    stopping.set()
    thread.join(60)
    assert not thread.is_alive()
