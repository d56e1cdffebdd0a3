"""Scores over time to a stable label, or `unknown`. Pure functions over values: no clock, no state of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class ClassRule:
    """When one label is decided: see `Rules`, whose attributes these replace."""

    enter: float
    leave: float
    min_time_s: float


@dataclass(frozen=True, slots=True)
class Rules:
    """When a label is decided.

    Attributes:
        enter: smoothed score, 0 to 1, a label must reach to be decided.
        leave: smoothed score, 0 to ``enter``, under which a decided label is given up.
        min_time_s: seconds a label other than the decided one must lead before it is decided.
        smoothing_s: time constant of the exponential moving average of the scores, seconds.
        classes: what holds instead for the classes of these indices.
    """

    enter: float
    leave: float
    min_time_s: float
    smoothing_s: float
    classes: Mapping[int, ClassRule] = field(default_factory=dict)

    def of(self, label: int | None) -> ClassRule:
        """What holds for a class; for `unknown` (None), what holds for all."""
        common = ClassRule(self.enter, self.leave, self.min_time_s)
        return common if label is None else self.classes.get(label, common)


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

    wanted = _entering(smoothed, rules)
    if wanted is None and label is not None and smoothed[label] >= rules.of(label).leave:
        wanted = label

    if wanted == label:
        candidate, since = label, at
    elif wanted != candidate or before is None:
        candidate, since = wanted, at
    if wanted != label and at - since >= rules.of(wanted).min_time_s:
        label, since = wanted, at
    return Decision(label, smoothed, at, candidate, since)


def carried_over(before: Decision, labels: Sequence[str], to: Sequence[str]) -> Decision:
    """The same decision for a model of other labels, by their names, so that a new model goes on where the old one was.

    Args:
        before: decided by the old model.
        labels: the old model's, in the order of its outputs.
        to: the new model's. Labels it lacks are forgotten; those the old one lacked begin at 0.
    """
    places = {label: index for index, label in enumerate(to)}
    moved = [places.get(label) for label in labels]
    scores = np.zeros(len(to), np.float32)
    for index, place in enumerate(moved):
        if place is not None:
            scores[place] = before.scores[index]
    label = None if before.label is None else moved[before.label]
    candidate = None if before.candidate is None else moved[before.candidate]
    return Decision(label, scores, before.at, candidate, before.candidate_since)


def _entering(scores: npt.NDArray[np.float32], rules: Rules) -> int | None:
    """The class with the highest score of those that reach their own threshold."""
    best = int(scores.argmax())
    if scores[best] >= rules.of(best).enter:
        return best
    if not rules.classes:
        return None
    for index in np.argsort(-scores, kind="stable"):
        if scores[index] >= rules.of(int(index)).enter:
            return int(index)
    return None
