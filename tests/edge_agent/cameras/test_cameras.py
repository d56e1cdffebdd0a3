from __future__ import annotations

import socket
import struct
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.cameras import ArrayFrame, Frame, LatestFrames
from edge_agent.cameras.addresses import without_secrets
from edge_agent.cameras.opencv import OpenCVCamera
from edge_agent.cameras.sources import is_live, open_camera
from edge_agent.config import CameraSettings
from edge_agent.errors import CameraError
from edge_agent.preprocessing import Pixels


def frame(seq: int) -> Frame:
    return ArrayFrame(image=np.zeros((1, 1, 3), np.uint8), seq=seq)


def test_a_video_file_gives_every_frame_once_at_its_own_speed(video_file: Path) -> None:
    with OpenCVCamera(CameraSettings(str(video_file))) as camera:
        frames = list(camera)
    assert [f.seq for f in frames] == list(range(40))
    assert frames[0].full().shape == (120, 160, 3)
    # 40 frames at 20 a second: the last comes 1.95 s after the first, on a busy machine later, never earlier.
    assert frames[-1].captured_s - frames[0].captured_s > 1.9
    assert abs(frames[-1].captured_ns - time.time_ns()) < 60e9
    assert frames[0].full().mean() > 3 * frames[-1].full().mean()  # brick is bright, stars are not


def with_pause(video: bytes, frames: int, pause: int) -> bytes:
    """The same MP4 video, but its last frame comes ``pause`` frames later."""

    def boxes(data: bytes) -> bytes:
        made, at = b"", 0
        while at < len(data):
            size, kind = struct.unpack_from(">I4s", data, at)
            body = data[at + 8 : at + size]
            if kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
                body = boxes(body)
            elif kind == b"edts":  # would end the video after its old duration
                kind = b"free"
            elif kind == b"stts":
                count, delta = struct.unpack_from(">II", body, 8)
                assert count == frames
                entries = (frames - 2, delta, 1, pause * delta, 1, delta)
                body = body[:4] + struct.pack(">I6I", 3, *entries)
            made += struct.pack(">I4s", 8 + len(body), kind) + body
            at += size
        return made

    assert video.index(b"mdat") < video.index(b"moov"), "the table is at the end, so that frames stay where they are"
    return boxes(video)


def test_a_video_with_a_pause_is_played_with_it(tmp_path: Path) -> None:
    path = tmp_path / "doorbell.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 20.0, (64, 48))
    for level in range(0, 200, 20):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    path.write_bytes(with_pause(path.read_bytes(), 10, 40))
    with open_camera(CameraSettings(str(path))) as camera:
        times = [frame.captured_s for frame in camera]
    assert len(times) == 10
    pauses = np.diff(times)
    assert pauses[-1] >= 1.9  # 40 frames at 20 frames/s, where an even pace would be 0.05 s
    assert times[8] - times[0] >= 0.35


@pytest.mark.parametrize("source", ["https://me:secret@127.0.0.1:9/door.mp4", "rtsps://me:secret@127.0.0.1:9/door"])
def test_video_that_cannot_be_verified_is_refused(source: str) -> None:
    with pytest.raises(CameraError, match="certificate of an encrypted video stream cannot be verified") as caught:
        open_camera(CameraSettings(source)).__enter__()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "list.mpd"])
