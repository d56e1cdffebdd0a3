"""Picamera2 exists on a Raspberry Pi alone: a stand-in with its interface takes its place."""

from __future__ import annotations

import sys
from itertools import islice
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from edge_agent.cameras.listing import available
from edge_agent.cameras.picamera import PiFrame
from edge_agent.cameras.sources import open_camera
from edge_agent.config import CameraSettings
from edge_agent.errors import CameraError, ConfigError
from edge_agent.preprocessing import Pixels

PADDING = 32
"""Bytes behind each row of the small stream, as libcamera leaves them."""


class Request:
    def __init__(self, camera: StandIn) -> None:
        self.camera = camera

    def make_array(self, stream: str) -> Pixels:
        config = self.camera.config[stream]
        width, height = config["size"]
        scene = cv2.resize(self.camera.scene, (width, height), interpolation=cv2.INTER_AREA)
        if config["format"] == "RGB888":
            return np.asarray(scene, np.uint8)
        padded = cv2.copyMakeBorder(scene, 0, 0, 0, PADDING, cv2.BORDER_REPLICATE)
        return np.asarray(cv2.cvtColor(padded, cv2.COLOR_BGR2YUV_I420), np.uint8)

    def release(self) -> None:
        self.camera.held -= 1


class StandIn:
    """What of Picamera2 the agent uses; four buffers, and it stops when all are held."""

    scene: Pixels
    opened = 0

    @staticmethod
    def global_camera_info() -> list[dict[str, Any]]:
        return [{"Model": "imx708", "Location": 2, "Rotation": 180, "Id": "/base/i2c@1a", "Num": 0}]

    def __init__(self, camera_num: int = 0) -> None:
        if camera_num > 0:
            raise IndexError("list index out of range")
        self.held, self.running = 0, False
        self.config: dict[str, Any] = {}
        StandIn.opened += 1

    def create_video_configuration(
        self, main: dict[str, Any], lores: dict[str, Any], controls: dict[str, Any]
    ) -> dict[str, Any]:
        assert all(side % 2 == 0 for side in lores["size"])
        assert lores["size"] <= main["size"]
        return {"main": main, "lores": lores, "controls": controls}

    def configure(self, camera_config: dict[str, Any]) -> None:
        self.config = camera_config

    def camera_configuration(self) -> dict[str, Any]:
        return self.config

    def start(self) -> None:
        self.running = True

    def capture_request(self) -> Request:
        assert self.running
        assert self.held < 4
        self.held += 1
        return Request(self)

    def stop(self) -> None:
        self.running = False

    def close(self) -> None:
        assert self.held == 0
        StandIn.opened -= 1


@pytest.fixture
def _pi(monkeypatch: pytest.MonkeyPatch, areas: dict[str, dict[str, Pixels]]) -> None:
    module = ModuleType("picamera2")
    module.Picamera2 = StandIn  # type: ignore[attr-defined]
    StandIn.scene = cv2.resize(areas["brick"]["video"], (1280, 720))  # type: ignore[assignment]
    StandIn.opened = 0
    monkeypatch.setitem(sys.modules, "picamera2", module)


@pytest.mark.usefixtures("_pi")
def test_frames_come_in_two_sizes_of_the_same_image() -> None:
    with open_camera(CameraSettings("picamera", fps=15)) as camera:
        frames = list(islice(camera, 20))  # more than there are buffers
        assert isinstance(frames[0], PiFrame)
        assert camera._camera.config["controls"] == {"FrameRate": 15}  # type: ignore[attr-defined]
    assert StandIn.opened == 0
    assert [frame.seq for frame in frames] == list(range(20))
    assert frames[0].size == (720, 1280)
    assert np.array_equal(frames[0].full(), StandIn.scene)
    small = frames[0].at_least(224, 398)
    assert small.shape == (360, 640, 3)
    expected = cv2.resize(StandIn.scene, (640, 360), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - expected.astype(int)).mean() < 4  # chroma is subsampled
    assert frames[0].at_least(361, 640).shape == frames[0].at_least(360, 641).shape == (720, 1280, 3)


@pytest.mark.usefixtures("_pi")
@pytest.mark.parametrize(
    ("size", "small"), [((1921, 1081), (640, 360)), ((322, 183), (322, 182)), ((301, 301), (300, 300))]
)
def test_the_second_stream_has_even_sides_whatever_the_size(size: tuple[int, int], small: tuple[int, int]) -> None:
    with open_camera(CameraSettings("picamera", size=size)) as camera:
        frame = next(iter(camera))
    assert frame.size == size[::-1]
    assert frame.at_least(10, 10).shape[:2] == small[::-1]


@pytest.mark.usefixtures("_pi")
def test_a_camera_that_does_not_start_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: StandIn) -> None:
        raise RuntimeError("Failed to start camera: Device or resource busy")

    monkeypatch.setattr(StandIn, "start", fail)
    with pytest.raises(CameraError, match="does not start: Failed to start"), open_camera(CameraSettings("picamera")):
        pass
    assert StandIn.opened == 0


@pytest.mark.usefixtures("_pi")
def test_a_camera_that_fails_while_it_runs_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: StandIn) -> Request:
        raise RuntimeError("Camera frontend has timed out!")

    with open_camera(CameraSettings("picamera")) as camera:
        frames = iter(camera)
        next(frames)
        monkeypatch.setattr(StandIn, "capture_request", fail)
        with pytest.raises(CameraError, match="picamera:0: failed: Camera frontend"):
            next(frames)
    assert StandIn.opened == 0


@pytest.mark.usefixtures("_pi")
def test_a_camera_that_is_not_there_is_named() -> None:
    with pytest.raises(CameraError, match="picamera:1: cannot be opened"), open_camera(CameraSettings("picamera:1")):
        pass


def test_without_the_library_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "picamera2", None)
    with pytest.raises(ConfigError, match="apt install python3-picamera2"), open_camera(CameraSettings("picamera")):
        pass


@pytest.mark.usefixtures("_pi")
def test_it_is_listed() -> None:
    assert ("picamera", "imx708", ()) in available()
