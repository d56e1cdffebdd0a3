"""Score counts: how many frames got which highest score and which label, per camera and day."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from ..atomic_files import replacing
from ..clock import is_clock_set

log = logging.getLogger(__name__)

BINS = 20
"""Number of equal bins for the highest score of a frame, 0 to 1; each bin is 0.05 wide."""
KEPT_DAYS = 90
MAX_BYTES = 16 * 2**20
FILE = "seen.json"


class ScoreCounts(msgspec.Struct, frozen=True):
    """Numbers of frames by their highest score, and by the label with this score.

    ``scores``: one count for each of `BINS` equal bins of the highest score, from 0 to 1. ``labels``: one count for
    each label; labels without frames are left out.
    """

    scores: tuple[int, ...] = (0,) * BINS
    labels: dict[str, int] = {}

    @property
    def frames(self) -> int:
        """Number of frames."""
        return sum(self.scores)

    @property
    def mean_score(self) -> float:
        """Mean of the highest scores, accurate to half a bin; 0 without frames."""
        return sum((place + 0.5) / BINS * count for place, count in enumerate(self.scores)) / max(1, self.frames)

    def under(self, score: float) -> float:
        """Return the share of the frames whose highest score is in a bin below ``score``."""
        return sum(self.scores[: round(score * BINS)]) / max(1, self.frames)


def bin_of(score: float) -> int:
    """Return the index of the bin that contains a score, 0 to 1."""
    return min(BINS - 1, max(0, int(score * BINS)))


def total(parts: Iterable[ScoreCounts]) -> ScoreCounts:
    """Return the sum of several score counts."""
    scores, labels = [0] * BINS, dict[str, int]()
    for part in parts:
        scores = [one + other for one, other in zip(scores, part.scores, strict=True)]
        for label, count in part.labels.items():
            labels[label] = labels.get(label, 0) + count
    return ScoreCounts(tuple(scores), labels)


class ScoreCounter:
    """Counts the frames of a camera. One thread may add; any thread may read."""

    def __init__(self) -> None:
        self._scores = [0] * BINS
        self._labels: dict[str, int] = {}

    def add(self, label: str, score: float) -> None:
        """Count one frame by its highest score and the label with that score."""
        self._scores[bin_of(score)] += 1
        self._labels[label] = self._labels.get(label, 0) + 1

    def now(self) -> ScoreCounts:
        """Return the counts so far."""
        return ScoreCounts(tuple(self._scores), dict(self._labels.copy()))


def since(now: ScoreCounts, before: ScoreCounts) -> ScoreCounts:
    """Return the frames counted between two states of the same counter."""
    labels = {label: count - before.labels.get(label, 0) for label, count in now.labels.items()}
    scores = tuple(one - other for one, other in zip(now.scores, before.scores, strict=True))
    return ScoreCounts(scores, {label: count for label, count in labels.items() if count})


class _Kept(msgspec.Struct):
    v: int = 1
    # By digest of the bundle, day (UTC) and camera.
    models: dict[str, dict[str, dict[str, ScoreCounts]]] = {}


class DailyScoreCounts:
    """Score counts of each model on each day, kept in a file in the state directory. Not thread-safe."""

    def __init__(self, state: Path) -> None:
        """Read the file, if there is one; a damaged file is replaced."""
        self._path = state / FILE
        self._kept = _read(self._path)

    def add(self, digest: str, camera: str, counts: ScoreCounts, *, day: str | None = None) -> None:
        """Add counts to those of a day; today (UTC) by default.

        While nothing has set the clock, today is the newest day with counts: a date that is years off would move the
        counts away from those of the last days.
        """
        if not counts.frames:
            return
        day = day or self._today()
        cameras = self._kept.models.setdefault(digest, {}).setdefault(day, {})
        cameras[camera] = total([cameras.get(camera, ScoreCounts()), counts])

    def save(self) -> None:
        """Write the file, with the newest `KEPT_DAYS` days that have counts.

        Raises:
            OSError: The file cannot be written.
        """
        # Counted, not compared with today: a clock that is years ahead for once would make all days look old.
        newest = set(sorted(self._days())[-KEPT_DAYS:])
        kept = {
            digest: {day: cameras for day, cameras in days.items() if day in newest}
            for digest, days in self._kept.models.items()
        }
        self._kept.models = {digest: days for digest, days in kept.items() if days}
        with replacing(self._path, mode=0o640) as file:
            file.write(msgspec.json.encode(self._kept))

    def _days(self) -> set[str]:
        return {day for days in self._kept.models.values() for day in days}

    def _today(self) -> str:
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        return today if is_clock_set() else max(self._days(), default=today)

    def of(self, digest: str) -> dict[str, dict[str, ScoreCounts]]:
        """Return the score counts of a model, by camera and day."""
        cameras: dict[str, dict[str, ScoreCounts]] = {}
        for day, by_camera in sorted(self._kept.models.get(digest, {}).items()):
            for camera, counts in by_camera.items():
                cameras.setdefault(camera, {})[day] = counts
        return cameras


def _read(path: Path) -> _Kept:
    try:
        with path.open("rb") as file:
            kept = msgspec.json.decode(file.read(MAX_BYTES), type=_Kept)
    except FileNotFoundError:
        return _Kept()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("%s: cannot be read: %s; starting with empty score counts", path, error)
        return _Kept()
    valid = all(
        len(counts.scores) == BINS
        for days in kept.models.values()
        for cameras in days.values()
        for counts in cameras.values()
    )
    return kept if valid else _Kept()
