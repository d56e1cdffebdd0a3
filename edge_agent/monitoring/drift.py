"""Drift detection: the model's recent scores compared with those on its test images and in its first days.

The population stability index compares two score distributions: the sum over the score bins of (p - q) ln(p / q), where
p and q are the shares of the frames in a bin. By a common rule of thumb, an index above 0.25 means a different
population (Siddiqi 2006, Credit Risk Scorecards). A model may well be more confident in the field than on a difficult
test set, so a difference counts as drift only if the mean score also fell. As scores are calibrated, their mean
estimates the accuracy, provided that the frames are like the test images.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Literal

import msgspec

from .score_counts import BINS, ScoreCounts, total

MAX_INDEX = 0.25
MIN_LOSS = 0.05
"""Decrease of the mean score that counts as drift; smaller decreases occur between any two weeks."""
MIN_FRAMES = 500
FIRST_DAYS = LAST_DAYS = 3

Verdict = Literal["fits", "drifting", "too few frames"]


class Comparison(msgspec.Struct, frozen=True):
    """Comparison of two sets of frames: their population stability index and the mean score of each set, 0 to 1."""

    index: float
    before: float
    now: float

    @property
    def drifted(self) -> bool:
        """Whether the mean score fell by more than `MIN_LOSS` and the index shows a different population."""
        return self.index > MAX_INDEX and self.before - self.now > MIN_LOSS


class CameraDrift(msgspec.Struct, frozen=True):
    """Drift of one camera in the last days.

    Attributes:
        camera: Name of the camera.
        verdict: ``drifting`` if either comparison shows drift.
        frames: Number of frames classified in the last days.
        unsure: Share of these frames whose highest score is below the bundle's threshold.
        test: Comparison with the test images; None if the bundle does not contain their score counts.
        first: Comparison with the first days of this model on this device; None until enough frames
            exist from first days that are not among the last days.
        labels: Share of the frames classified as each label, the most frequent label first.
    """

    camera: str
    verdict: Verdict
    frames: int
    unsure: float
    test: Comparison | None
    first: Comparison | None
    labels: dict[str, float]


class DeviceDrift(msgspec.Struct, frozen=True):
    """Drift of all cameras of a device, and the model that classified their frames."""

    model: str
    digest: str
    cameras: tuple[CameraDrift, ...]


def index(one: ScoreCounts, other: ScoreCounts) -> float:
    """Return the population stability index. Half a frame is added to each bin, so that no bin is empty."""
    total_index = 0.0
    for count, other_count in zip(one.scores, other.scores, strict=True):
        p, q = (count + 0.5) / (one.frames + BINS / 2), (other_count + 0.5) / (other.frames + BINS / 2)
        total_index += (p - q) * log(p / q)
    return total_index


def compare(before: ScoreCounts, now: ScoreCounts) -> Comparison:
    """Compare the score counts of two sets of frames."""
    return Comparison(round(index(before, now), 3), round(before.mean_score, 3), round(now.mean_score, 3))


def judge(camera: str, days: Mapping[str, ScoreCounts], test: ScoreCounts | None, *, threshold: float) -> CameraDrift:
    """Determine whether the scores of a camera have drifted.

    Args:
        camera: Name of the camera.
        days: Score counts of the model, by day.
        test: Score counts of the test images.
        threshold: Score that a label must reach.
    """
    names = sorted(days)
    last, first = names[-LAST_DAYS:], names[:FIRST_DAYS]
    now = total(days[day] for day in last)
    to_test = compare(test, now) if test is not None and test.frames else None
    start = total(days[day] for day in first if day not in last)
    to_first = compare(start, now) if start.frames >= MIN_FRAMES else None
    verdict: Verdict = "fits"
    if now.frames < MIN_FRAMES:
        verdict = "too few frames"
    elif any(one is not None and one.drifted for one in (to_test, to_first)):
        verdict = "drifting"
    by_frequency = sorted(now.labels.items(), key=lambda pair: (-pair[1], pair[0]))
    return CameraDrift(
        camera,
        verdict,
        now.frames,
        round(now.under(threshold), 4),
        to_test,
        to_first,
        {label: round(count / max(1, now.frames), 4) for label, count in by_frequency},
    )
