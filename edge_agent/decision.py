"""Scores over time to a stable label, or `unknown`. Pure functions over values: no clock, no state of their own."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

import numpy as np
import numpy.typing as npt

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Rules:
    """When a label is decided.

    Attributes:
        enter: smoothed score, 0 to 1, a label must reach to be decided.
        leave: smoothed score, 0 to ``enter``, under which a decided label is given up.
        min_time_s: seconds a label other than the decided one must lead before it is decided.
        smoothing_s: time constant of the exponential moving average of the scores, seconds.
    """

    enter: float
    leave: float
    min_time_s: float
    smoothing_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What is decided after the latest frame.

    Attributes:
        label: index of the decided class; None is `unknown`.
        scores: (classes,) float32, the smoothed scores.
        at: monotonic time of the latest frame, seconds.
        candidate: class that may be decided next.
        candidate_since: monotonic time since when it could, seconds.
    """

    label: int | None
    scores: npt.NDArray[np.float32]
    at: float
    candidate: int | None
    candidate_since: float

    @property
    def score(self) -> float:
        """Smoothed score of the decided label; of the strongest one when unknown. 0 to 1."""
        return float(self.scores[self.label] if self.label is not None else self.scores.max())


def decide(before: Decision | None, scores: npt.NDArray[np.float32], at: float, rules: Rules) -> Decision:
    """Take in one frame's scores.

    The average weighs a frame by the time that passed since the last one (weight 1 - exp(-dt/tau)),
    so the outcome does not depend on the frame rate.

    Args:
        before: the decision after the frame before; None at the first.
        scores: (classes,) float32, softmax, 0 to 1.
        at: monotonic capture time of the frame, seconds; not before the last one's.
        rules: thresholds and times.
    """
    if before is None:
        smoothed, label, candidate, since = scores, None, None, at
    else:
        passed = max(0.0, at - before.at)
        weight = 1.0 if rules.smoothing_s <= 0 else 1.0 - exp(-passed / rules.smoothing_s)
        smoothed = (before.scores + np.float32(weight) * (scores - before.scores)).astype(np.float32)
        label, candidate, since = before.label, before.candidate, before.candidate_since

    best = int(smoothed.argmax())
    wanted: int | None = label
    if smoothed[best] >= rules.enter:
        wanted = best
    elif label is not None and smoothed[label] < rules.leave:
        wanted = None

    if wanted == label:
        candidate, since = label, at
    elif wanted != candidate or before is None:
        candidate, since = wanted, at
    if wanted != label and at - since >= rules.min_time_s:
        label, since = wanted, at
    return Decision(label, smoothed, at, candidate, since)