def test_a_playlist_cannot_send_the_agent_elsewhere(name: str, video_file: Path, tmp_path: Path) -> None:
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

    (tmp_path / "inner.ts").write_bytes(video_file.read_bytes())
    handler = partial(Handler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        inner = f"http://127.0.0.1:{server.server_port}/inner.ts"
        (tmp_path / name).write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{inner}\n#EXT-X-ENDLIST\n")
        for source in (f"http://127.0.0.1:{server.server_port}/{name}", str(tmp_path / name)):
            with pytest.raises(CameraError), open_camera(CameraSettings(source)) as camera:
                next(iter(camera))
        server.shutdown()
    assert "/inner.ts" not in asked


def test_a_looped_video_goes_on(video_file: Path) -> None:
    seen = []
    with OpenCVCamera(CameraSettings(str(video_file), loop=True)) as camera:
        for f in camera:
            seen.append(f)
            if len(seen) == 45:
                break
    assert [f.seq for f in seen] == list(range(45))
    assert np.array_equal(seen[40].full(), seen[0].full())


def test_what_is_no_video_is_refused(tmp_path: Path, video_file: Path) -> None:
    (tmp_path / "text.avi").write_text("not a video")
    (tmp_path / "cut.avi").write_bytes(video_file.read_bytes()[:3000])
    for source in (tmp_path / "none.avi", tmp_path / "text.avi", tmp_path / "cut.avi", "/dev/video99"):
        with pytest.raises(CameraError, match=str(source)), OpenCVCamera(CameraSettings(str(source))) as camera:
            list(camera)


@pytest.mark.parametrize("loop", [False, True])
def test_a_video_without_a_frame_that_can_be_decoded_is_refused(
    tmp_path: Path, video_file: Path, *, loop: bool
) -> None:
    data = bytearray(video_file.read_bytes())
    frames = data.index(b"movi") + 4
    data[frames:] = bytes(len(data) - frames)
    (tmp_path / "empty.avi").write_bytes(data)
    with (
        pytest.raises(CameraError, match="contains no frame"),
        OpenCVCamera(CameraSettings(str(tmp_path / "empty.avi"), loop=loop)) as camera,
    ):
        list(camera)


def test_a_camera_number_that_does_not_exist_is_refused() -> None:
    with pytest.raises(CameraError, match="/dev/video63: cannot be opened"), open_camera(CameraSettings(63)):
        pass


def test_a_stream_that_is_silent_or_not_there_is_not_waited_for_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"rtsp://me:secret@127.0.0.1:{silent.getsockname()[1]}/live"
        start = time.monotonic()
        with pytest.raises(CameraError, match="cannot be reached: no answer within 1 s") as caught:
            open_camera(CameraSettings(address, timeout_s=1)).__enter__()
        assert time.monotonic() - start < 20  # FFmpeg's own limit is 30
        assert "secret" not in str(caught.value)


def test_a_video_is_streamed_over_http(video_file: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(video_file.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{video_file.name}"
        seen: list[Frame] = []
        with pytest.raises(CameraError, match="stopped"), open_camera(CameraSettings(address)) as camera:
            seen.extend(camera)
        server.shutdown()
    assert len(seen) == 40


@pytest.mark.parametrize(
    ("source", "kind", "live"),
    [
        (0, "V4L2Camera", True),
        ("2", "V4L2Camera", True),
        ("/dev/video11", "V4L2Camera", True),
        ("/dev/v4l/by-id/usb-046d_0825_B862FCA0-video-index0", "V4L2Camera", True),
        ("/dev/v4l/by-path/platform-usb-0:1.3:1.0-video-index0", "V4L2Camera", True),
        ("/dev/feedercam", "V4L2Camera", True),
        ("/dev/shm/frames.bin", "OpenCVCamera", False),
        ("picamera", "PiCamera", True),
        ("picamera:1", "PiCamera", True),
        ("rtsp://host/live", "OpenCVCamera", True),
        ("http://host/stream", "HttpCamera", True),
        ("https://host/stream.mjpg?x=.mp4", "HttpCamera", True),
        ("http://host/live.m3u8", "OpenCVCamera", True),
        ("http://host/live.mp4", "OpenCVCamera", True),
        ("porch.mp4", "OpenCVCamera", False),
        ("/dev/video-of-mine.mp4", "OpenCVCamera", False),
    ],
)
def test_a_source_says_what_kind_of_camera_it_is(source: int | str, kind: str, live: bool) -> None:  # noqa: FBT001
    settings = CameraSettings(source)
    assert type(open_camera(settings)).__name__ == kind
    assert is_live(settings) == live


def test_a_folder_of_images_is_shown_in_order(
    tmp_path: Path, areas: dict[str, dict[str, Pixels]], caplog: pytest.LogCaptureFixture
) -> None:
    for name, label in (("b.png", "stars"), ("a.jpg", "brick")):
        cv2.imwrite(str(tmp_path / name), areas[label]["video"])
    (tmp_path / "aa.jpg").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image either")
    settings = CameraSettings(str(tmp_path), fps=50)
    assert not is_live(settings)
    with open_camera(settings) as camera:
        shown = list(camera)
    assert [f.seq for f in shown] == [0, 1]
    assert np.array_equal(shown[1].full(), areas["stars"]["video"])
    assert shown[1].captured_s - shown[0].captured_s >= 0.015
    assert "aa.jpg" in caplog.text
    with open_camera(msgspec.structs.replace(settings, loop=True)) as camera:
        assert [f.seq for f in islice(camera, 5)] == [0, 1, 2, 3, 4]


def test_images_come_in_the_order_of_their_names_not_of_the_disk(tmp_path: Path) -> None:
    for number in (5, 1, 7, 3, 0, 6, 2, 4):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((16, 16, 3), 10 * number, np.uint8))
    with open_camera(CameraSettings(str(tmp_path), fps=1000)) as camera:
        assert [f.full()[0, 0, 0] for f in camera] == [0, 10, 20, 30, 40, 50, 60, 70]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "aa.jpg").write_bytes(b"no image")
    with pytest.raises(CameraError, match="no readable image"), open_camera(CameraSettings(str(tmp_path))) as camera:
        list(camera)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("rtsp://user:secret@host:554/live", "rtsp://***@host:554/live"),
        ("rtsp://user:p@ss/word@host/live", "rtsp://***@host/live"),
        ("rtsp://host/live", "rtsp://host/live"),
        (0, "0"),
        ("/home/me@work/video.avi", "/home/me@work/video.avi"),
        ("http://host/video.cgi?user=admin&pwd=secret", "http://host/video.cgi?***"),
        ("http://me:secret@host/video.cgi?pwd=secret#x", "http://***@host/video.cgi?***"),
        ("http://host/video.cgi?mail=me@work&pwd=secret", "http://***@work?***"),
        ("http://me:s?cret@host/video.cgi", "http://***@host/video.cgi"),
        ("rtsp://host/user=me&password=secret&channel=1", "rtsp://host/user=me&password=***&channel=1"),
        (
            "rtsp://host/user=me_password=secret_channel=1.sdp?real",
            "rtsp://host/user=me_password=***_channel=1.sdp?***",
        ),
    ],
)
def test_passwords_in_addresses_are_never_shown(source: int | str, shown: str) -> None:
    assert without_secrets(source) == shown


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
    start = time.monotonic()
    threading.Timer(0.1, lambda: frames.put("a", frame(1))).start()
    taken = frames.take(60)
    assert taken is not None
    assert taken[1].seq == 1
    threading.Timer(0.1, lambda: frames.close("a")).start()
    assert frames.take(60) is None
    assert time.monotonic() - start < 30


