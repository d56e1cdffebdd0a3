"""Video files, and RTSP and other streams that FFmpeg decodes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import cv2
import numpy as np

from ..config import CameraSettings
from ..errors import CameraError
from .addresses import without_secrets
from .frames import ArrayFrame, Frame

_FORMATS = "avi,flv,h264,hevc,matroska,webm,mjpeg,mov,mp4,m4a,3gp,3g2,mj2,mpegts,rtsp,rtp,sdp"
"""Formats that FFmpeg may read, by its names. Not playlists (HLS, DASH, concat), as they can name any address: those of
other devices in the network, and files of this device."""
PLAYLISTS = (".m3u8", ".m3u", ".mpd")
_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_LONGEST_PAUSE_S = 60.0
"""A longer pause between two frames of a file is taken for a wrong time stamp."""
_FIRST_FRAME_S = 30.0
"""Time within which a stream whose server answers must deliver its first frame. FFmpeg opens no stream and decodes
nothing before the first key frame, and cameras send those up to 20 s apart."""
_LIVE_THREADS = 1
"""FFmpeg's decoder holds back one frame per additional thread: at 10 frames/s, H.264 is 0.2 s old with one thread and
0.6 s with four."""


class OpenCVCamera:
    """A `cv2.VideoCapture` as a camera.

    A video file is played at the times of its frames, like a camera. A live source delivers frames as they arrive.

    Attributes:
        first_frame_s: Seconds that opening a live source and its first frame may take together.

    Args:
        settings: Source, and whether a file restarts at its end.

    Raises (when iterated or entered):
        CameraError: The source cannot be opened, or a live source stopped delivering frames.
    """

    def __init__(self, settings: CameraSettings) -> None:
        self.settings = settings
        self.is_file = isinstance(settings.source, str) and Path(settings.source).is_file()
        self.first_frame_s = max(_FIRST_FRAME_S, settings.timeout_s)
        self._capture: cv2.VideoCapture | None = None

    def __enter__(self) -> Self:
        self._capture = self._opened()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def __iter__(self) -> Iterator[Frame]:
        capture = self._capture
        if capture is None:
            raise CameraError(f"{self.shown_source}: not open")
        seq = 0
        while True:
            clock = _FileClock(capture)
            in_this_round = 0
            while True:
                read, image = capture.read()
                if not read or image is None or not image.size:
                    break
                if self.is_file:
                    clock.wait()
                # asarray narrows the type that OpenCV declares; a colour capture is always uint8.
                yield ArrayFrame(image=np.asarray(image, np.uint8), seq=seq)
                seq, in_this_round = seq + 1, in_this_round + 1
            if not self.is_file:
                raise CameraError(f"{self.shown_source}: stopped delivering frames")
            if not in_this_round:
                raise CameraError(f"{self.shown_source}: contains no frame that can be decoded")
            if not self.settings.loop:
                return
            # Reopened, because not every container supports seeking to the start.
            capture.release()
            capture = self._capture = self._opened()

    def _opened(self) -> cv2.VideoCapture:
        source = str(self.settings.source)
        if urlsplit(source).scheme in ("https", "rtsps"):
            # FFmpeg would accept any certificate, and send the password to anyone.
            raise CameraError(
                f"{self.shown_source}: the certificate of an encrypted video stream cannot be verified; use the "
                "camera's MJPEG stream or single images with https://, or rtsp:// in a network that you trust"
            )
        if urlsplit(source).path.lower().endswith(PLAYLISTS):
            raise CameraError(
                f"{self.shown_source}: playlists (HLS, DASH) are not read, as they can name any address; use the "
                "camera's rtsp:// address"
            )
        _restrict_formats()
        try:
            if "://" in source:
                self._reach()
                capture = cv2.VideoCapture(
                    source,
                    cv2.CAP_FFMPEG,
                    [
                        *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(1000 * self.first_frame_s)),
                        # Longer than the time after which a camera counts as lost: when FFmpeg's reading times out, it
                        # returns the frames that its decoder held back, which are old.
                        *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(1000 * self.first_frame_s)),
                        *(cv2.CAP_PROP_N_THREADS, _LIVE_THREADS),
                    ],
                )
            elif os.path.exists(source):
                capture = cv2.VideoCapture(source)
            else:
                raise CameraError(f"{source}: no such video file or device; check the camera's source in agent.yaml")
        except cv2.error as error:
            raise CameraError(f"{self.shown_source}: cannot be opened: {error}") from error
        if not capture.isOpened():
            remedy = "; is it reachable, and are its path and password right?" if "://" in source else " as a video"
            raise CameraError(f"{self.shown_source}: cannot be opened{remedy}")
        return capture

    def _reach(self) -> None:
        """Wait for the server of a stream, so that one that is away is noticed sooner than a key frame may take."""
        address = urlsplit(str(self.settings.source))
        port = {"rtsp": 554, "http": 80}.get(address.scheme)
        if port is None or not address.hostname:
            return
        timeout_s = self.settings.timeout_s
        try:
            with socket.create_connection((address.hostname, address.port or port), timeout_s) as sock:
                if address.scheme == "rtsp":
                    sock.sendall(b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n")
                    sock.recv(1)
        except TimeoutError:
            raise CameraError(f"{self.shown_source}: cannot be reached: no answer within {timeout_s:g} s") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CameraError(f"{self.shown_source}: cannot be reached: {reason}") from error

    @property
    def shown_source(self) -> str:
        """The source without any password in its address, for messages and logs."""
        return without_secrets(self.settings.source)


class _FileClock:
    """Waits until the next frame of a video file is due: at its own time stamp, or evenly if it has none."""

    def __init__(self, capture: cv2.VideoCapture) -> None:
        self._capture = capture
        rate = capture.get(cv2.CAP_PROP_FPS)
        # Some files report 0 or 90,000 frames/s.
        self._interval_s = 1.0 / rate if 0.1 <= rate <= 1000 else 0.0
        self._start_s = time.monotonic()
        self._first_s: float | None = None
        self._due_s = 0.0

    def wait(self) -> None:
        """Wait for the frame that was read last."""
        stamp_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if self._first_s is None:
            self._first_s = stamp_s
        elif self._due_s < stamp_s - self._first_s <= self._due_s + _LONGEST_PAUSE_S:
            self._due_s = stamp_s - self._first_s
        else:
            self._due_s += self._interval_s
        time.sleep(max(0.0, self._start_s + self._due_s - time.monotonic()))


def _restrict_formats() -> None:
    """Let FFmpeg read only `_FORMATS`. OpenCV passes these options on, and has no other way to do so."""
    options = os.environ.get(_OPTIONS, "rtsp_transport;tcp")
    if "format_whitelist" not in options:
        os.environ[_OPTIONS] = f"{options}|format_whitelist;{_FORMATS}"
