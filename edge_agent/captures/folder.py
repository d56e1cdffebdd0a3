"""The folder of captures: ``captures/<date>/<time>-<camera>-<seq>.jpg``, each with a JSON file of the same name.

The image is written before the JSON file. An image without a JSON file is therefore incomplete, and is deleted at the
next start.
"""

from __future__ import annotations

import logging
import shutil
from collections import deque
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from ..atomic_files import replacing
from ..messages import VERSION, ModelId

log = logging.getLogger(__name__)

_MAX_JSON_BYTES = 256 * 1024


class Capture(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON file of a capture.

    ``label``: the decided label. ``scores``: scores of this frame, by label. ``reason``: why the frame was kept.
    ``sha256``: checksum of the image file. ``clock``: ``unset`` if nothing had set the device's clock, so that
    ``captured_at`` may be wrong; otherwise omitted. ``number``: how many captures the device had kept with this one; it
    gives their order, which ``captured_at`` does not if the clock was wrong.
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
    clock: Literal["unset"] | None = None
    number: int = 0

    @property
    def guess(self) -> str:
        """Label with the highest score."""
        return max(self.scores, key=lambda label: self.scores[label], default="")


class _Kept(NamedTuple):
    image: Path
    size: int


class Captures:
    """The folder of captures, with a size limit. Not thread-safe.

    Args:
        folder: Folder of the captures; created if it does not exist.
        max_bytes: Maximum size of all files. When it is reached, captures are deleted: each time the oldest one of the
            most frequent kind (combination of camera and label).
        min_free_bytes: Bytes to leave free on the disk, even if ``max_bytes`` is not reached.
    """

    def __init__(self, folder: Path, *, max_bytes: float, min_free_bytes: float) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._kinds: dict[tuple[str, str], deque[_Kept]] = {}
        self.size = 0
        """Size of all captures in bytes."""
        self._last = 0

    def index(self) -> None:
        """Read the folder again, because captures may have been fetched, or a write may have been interrupted."""
        self._kinds.clear()
        self.size = 0
        self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        read = [(read_capture(file), file) for file in sorted(self._folder.glob("*/*.json"))]
        # Those of earlier versions have no number; they are the oldest, in the order of their names.
        for capture, file in sorted(read, key=lambda one: 0 if one[0] is None else one[0].number):
            image = file.with_suffix(".jpg")
            self._last = max(self._last, 0 if capture is None else capture.number)
            try:
                size = image.stat().st_size + file.stat().st_size
            except FileNotFoundError:
                file.unlink(missing_ok=True)
                continue
            kind = ("", "") if capture is None else (capture.camera, capture.guess)
            self._add(kind, image, size)

    def sweep(self) -> None:
        """Delete files that the previous process did not finish writing."""
        unfinished = [path for path in self._folder.glob("*/*.jpg") if not path.with_suffix(".json").exists()]
        for path in (*unfinished, *self._folder.glob("*/.*.part")):
            path.unlink(missing_ok=True)

    def keep(self, capture: Capture, jpeg: bytes, captured_ns: int) -> str | None:
        """Write a capture. Return None on success, or the reason if there is not enough space.

        Raises:
            OSError: The capture cannot be written.
        """
        capture = msgspec.structs.replace(capture, v=VERSION, sha256=sha256(jpeg).hexdigest(), number=self._last + 1)
        document = msgspec.json.encode(capture) + b"\n"
        size = len(jpeg) + len(document)
        if self.size + size > self._max_bytes:
            self.index()
            self._make_room(size)
            if self.size + size > self._max_bytes:
                return "record.max_mb is smaller than one image; increase it in agent.yaml"
        if shutil.disk_usage(self._folder).free - size < self._min_free_bytes:
            return f"less than record.min_free_mb ({self._min_free_bytes / 1e6:g} MB) would stay free on the disk"
        image = self._path_of(capture, captured_ns)
        image.parent.mkdir(mode=0o750, exist_ok=True)
        with replacing(image, mode=0o640) as file:
            file.write(jpeg)
        try:
            with replacing(image.with_suffix(".json"), mode=0o640) as file:
                file.write(document)
        except OSError:
            image.unlink(missing_ok=True)
            raise
        self._add((capture.camera, capture.guess), image, size)
        self._last += 1
        return None

    def _path_of(self, capture: Capture, captured_ns: int) -> Path:
        moment = datetime.fromtimestamp(captured_ns // 1_000_000_000, UTC)
        stem = f"{moment:%Y%m%dT%H%M%S}{captured_ns // 1_000_000 % 1000:03d}Z-{capture.camera}-{capture.seq}"
        path = self._folder / f"{moment:%Y-%m-%d}" / f"{stem}.jpg"
        for number in range(1, 1000):
            # If the clock was set back, the name may exist already, and must not be overwritten.
            if not path.exists():
                break
            path = path.with_name(f"{stem}-{number}.jpg")
        return path

    def _add(self, kind: tuple[str, str], image: Path, size: int) -> None:
        self._kinds.setdefault(kind, deque()).append(_Kept(image, size))
        self.size += size

    def _make_room(self, size: int) -> None:
        while self.size + size > self._max_bytes and any(self._kinds.values()):
            kind = max(self._kinds, key=lambda kind: len(self._kinds[kind]))
            oldest = self._kinds[kind].popleft()
            # The JSON file is deleted last; one without its image is not a capture, and is deleted by `index`.
            oldest.image.unlink(missing_ok=True)
            oldest.image.with_suffix(".json").unlink(missing_ok=True)
            self.size -= oldest.size
            try:
                oldest.image.parent.rmdir()
            except OSError:
                continue


def read_capture(path: Path) -> Capture | None:
    """Read the JSON file of a capture; None if it is damaged."""
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(_MAX_JSON_BYTES), type=Capture)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
