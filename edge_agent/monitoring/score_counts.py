"""What a model thinks of the frames it sees, counted: how sure it is, and what it takes them for."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from ..atomic_files import replacing

log = logging.getLogger(__name__)

BINS = 20
"""Of the highest score, each 0.05 wide."""
KEPT_DAYS = 90
MOST_BYTES = 16 * 2**20
FILE = "seen.json"


class ScoreCounts(msgspec.Struct, frozen=True):
    """Frames by the highest score the model gave them, and by the label that got it.

    ``scores``: `BINS` counts, from 0 to 1. ``labels``: labels that nothing was taken for are left out.
    """

    scores: tuple[int, ...] = (0,) * BINS
    labels: dict[str, int] = {}

    @property
    def frames(self) -> int:
        """How many."""
        return sum(self.scores)

    @property
    def mean_score(self) -> float:
        """Mean of the highest score, to within half a bin; 0 without frames."""
        return sum((place + 0.5) / BINS * count for place, count in enumerate(self.scores)) / max(1, self.frames)

    def under(self, score: float) -> float:
        """Share of the frames whose highest score is in the bins below this one."""
        return sum(self.scores[: round(score * BINS)]) / max(1, self.frames)


def bin_of(score: float) -> int:
    """Which bin a score, 0 to 1, is counted in."""
    return min(BINS - 1, max(0, int(score * BINS)))


def total(parts: Iterable[ScoreCounts]) -> ScoreCounts:
    """All of them together."""
    scores, labels = [0] * BINS, dict[str, int]()
    for part in parts:
        scores = [one + other for one, other in zip(scores, part.scores, strict=True)]
        for label, count in part.labels.items():
            labels[label] = labels.get(label, 0) + count
    return ScoreCounts(tuple(scores), labels)


class ScoreCounter:
    """A camera's frames, counted by one thread; others may look."""

    def __init__(self) -> None:
        self._scores = [0] * BINS
        self._labels: dict[str, int] = {}

    def add(self, label: str, score: float) -> None:
        """One frame: its highest score, and the label that got it."""
        self._scores[bin_of(score)] += 1
        self._labels[label] = self._labels.get(label, 0) + 1

    def now(self) -> ScoreCounts:
        """What was counted until now."""
        return ScoreCounts(tuple(self._scores), dict(self._labels.copy()))


def since(now: ScoreCounts, before: ScoreCounts) -> ScoreCounts:
    """What came between two looks at one count."""
    labels = {label: count - before.labels.get(label, 0) for label, count in now.labels.items()}
    scores = tuple(one - other for one, other in zip(now.scores, before.scores, strict=True))
    return ScoreCounts(scores, {label: count for label, count in labels.items() if count})


class _Kept(msgspec.Struct):
    v: int = 1
    # By the bundle's digest, the day (UTC) and the camera.
    models: dict[str, dict[str, dict[str, ScoreCounts]]] = {}


class DailyScoreCounts:
    """What each model saw on each day, in a file of the agent's state. For one thread."""

    def __init__(self, state: Path) -> None:
        """Read what is there; a damaged file is begun anew."""
        self._path = state / FILE
        self._kept = _read(self._path)

    def add(self, digest: str, camera: str, seen: ScoreCounts, *, day: str | None = None) -> None:
        """Count frames in, today or on another day."""
        if not seen.frames:
            return
        day = day or f"{datetime.now(UTC):%Y-%m-%d}"
        cameras = self._kept.models.setdefault(digest, {}).setdefault(day, {})
        cameras[camera] = total([cameras.get(camera, ScoreCounts()), seen])

    def save(self) -> None:
        """Keep it; days long gone are forgotten.

        Raises:
            OSError: the disk does not take it.
        """
        last = max((day for days in self._kept.models.values() for day in days), default="")
        if last:
            first = f"{datetime.fromisoformat(last) - timedelta(days=KEPT_DAYS):%Y-%m-%d}"
            kept = {
                digest: {day: cameras for day, cameras in days.items() if day > first}
                for digest, days in self._kept.models.items()
            }
            self._kept.models = {digest: days for digest, days in kept.items() if days}
        with replacing(self._path, mode=0o640) as file:
            file.write(msgspec.json.encode(self._kept))

    def of(self, digest: str) -> dict[str, dict[str, ScoreCounts]]:
        """By camera and day, what a model saw."""
        cameras: dict[str, dict[str, ScoreCounts]] = {}
        for day, seen in sorted(self._kept.models.get(digest, {}).items()):
            for camera, one in seen.items():
                cameras.setdefault(camera, {})[day] = one
        return cameras


def _read(path: Path) -> _Kept:
    try:
        with path.open("rb") as file:
            kept = msgspec.json.decode(file.read(MOST_BYTES), type=_Kept)
    except FileNotFoundError:
        return _Kept()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("%s: %s; counting anew", path, error)
        return _Kept()
    whole = all(
        len(seen.scores) == BINS
        for days in kept.models.values()
        for cameras in days.values()
        for seen in cameras.values()
    )
    return kept if whole else _Kept()
