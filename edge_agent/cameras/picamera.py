"""Raspberry Pi camera modules, through libcamera and Picamera2 of the operating system."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import cv2
import numpy as np
import numpy.typing as npt

from ..config import CameraSettings
from ..errors import CameraError, ConfigError
from ..preprocessing import Pixels
from .frames import Frame

_SIZE = (1280, 720)
_SMALL_WIDTH = 640
"""Width in pixels of the second stream, which the Pi's image processor scales at no cost. It is large enough for most
models."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PiFrame(Frame):
    """A frame in two sizes.

    Attributes:
        image: Full image, (H, W, 3) uint8, BGR.
        small: The same image scaled down, (h * 3 / 2, stride) uint8, planar YUV 4:2:0, with padding on the right.
        small_width: Number of columns of ``small`` without the padding.
    """

    image: Pixels
    small: npt.NDArray[np.uint8]
    small_width: int

    def full(self) -> Pixels:
        """See `Frame`."""
        return self.image

    def at_least(self, height: int, width: int) -> Pixels:
        """See `Frame`."""
        if self.small.shape[0] * 2 // 3 < height or self.small_width < width:
            return self.image
        bgr = cv2.cvtColor(self.small, cv2.COLOR_YUV2BGR_I420)
        return np.asarray(bgr, np.uint8)[:, : self.small_width]


class PiCamera:
    """A camera that Picamera2 supports.

    Args:
        settings: ``size`` (default 1280x720) and ``fps``.
        number: Number of the camera, from 0.

    Raises (when entered or iterated):
        ConfigError: Picamera2 is not installed.
        CameraError: The camera does not exist, is in use, or failed.
    """

    def __init__(self, settings: CameraSettings, number: int) -> None:
        self._size = settings.size or _SIZE
        self._fps = settings.fps
        self._number = number
        self._camera: Any = None

    def __enter__(self) -> Self:
        picamera2 = _library()
        try:
            camera = picamera2.Picamera2(self._number)
        except (RuntimeError, IndexError) as error:
            raise CameraError(
                f"picamera:{self._number}: cannot be opened: {error}; is it connected, and not in use elsewhere?"
            ) from error
        self._camera = camera
        try:
            width = min(_SMALL_WIDTH, self._size[0]) // 2 * 2
            height = self._size[1] * width // self._size[0] // 2 * 2
            camera.configure(
                camera.create_video_configuration(
                    # What libcamera calls RGB888 is BGR in memory.
                    main={"format": "RGB888", "size": self._size},
                    lores={"format": "YUV420", "size": (width, height)},
                    controls={} if self._fps is None else {"FrameRate": self._fps},
                )
            )
            camera.start()
        except (RuntimeError, ValueError) as error:
            self.__exit__()
            raise CameraError(f"picamera:{self._number}: does not start: {error}") from error
        return self

    def __exit__(self, *exception: object) -> None:
        if self._camera is not None:
            self._camera.stop()
            self._camera.close()
            self._camera = None

    def __iter__(self) -> Iterator[Frame]:
        seq = 0
        while self._camera is not None:
            try:
                request = self._camera.capture_request()
            except RuntimeError as error:
                raise CameraError(f"picamera:{self._number}: failed: {error}") from error
            # Copy the images and release the buffers at once: the camera stalls if its few buffers are in use.
            try:
                image, small = request.make_array("main"), request.make_array("lores")
            finally:
                request.release()
            yield PiFrame(
                image=image,
                small=small,
                small_width=self._camera.camera_configuration()["lores"]["size"][0],
                seq=seq,
            )
            seq += 1


def _library() -> Any:
    try:
        import picamera2  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ConfigError(
            "picamera: Picamera2 is not installed; install it with: sudo apt install python3-picamera2, in an "
            "environment made with --system-site-packages"
        ) from error
    return picamera2


def names() -> list[str]:
    """Models of the connected cameras, in the order of their numbers; empty without Picamera2."""
    try:
        return [str(camera.get("Model", "camera")) for camera in _library().Picamera2.global_camera_info()]
    except ConfigError:
        return []
