"""Whether a camera's image has changed since it was last classified: what has not needs no inference.

The image is averaged down to a small grid of grey cells. It has changed when one cell differs from the same cell of
the last *classified* image by a threshold: so slow changes add up and are not missed, and a sensor's noise, which the
averaging takes away, wakes nobody.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from ..config import MotionSettings
from ..preprocess import Pixels
from . import Frame
from .region import WHOLE, Region, cut

GRID = (18, 32)
"""Rows and columns of cells: 40x40 pixels each at 1280x720."""
_ENOUGH = (90, 160)
"""Rows and columns wanted of an image that is decoded for this; those of a reduced JPEG are means themselves."""
_SAMPLED = (180, 320)
"""The cells' means are taken over pixels of an image thinned out to this, about 100 a cell."""
LOOKS_PER_S = 5
"""Images looked at in a second while nothing changes: a decision takes longer than a fifth of a second to change, and
most of what looking costs is decoding."""

Cells = npt.NDArray[np.float32]


class MotionGate:
    """Lets pass the frames of one camera that are worth classifying. For one thread.

    After a change every frame passes until the scores have had the time to settle.

    Args:
        settings: threshold, and the longest time without classifying.
        region: the part of the image that counts.
    """

    def __init__(self, settings: MotionSettings, *, region: Region = WHOLE) -> None:
        self._settings = settings
        self._region = region
        self._classified: Cells | None = None
        self._classified_at = self._looked_at = self._changed_at = float("-inf")

    def passes(self, frame: Frame, *, settle_s: float) -> bool:
        """Whether to classify this frame.

        Args:
            frame: the camera's newest.
            settle_s: seconds a change takes to be decided: smoothing and minimum times.

        Raises:
            ImageError: the frame cannot be decoded.
        """
        now = frame.captured_s
        settled = now - self._changed_at > settle_s
        due = now - self._classified_at >= self._settings.every_s
        if settled and not due and now - self._looked_at < 1 / LOOKS_PER_S:
            return False
        self._looked_at = now
        seen = cells(cut(frame.at_least(*_ENOUGH), self._region))
        changed = self._classified is None or difference(seen, self._classified) >= self._settings.threshold
        if changed:
            self._changed_at = now
        elif settled and not due:
            return False
        self._classified, self._classified_at = seen, now
        return True


def cells(image: Pixels) -> Cells:
    """Mean grey level of each cell of an image, (H, W, 3) uint8 BGR of any size: `GRID`, float32, 0 to 255."""
    rows, columns = image.shape[:2]
    sampled = (min(columns, _SAMPLED[1]), min(rows, _SAMPLED[0]))
    thin = cv2.resize(image, sampled, interpolation=cv2.INTER_NEAREST)
    grey = cv2.cvtColor(thin, cv2.COLOR_BGR2GRAY).astype(np.float32)
    return np.asarray(cv2.resize(grey, GRID[::-1], interpolation=cv2.INTER_AREA), np.float32)


def difference(one: Cells, other: Cells) -> float:
    """Levels by which the cells differ where they differ most."""
    return float(np.abs(one - other).max())
