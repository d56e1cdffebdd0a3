"""Images for the page: encoded when somebody looks, once for all who do, outside the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from ..cameras import Frame
from ..errors import ImageError
from ..preprocess import Pixels

WIDTH = 800
"""Columns of a live image at most: what a card of the page shows, on screens of some density."""
MIN_AGE_S = 0.25
"""An image is not encoded again sooner, however many look: four a second and camera."""
_QUALITY = 80
_PNG_COMPRESSION = 1
"""The fastest: these images are small, and it is the device that pays."""

Encode = Callable[[], bytes | None]


@dataclass(frozen=True)
class _Encoded:
    source: object
    at_s: float
    data: bytes | None


class Images:
    """Encodes the newest images, from one event loop; `close` when done.

    Args:
        frame: a camera's newest frame.
        prepared: what the model last saw of a camera: (height, width, 3) uint8, BGR.
    """

    def __init__(self, *, frame: Callable[[str], Frame | None], prepared: Callable[[str], Pixels | None]) -> None:
        self._frame = frame
        self._prepared = prepared
        self._done: dict[tuple[str, str], _Encoded] = {}
        self._under_way: dict[tuple[str, str], asyncio.Future[bytes | None]] = {}
        # One: however many look at however many cameras, the agent loses at most one core to it.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="page-images")

    def close(self) -> None:
        """Let the worker end."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def live(self, camera: str) -> bytes | None:
        """What the camera sees, at most `WIDTH` columns, as JPEG; None where there is nothing to be shown."""
        frame = self._frame(camera)
        return None if frame is None else await self._once(("live", camera), frame, lambda: live_jpeg(frame))

    async def model(self, camera: str) -> bytes | None:
        """What the model last saw, pixel by pixel, as PNG; None before the first."""
        levels = self._prepared(camera)
        return None if levels is None else await self._once(("model", camera), levels, lambda: _encode(".png", levels))

    async def _once(self, key: tuple[str, str], source: object, encode: Encode) -> bytes | None:
        done = self._done.get(key)
        if done is not None and (done.source is source or time.monotonic() - done.at_s < MIN_AGE_S):
            return done.data
        if key not in self._under_way:
            future = asyncio.get_running_loop().run_in_executor(self._worker, encode)
            self._under_way[key] = future
            started_s = time.monotonic()

            def finished(future: asyncio.Future[bytes | None]) -> None:
                del self._under_way[key]
                if not future.cancelled() and future.exception() is None:
                    self._done[key] = _Encoded(source, started_s, future.result())

            future.add_done_callback(finished)
        # Shielded: a viewer who leaves does not take the image away from the others.
        return await asyncio.shield(self._under_way[key])


def live_jpeg(frame: Frame) -> bytes | None:
    """A frame for the page, (H, W, 3) uint8 BGR inside, at most `WIDTH` columns; None if it cannot be decoded."""
    try:
        rows, columns = frame.size
        width = min(WIDTH, columns)
        height = max(1, round(rows * width / columns))
        image = frame.at_least(height, width)
    except ImageError:
        return None
    if image.shape[:2] != (height, width):
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return _encode(".jpg", image)


def _encode(suffix: str, image: Pixels) -> bytes | None:
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY, cv2.IMWRITE_PNG_COMPRESSION, _PNG_COMPRESSION]
    done, data = cv2.imencode(suffix, image, options[:2] if suffix == ".jpg" else options[2:])
    return np.asarray(data).tobytes() if done else None
