"""Images for the dashboard: encoded on demand, once for all viewers, outside the event loop."""

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
from ..preprocessing import Pixels

WIDTH = 800
"""Largest width of a live image in pixels: enough for a card of the dashboard, also on high-density screens."""
MIN_AGE_S = 0.25
"""Shortest time between two encodings: at most four images per second and camera, however many viewers there are."""
_QUALITY = 80
_PNG_COMPRESSION = 1
"""The fastest level: the images are small, and the device has to encode them."""

Encode = Callable[[], bytes | None]


@dataclass(frozen=True)
class _Encoded:
    source: object
    at_s: float
    data: bytes | None


class Images:
    """Encoder of the newest images. Use it from one event loop, and call `close` at the end.

    Args:
        frame: returns the newest frame of a camera.
        prepared: returns the last model input of a camera, (height, width, 3) uint8, BGR.
    """

    def __init__(self, *, frame: Callable[[str], Frame | None], prepared: Callable[[str], Pixels | None]) -> None:
        self._frame = frame
        self._prepared = prepared
        self._encoded: dict[tuple[str, str], _Encoded] = {}
        self._pending: dict[tuple[str, str], asyncio.Future[bytes | None]] = {}
        # One thread, so that encoding uses at most one core, however many viewers and cameras there are.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="dashboard-images")

    def close(self) -> None:
        """Stop the worker thread."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def live(self, camera: str) -> bytes | None:
        """Return the newest frame of a camera as JPEG, at most `WIDTH` pixels wide; None if there is no image."""
        frame = self._frame(camera)
        return None if frame is None else await self._once(("live", camera), frame, lambda: live_jpeg(frame))

    async def model(self, camera: str) -> bytes | None:
        """Return the last model input of a camera as PNG, without loss; None before the first one."""
        levels = self._prepared(camera)
        return None if levels is None else await self._once(("model", camera), levels, lambda: _encode(".png", levels))

    async def _once(self, key: tuple[str, str], source: object, encode: Encode) -> bytes | None:
        encoded = self._encoded.get(key)
        if encoded is not None and (encoded.source is source or time.monotonic() - encoded.at_s < MIN_AGE_S):
            return encoded.data
        if key not in self._pending:
            future = asyncio.get_running_loop().run_in_executor(self._worker, encode)
            self._pending[key] = future
            started_s = time.monotonic()

            def finished(future: asyncio.Future[bytes | None]) -> None:
                del self._pending[key]
                if not future.cancelled() and future.exception() is None:
                    self._encoded[key] = _Encoded(source, started_s, future.result())

            future.add_done_callback(finished)
        # Shielded: a viewer who disconnects must not cancel the encoding for the others.
        return await asyncio.shield(self._pending[key])


def live_jpeg(frame: Frame) -> bytes | None:
    """Return a frame as JPEG, at most `WIDTH` pixels wide; None if it cannot be decoded to (H, W, 3) uint8, BGR."""
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
