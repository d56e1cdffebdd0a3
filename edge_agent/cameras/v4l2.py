"""USB cameras and other video devices. The JPEG frames of MJPEG cameras are kept undecoded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Self

import cv2
import numpy as np

from ..config import CameraSettings
from ..errors import CameraError
from .frames import ArrayFrame, Frame
from .jpeg import JpegFrame

_VIDEO = re.compile(r"/dev/video(\d{1,3})\Z")
_MJPG = cv2.VideoWriter.fourcc(*"MJPG")


class V4L2Camera:
    """A camera at ``/dev/videoN``, or at a link to it, such as those in ``/dev/v4l/by-id``.

    Args:
        settings: ``size`` and ``fps`` to request; the camera may use the nearest values that it supports.
        path: Path of the device or of the link.

    Raises (when entered or iterated):
        CameraError: The camera does not exist, is in use, or stopped delivering frames.
    """

    def __init__(self, settings: CameraSettings, path: str) -> None:
        self._settings = settings
        self._path = path
        self._capture: cv2.VideoCapture | None = None

    def __enter__(self) -> Self:
        # Resolved each time: the number behind a link changes when cameras are plugged in in another order.
        device = _VIDEO.match(os.path.realpath(self._path))
        if device is None and os.path.exists(self._path):
            raise CameraError(f"{self._path}: is not a video device")
        capture = None if device is None else cv2.VideoCapture(int(device[1]), cv2.CAP_V4L2)
        if capture is None or not capture.isOpened():
            raise CameraError(f"{self._path}: cannot be opened; is it plugged in, and not in use elsewhere?")
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
                raise CameraError(f"{self._path}: stopped delivering frames")
            # An undecoded frame is one row of bytes.
            if image.ndim == 3 and image.shape[2] == 3:
                yield ArrayFrame(image=np.asarray(image, np.uint8), seq=seq)
            else:
                yield JpegFrame(data=image.tobytes(), seq=seq)
            seq += 1
