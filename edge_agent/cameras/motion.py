"""The motion gate: skips inference while a camera's image does not change.

The image is averaged down to a small grid of grey cells. It has changed if one cell differs by a threshold from the
same cell of the last *classified* frame. Slow changes therefore add up and are not missed, while sensor noise is
averaged out and does not trigger inference.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from ..config import MotionSettings
from ..preprocessing import Pixels
from . import Frame
from .region import WHOLE, Region, crop

GRID = (18, 32)
"""Rows and columns of cells; at 1280x720, a cell has 40x40 pixels."""
_MIN_SIZE = (90, 160)
"""Minimum rows and columns of the decoded image. The pixels of a JPEG decoded at reduced size are means themselves."""
_SAMPLED = (180, 320)
"""Rows and columns to which the image is subsampled before the cells are averaged: about 100 pixels per cell."""
CHECKS_PER_S = 5
"""Frames checked per second while nothing changes. A decision takes longer than a fifth of a second to change, and
decoding is most of the cost of a check."""

Cells = npt.NDArray[np.float32]


class MotionGate:
    """Selects the frames of one camera that need to be classified. Not thread-safe.

    After a change, every frame passes until the scores have had time to settle.

    Args:
        settings: Threshold, and longest time without classification.
        region: Part of the image to compare.
    """

    def __init__(self, settings: MotionSettings, *, region: Region = WHOLE) -> None:
        self._settings = settings
        self._region = region
        self._classified: Cells | None = None
        self._classified_at = self._checked_at = self._changed_at = float("-inf")

    def passes(self, frame: Frame, *, settle_s: float) -> bool:
        """Whether to classify this frame.

        Args:
            frame: Newest frame of the camera.
            settle_s: Seconds until a change is decided, from smoothing and minimum times.

        Raises:
            ImageError: The frame cannot be decoded.
        """
        now = frame.captured_s
        settled = now - self._changed_at > settle_s
        due = now - self._classified_at >= self._settings.every_s
        if settled and not due and now - self._checked_at < 1 / CHECKS_PER_S:
            return False
        self._checked_at = now
        current = cells(crop(frame.at_least(*_MIN_SIZE), self._region))
        changed = self._classified is None or difference(current, self._classified) >= self._settings.threshold
        if changed:
            self._changed_at = now
        elif settled and not due:
            return False
        self._classified, self._classified_at = current, now
        return True


def cells(image: Pixels) -> Cells:
    """Mean grey level of each cell of an image, (H, W, 3) uint8 BGR of any size; shape `GRID`, float32, 0 to 255."""
    rows, columns = image.shape[:2]
    sampled = (min(columns, _SAMPLED[1]), min(rows, _SAMPLED[0]))
    small = cv2.resize(image, sampled, interpolation=cv2.INTER_NEAREST)
    grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY).astype(np.float32)
    return np.asarray(cv2.resize(grey, GRID[::-1], interpolation=cv2.INTER_AREA), np.float32)


def difference(one: Cells, other: Cells) -> float:
    """Largest difference between two corresponding cells, in grey levels."""
    return float(np.abs(one - other).max())
