"""USB cameras: OpenCV and the kernel's interface are real, the driver behind it is compiled here and preloaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ...support import SUPPORT

pytestmark = pytest.mark.needs("cc")

LOOK = """
import json, sys
from itertools import islice
from edge_agent.cameras.sources import open_camera
from edge_agent.config import CameraSettings
from edge_agent.errors import CameraError
seen = []
try:
    with open_camera(CameraSettings(42, size=(1280, 720), fps=30)) as camera:
        for frame in islice(camera, 12):
            seen.append([type(frame).__name__, frame.seq, frame.size, round(float(frame.full().mean()))])
except CameraError as error:
    seen.append(str(error))
print(json.dumps(seen))
"""
BUFFERS = """
import cv2, json
from edge_agent.cameras.sources import open_camera
from edge_agent.config import CameraSettings
with open_camera(CameraSettings(42)) as camera:
    next(iter(camera))
    print(json.dumps(camera._capture.get(cv2.CAP_PROP_BUFFERSIZE)))
"""
KEEP = """
import json, threading, time
from functools import partial
from edge_agent.cameras.reconnect import ReconnectingCamera
from edge_agent.cameras.sources import open_camera
from edge_agent.config import CameraSettings
states, stopping = [], threading.Event()
kept = ReconnectingCamera(
    partial(open_camera, CameraSettings(42)), live=True, timeout_s=1.0, frozen_s=0,
    deliver=lambda frame: None, report=lambda state, reason: states.append([state, reason, time.monotonic()]),
)
threading.Thread(target=kept.run, args=(stopping,), daemon=True).start()
deadline = time.monotonic() + 120
while len(states) < 2 and time.monotonic() < deadline:
    time.sleep(0.01)
print(json.dumps(states), flush=True)
import os
os._exit(0)
"""
LIST = """
import json, sys
from pathlib import Path
from edge_agent.cameras.listing import available
print(json.dumps(available(Path(sys.argv[1]))))
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shim")
    source = SUPPORT / "camera_shim.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", folder / "shim.so", source, "-ldl"], check=True)
    for level in (20, 120, 220):
        cv2.imwrite(str(folder / f"{level}.jpg"), np.full((720, 1280, 3), level, np.uint8))
    return folder / "shim.so"


def under(shim: Path, mode: str, code: str, *arguments: str) -> Any:
    frames = ":".join(str(shim.with_name(f"{level}.jpg")) for level in (20, 120, 220))
    environment = {**os.environ, "LD_PRELOAD": str(shim), "SHIM_MODE": mode, "SHIM_FRAMES": frames}
    command = [sys.executable, "-c", code, *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(ran.stdout)


def test_mjpeg_is_taken_undecoded_and_in_order(shim: Path) -> None:
    seen = under(shim, "mjpg", LOOK)
    assert [entry[:3] for entry in seen] == [["JpegFrame", seq, [720, 1280]] for seq in range(12)]
    levels = [entry[3] for entry in seen]
    assert set(levels) == {20, 120, 220}
    assert all((a, b) in {(20, 120), (120, 220), (220, 20)} for a, b in pairwise(levels))


def test_no_more_frames_than_must_be_wait_in_the_driver(shim: Path) -> None:
    assert under(shim, "mjpg", BUFFERS) == 2  # each further one would be older by the time it is read


def test_a_camera_without_mjpeg_is_decoded(shim: Path) -> None:
    seen = under(shim, "yuyv", LOOK)
    assert [entry[:3] for entry in seen] == [["ArrayFrame", seq, [720, 1280]] for seq in range(12)]


def test_a_camera_that_is_unplugged_says_so(shim: Path) -> None:
    assert under(shim, "unplug", LOOK)[-1] == "/dev/video42: stopped delivering frames"


@pytest.mark.parametrize("mode", ["unplug", "hang"])
def test_a_camera_that_goes_is_lost_within_its_time(shim: Path, mode: str) -> None:
    (online, _, came), (lost, reason, went) = under(shim, mode, KEEP)
    assert (online, lost) == ("online", "lost")
    assert reason == {"unplug": "/dev/video42: stopped delivering frames", "hang": "no frame for 1 s"}[mode]
    assert went - came < 5


LOOK_AT_LINK = LOOK.replace("import", "import sys\nimport", 1).replace(
    "CameraSettings(42,", "CameraSettings(sys.argv[1],"
)


def test_a_link_leads_to_the_camera_and_is_waited_for(shim: Path, tmp_path: Path) -> None:
    link = tmp_path / "usb-porch-video-index0"
    path = "/dev/" + os.path.relpath(link, "/dev")  # as a name that udev made
    assert under(shim, "mjpg", LOOK_AT_LINK, path) == [
        f"{path}: cannot be opened; is it plugged in, and not in use elsewhere?"
    ]
    link.symlink_to("/dev/video42")
    assert len(under(shim, "mjpg", LOOK_AT_LINK, path)) == 12
    link.unlink()
    link.symlink_to("/dev/null")
    assert under(shim, "mjpg", LOOK_AT_LINK, path) == [f"{path}: is not a video device"]


def test_a_stable_name_is_listed_before_a_number(shim: Path, tmp_path: Path) -> None:
    (tmp_path / "video42").touch()
    for folder in ("by-path", "by-id"):
        (tmp_path / "v4l" / folder).mkdir(parents=True)
        link = tmp_path / "v4l" / folder / "usb-porch-video-index0"
        link.symlink_to("../../video42")
        assert under(shim, "mjpg", LIST, str(tmp_path))[0][:2] == [str(link), "Porch camera"]


def test_it_is_listed_with_its_formats(shim: Path, tmp_path: Path) -> None:
    for name in ("video42", "video7"):  # the second is no camera
        (tmp_path / name).touch()
    assert under(shim, "mjpg", LIST, str(tmp_path)) == [
        [42, "Porch camera", ["MJPG: 320x240, 1280x720", "YUYV: 320x240, 1280x720"]]
    ]
