from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edge_agent.cameras import Frame, LatestFrames
from edge_agent.cameras.opencv import OpenCVCamera, without_password
from edge_agent.config import CameraSettings
from edge_agent.errors import CameraError


def frame(seq: int) -> Frame:
    return Frame(np.zeros((1, 1, 3), np.uint8), seq)


def test_a_video_file_gives_every_frame_once_at_its_own_speed(video_file: Path) -> None:
    with OpenCVCamera(CameraSettings(str(video_file))) as camera:
        frames = list(camera)
    assert [f.seq for f in frames] == list(range(40))
    assert frames[0].image.shape == (120, 160, 3)
    # 40 frames at 20 a second: the last comes 1.95 s after the first, on a busy machine later, never earlier.
    assert frames[-1].captured_s - frames[0].captured_s > 1.9
    assert abs(frames[-1].captured_ns - time.time_ns()) < 60e9
    assert frames[0].image.mean() > 3 * frames[-1].image.mean()  # brick is bright, stars are not


def test_a_looped_video_goes_on(video_file: Path) -> None:
    seen = []
    with OpenCVCamera(CameraSettings(str(video_file), loop=True)) as camera:
        for f in camera:
            seen.append(f)
            if len(seen) == 45:
                break
    assert [f.seq for f in seen] == list(range(45))
    assert np.array_equal(seen[40].image, seen[0].image)


def test_what_is_no_video_is_refused(tmp_path: Path, video_file: Path) -> None:
    (tmp_path / "text.avi").write_text("not a video")
    (tmp_path / "cut.avi").write_bytes(video_file.read_bytes()[:3000])
    for source in (tmp_path / "none.avi", tmp_path / "text.avi", tmp_path / "cut.avi", "/dev/video99"):
        with pytest.raises(CameraError, match=str(source)), OpenCVCamera(CameraSettings(str(source))) as camera:
            list(camera)


def test_a_camera_number_that_does_not_exist_is_refused() -> None:
    with pytest.raises(CameraError, match="cannot be opened"), OpenCVCamera(CameraSettings(63)):
        pass


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("rtsp://user:secret@host:554/live", "rtsp://***@host:554/live"),
        ("rtsp://user:p@ss/word@host/live", "rtsp://***@host/live"),
        ("rtsp://host/live", "rtsp://host/live"),
        (0, "0"),
        ("/home/me@work/video.avi", "/home/me@work/video.avi"),
    ],
)
def test_passwords_in_addresses_are_never_shown(source: int | str, shown: str) -> None:
    assert without_password(source) == shown


def test_only_the_newest_frame_is_taken_and_only_once() -> None:
    frames = LatestFrames(["a"])
    for seq in range(5):
        frames.put("a", frame(seq))
    taken = frames.take(0.01)
    assert taken is not None
    assert taken[1].seq == 4
    assert frames.take(0.01) is None
    assert frames.replaced == {"a": 4}


def test_no_camera_is_starved_by_a_faster_one() -> None:
    frames = LatestFrames(["slow", "fast", "faster"])
    order = []
    for seq in range(9):
        for camera in ("fast", "faster"):
            frames.put(camera, frame(seq))
        if seq % 3 == 0:
            frames.put("slow", frame(seq))
        taken = frames.take(0.01)
        assert taken is not None
        order.append(taken[0])
    assert order.count("slow") == 3
    assert order.count("fast") == order.count("faster") == 3


def test_taking_waits_for_a_frame_and_wakes_at_once() -> None:
    frames = LatestFrames(["a"])
    threading.Timer(0.1, lambda: frames.put("a", frame(1))).start()
    taken = frames.take(10)
    assert taken is not None
    assert taken[1].seq == 1


def test_the_last_frame_is_still_taken_after_the_camera_closed() -> None:
    frames = LatestFrames(["a", "b"])
    frames.put("a", frame(1))
    frames.close("a")
    frames.close("b")
    assert [frames.finished, frames.take(10) is not None, frames.finished] == [False, True, True]
    assert frames.take(10) is None  # and does not wait for what cannot come
