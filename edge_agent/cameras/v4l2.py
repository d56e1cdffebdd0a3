"""USB cameras and other devices at /dev/videoN. The JPEG frames of MJPEG cameras are kept undecoded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import cv2
import numpy as np

from ..config import CameraSettings
from ..errors import CameraError
from .frames import ArrayFrame, Frame
from .jpeg import JpegFrame

_MJPG = cv2.VideoWriter.fourcc(*"MJPG")


class V4L2Camera:
    """A camera at ``/dev/videoN``.

    Args:
        settings: ``size`` and ``fps`` to request; the camera may use the nearest values that it supports.
        number: N.

    Raises (when entered or iterated):
        CameraError: The camera does not exist, is in use, or stopped delivering frames.
    """

    def __init__(self, settings: CameraSettings, number: int) -> None:
        self._settings = settings
        self._number = number
        self._capture: cv2.VideoCapture | None = None

    def __enter__(self) -> Self:
        capture = cv2.VideoCapture(self._number, cv2.CAP_V4L2)
        if not capture.isOpened():
            raise CameraError(
                f"/dev/video{self._number}: cannot be opened; is it plugged in, and not in use elsewhere?"
            )
        # Set the format first, because cameras offer high rates at large sizes only as MJPEG.
        capture.set(cv2.CAP_PROP_FOURCC, _MJPG)
        if self._settings.size is not None:
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, self._settings.size[0])
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self._settings.size[1])
        if self._settings.fps is not None:
            capture.set(cv2.CAP_PROP_FPS, self._settings.fps)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 2)
        if int(capture.get(cv2.CAP_PROP_FOURCC)) == _MJPG:
            capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
        self._capture = capture
        return self

    def __exit__(self, *exception: object) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def __iter__(self) -> Iterator[Frame]:
        seq = 0
        while self._capture is not None:
            read, image = self._capture.read()
            if not read or image is None or not image.size:
                raise CameraError(f"/dev/video{self._number}: stopped delivering frames")
            # An undecoded frame is one row of bytes.
            if image.ndim == 3 and image.shape[2] == 3:
                yield ArrayFrame(image=np.asarray(image, np.uint8), seq=seq)
            else:
                yield JpegFrame(data=image.tobytes(), seq=seq)
            seq += 1