def test_the_last_frame_is_still_taken_after_the_camera_closed() -> None:
    frames = LatestFrames(["a", "b"])
    frames.put("a", frame(1))
    frames.close("a")
    frames.close("b")
    assert [frames.finished, frames.take(10) is not None, frames.finished] == [False, True, True]
    assert frames.take(10) is None  # and does not wait for what cannot come


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_none_waits_for_more_than_two_rounds(steps: list[tuple[str, bool]]) -> None:
    frames = LatestFrames("abc")
    waiting: dict[str, int] = {}
    passed_over = dict.fromkeys("abc", 0)
    put, replaced = 0, dict.fromkeys("abc", 0)
    for camera, take in steps:
        if not take:
            replaced[camera] += camera in waiting
            frames.put(camera, ArrayFrame(image=np.zeros((1, 1, 3), np.uint8), seq=put, captured_s=float(put)))
            waiting[camera] = put
            put += 1
            continue
        taken = frames.take(0)
        assert (taken is None) == (not waiting)
        if taken is None:
            continue
        name, newest = taken
        assert waiting.pop(name) == newest.seq
        passed_over[name] = 0
        for other in waiting:
            passed_over[other] += 1
            assert passed_over[other] <= 4  # the rest of this round and the next, of three cameras
    assert frames.replaced == replaced


def test_of_several_that_wait_the_freshest_is_first() -> None:
    frames = LatestFrames("abc")
    for seq, camera in enumerate("bca"):
        frames.put(camera, ArrayFrame(image=np.zeros((1, 1, 3), np.uint8), seq=seq, captured_s=float(seq)))
    assert [taken[0] for taken in (frames.take(0), frames.take(0), frames.take(0)) if taken] == ["a", "c", "b"]
