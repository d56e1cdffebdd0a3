"""Does a model still fit its scene? What it thinks of its frames, beside its test images and its own first days.

The population stability index compares how sure it is: the sum over the bins of the score of (p - q) ln(p / q), where p
and q are the shares of the frames in a bin. By an old rule of thumb over 0.25 is another population (Siddiqi 2006,
Credit Risk Scorecards). As a model may well be surer in the field than on a hard test set, only frames it is less sure
of count against it: scores are calibrated, so their mean is what it would be right about, were the frames like the test
images.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Literal

import msgspec

from .score_counts import BINS, ScoreCounts, total

MOST_INDEX = 0.25
LEAST_LOSS = 0.05
"""Of the mean score; less is what two weeks differ by."""
FEWEST_FRAMES = 500
FIRST_DAYS = LAST_DAYS = 3

Verdict = Literal["fits", "drifting", "too few frames"]


class Compared(msgspec.Struct, frozen=True):
    """Frames beside others: the index, and both mean scores, 0 to 1."""

    index: float
    before: float
    now: float

    @property
    def drifted(self) -> bool:
        """Whether it is less sure, and of another population of frames."""
        return self.index > MOST_INDEX and self.before - self.now > LEAST_LOSS


class CameraDrift(msgspec.Struct, frozen=True):
    """One camera of late.

    Attributes:
        camera: its name.
        verdict: ``drifting`` where it is less sure than it was on either.
        frames: classified in the last days.
        unsure: share of them whose best label is under the bundle's threshold.
        test: beside the bundle's test images; None where it does not say how sure the model was of them.
        first: beside the first days of this model here; None while there are no other days.
        labels: share of the frames taken for each label, the commonest first.
    """

    camera: str
    verdict: Verdict
    frames: int
    unsure: float
    test: Compared | None
    first: Compared | None
    labels: dict[str, float]


class DeviceDrift(msgspec.Struct, frozen=True):
    """All cameras of a device, and the model they are about."""

    model: str
    digest: str
    cameras: tuple[CameraDrift, ...]


def index(one: ScoreCounts, other: ScoreCounts) -> float:
    """Population stability index of the scores; half a frame is added to each bin, so that none is empty."""
    found = 0.0
    for mine, theirs in zip(one.scores, other.scores, strict=True):
        p, q = (mine + 0.5) / (one.frames + BINS / 2), (theirs + 0.5) / (other.frames + BINS / 2)
        found += (p - q) * log(p / q)
    return found


def compare(before: ScoreCounts, now: ScoreCounts) -> Compared:
    """Frames beside those before."""
    return Compared(round(index(before, now), 3), round(before.mean_score, 3), round(now.mean_score, 3))


def judge(camera: str, days: Mapping[str, ScoreCounts], test: ScoreCounts | None, *, threshold: float) -> CameraDrift:
    """What is to be thought of a camera.

    Args:
        camera: its name.
        days: what the model saw, by day.
        test: what it thought of its test images.
        threshold: score a label must reach.
    """
    names = sorted(days)
    late, early = names[-LAST_DAYS:], names[:FIRST_DAYS]
    now = total(days[day] for day in late)
    beside_test = compare(test, now) if test is not None and test.frames else None
    apart = total(days[day] for day in early if day not in late)
    beside_first = compare(apart, now) if apart.frames >= FEWEST_FRAMES else None
    verdict: Verdict = "fits"
    if now.frames < FEWEST_FRAMES:
        verdict = "too few frames"
    elif any(one is not None and one.drifted for one in (beside_test, beside_first)):
        verdict = "drifting"
    common = sorted(now.labels.items(), key=lambda pair: (-pair[1], pair[0]))
    return CameraDrift(
        camera,
        verdict,
        now.frames,
        round(now.under(threshold), 4),
        beside_test,
        beside_first,
        {label: round(count / max(1, now.frames), 4) for label, count in common},
    )
