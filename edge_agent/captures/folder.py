"""Frames kept for retraining, on disk: ``captures/<date>/<time>-<camera>-<seq>.jpg`` and a line of JSON beside each.

The image is written first, then its line: an image without one was not finished, and goes at the next start.
"""

from __future__ import annotations

import logging
import shutil
from collections import deque
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import msgspec

from ..atomic_files import replacing
from ..messages import VERSION, ModelId

log = logging.getLogger(__name__)

_MOST_LINE_BYTES = 256 * 1024


class Capture(msgspec.Struct, frozen=True):
    """The line beside an image.

    ``label``: what was decided; ``scores``: this frame's, by label; ``reason``: why it was kept; ``sha256``: of the
    image's file.
    """

    v: int
    device: str
    camera: str
    seq: int
    captured_at: str
    label: str
    scores: dict[str, float]
    reason: str
    model: ModelId
    width: int
    height: int
    sha256: str

    @property
    def guess(self) -> str:
        """The label with the highest score."""
        return max(self.scores, key=lambda label: self.scores[label], default="")


class _Kept(NamedTuple):
    image: Path
    size: int


class Captures:
    """The folder of captures, held under a size. For one thread.

    Args:
        folder: made when it is not there.
        max_bytes: all files together; the oldest of the most frequent kind, camera and label, go first.
        min_free_bytes: to be left on the disk whatever ``max_bytes`` allows.
    """

    def __init__(self, folder: Path, *, max_bytes: float, min_free_bytes: float) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._kinds: dict[tuple[str, str], deque[_Kept]] = {}
        self.size = 0
        """Bytes of all captures."""

    def index(self) -> None:
        """Look at what is there; somebody may have fetched captures, or died while writing one."""
        self._kinds.clear()
        self.size = 0
        self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        for line in sorted(self._folder.glob("*/*.json")):
            capture, image = read_capture(line), line.with_suffix(".jpg")
            try:
                size = image.stat().st_size + line.stat().st_size
            except FileNotFoundError:
                line.unlink(missing_ok=True)
                continue
            kind = ("", "") if capture is None else (capture.camera, capture.guess)
            self._add(kind, image, size)

    def sweep(self) -> None:
        """Remove what was not finished when the process before ended."""
        unfinished = [path for path in self._folder.glob("*/*.jpg") if not path.with_suffix(".json").exists()]
        for path in (*unfinished, *self._folder.glob("*/.*.part")):
            path.unlink(missing_ok=True)

    def keep(self, capture: Capture, jpeg: bytes, captured_ns: int) -> str | None:
        """Write one; why not when there is no room.

        Raises:
            OSError: the disk does not take it.
        """
        capture = msgspec.structs.replace(capture, v=VERSION, sha256=sha256(jpeg).hexdigest())
        line = msgspec.json.encode(capture) + b"\n"
        size = len(jpeg) + len(line)
        if self.size + size > self._max_bytes:
            self.index()
            self._make_room(size)
            if self.size + size > self._max_bytes:
                return "max_mb is smaller than an image"
        if shutil.disk_usage(self._folder).free - size < self._min_free_bytes:
            return f"less than min_free_mb ({self._min_free_bytes / 1e6:g} MB) would be free"
        image = self._place(capture, captured_ns)
        image.parent.mkdir(mode=0o750, exist_ok=True)
        with replacing(image, mode=0o640) as file:
            file.write(jpeg)
        try:
            with replacing(image.with_suffix(".json"), mode=0o640) as file:
                file.write(line)
        except OSError:
            image.unlink(missing_ok=True)
            raise
        self._add((capture.camera, capture.guess), image, size)
        return None

    def _place(self, capture: Capture, captured_ns: int) -> Path:
        moment = datetime.fromtimestamp(captured_ns // 1_000_000_000, UTC)
        stem = f"{moment:%Y%m%dT%H%M%S}{captured_ns // 1_000_000 % 1000:03d}Z-{capture.camera}-{capture.seq}"
        place = self._folder / f"{moment:%Y-%m-%d}" / f"{stem}.jpg"
        for again in range(1, 1000):
            # A clock that was set back must not write over what the same moment gave before.
            if not place.exists():
                break
            place = place.with_name(f"{stem}-{again}.jpg")
        return place

    def _add(self, kind: tuple[str, str], image: Path, size: int) -> None:
        self._kinds.setdefault(kind, deque()).append(_Kept(image, size))
        self.size += size

    def _make_room(self, size: int) -> None:
        while self.size + size > self._max_bytes and any(self._kinds.values()):
            kind = max(self._kinds, key=lambda kind: len(self._kinds[kind]))
            oldest = self._kinds[kind].popleft()
            # The line last: a line without its image is no capture, and is swept.
            oldest.image.unlink(missing_ok=True)
            oldest.image.with_suffix(".json").unlink(missing_ok=True)
            self.size -= oldest.size
            try:
                oldest.image.parent.rmdir()
            except OSError:
                continue


def read_capture(line: Path) -> Capture | None:
    """The line beside an image; None when it is damaged."""
    try:
        with open(line, "rb") as file:
            return msgspec.json.decode(file.read(_MOST_LINE_BYTES), type=Capture)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
