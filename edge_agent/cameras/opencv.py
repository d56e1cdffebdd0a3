"""Video files, and RTSP and other streams that FFmpeg decodes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import cv2
import numpy as np

from ..config import CameraSettings
from ..errors import CameraError
from .frames import ArrayFrame, Frame


class OpenCVCamera:
    """A `cv2.VideoCapture` as a camera.

    A video file is played at its own frame rate, like a camera. A live source delivers frames as they arrive.

    Args:
        settings: Source, and whether a file restarts at its end.

    Raises (when iterated or entered):
        CameraError: The source cannot be opened, or a live source stopped delivering frames.
    """

    def __init__(self, settings: CameraSettings) -> None:
        self.settings = settings
        self.is_file = isinstance(settings.source, str) and Path(settings.source).is_file()
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
        # Some cameras report 0 or 1000 frames/s, so only the rate of a file is used.
        rate = capture.get(cv2.CAP_PROP_FPS) if self.is_file else 0.0
        interval_s = 1.0 / rate if 0.1 <= rate <= 1000 else 0.0
        start, seq, in_this_round = time.monotonic(), 0, 0
        while True:
            read, image = capture.read()
            if read and image is not None and image.size:
                if interval_s:
                    time.sleep(max(0.0, start + seq * interval_s - time.monotonic()))
                # asarray narrows the type that OpenCV declares; a colour capture is always uint8.
                yield ArrayFrame(image=np.asarray(image, np.uint8), seq=seq)
                seq, in_this_round = seq + 1, in_this_round + 1
            elif not self.is_file:
                raise CameraError(f"{self.shown_source}: stopped delivering frames")
            elif not in_this_round:
                raise CameraError(f"{self.shown_source}: contains no frame that can be decoded")
            elif not self.settings.loop:
                return
            else:
                # Reopened, because not every container supports seeking to the start.
                capture.release()
                capture = self._capture = self._opened()
                in_this_round = 0

    def _opened(self) -> cv2.VideoCapture:
        source = str(self.settings.source)
        timeout_ms = round(1000 * self.settings.timeout_s)
        try:
            if "://" in source:
                # The default timeout for a server that does not answer is half a minute.
                timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, timeout_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, timeout_ms]
                capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, timeouts)
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

    @property
    def shown_source(self) -> str:
        """The source without any password in its address, for messages and logs."""
        return without_password(self.settings.source)


def without_password(source: int | str) -> str:
    """Hide the credentials of an address: ``rtsp://user:secret@host/x`` becomes ``rtsp://***@host/x``."""
    text = str(source)
    scheme, separator, rest = text.partition("://")
    # Split at the last @, as a password may contain an unescaped one. Hiding too much of the path does no harm.
    return f"{scheme}://***@{rest.rpartition('@')[2]}" if separator and "@" in rest else text
