"""Decision: turn scores over time into a stable label or `unknown`. Pure functions without a clock or stored state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class ClassRule:
    """Rule for one label; overrides the attributes of the same name in `Rules`."""

    enter: float
    leave: float
    min_time_s: float


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules for deciding a label.

    Attributes:
        enter: smoothed score, 0 to 1, that a label must reach to be decided.
        leave: smoothed score, 0 to ``enter``, below which a decided label is dropped.
        min_time_s: seconds for which another label must lead before it is decided.
        smoothing_s: time constant of the exponential moving average of the scores, seconds.
        classes: rules for single classes, by class index.
    """

    enter: float
    leave: float
    min_time_s: float
    smoothing_s: float
    classes: Mapping[int, ClassRule] = field(default_factory=dict)

    def of(self, label: int | None) -> ClassRule:
        """Return the rule of a class; for `unknown` (None), the common rule."""
        common = ClassRule(self.enter, self.leave, self.min_time_s)
        return common if label is None else self.classes.get(label, common)


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """Decision after the latest frame.

    Attributes:
        label: index of the decided class; None means `unknown`.
        scores: (classes,) float32, smoothed scores.
        at: monotonic time of the latest frame, seconds.
        candidate: class that may be decided next; None means `unknown`.
        candidate_since: monotonic time at which this class became the candidate, seconds.
    """

    label: int | None
    scores: npt.NDArray[np.float32]
    at: float
    candidate: int | None
    candidate_since: float

    @property
    def score(self) -> float:
        """Smoothed score of the decided label, or the highest smoothed score if the label is unknown. 0 to 1."""
        return float(self.scores[self.label] if self.label is not None else self.scores.max())


def decide(before: Decision | None, scores: npt.NDArray[np.float32], at: float, rules: Rules) -> Decision:
    """Update the decision with the scores of one frame.

    In the moving average, the weight of a frame depends on the time dt since the previous frame, 1 - exp(-dt/tau), so
    the result does not depend on the frame rate.

    Args:
        before: decision after the previous frame; None for the first frame.
        scores: (classes,) float32, softmax, 0 to 1.
        at: monotonic capture time of the frame, seconds; not earlier than that of the previous frame.
        rules: thresholds and times.
    """
    if before is None:
        smoothed, label, candidate, since = scores, None, None, at
    else:
        passed = max(0.0, at - before.at)
        weight = 1.0 if rules.smoothing_s <= 0 else 1.0 - exp(-passed / rules.smoothing_s)
        smoothed = (before.scores + np.float32(weight) * (scores - before.scores)).astype(np.float32)
        label, candidate, since = before.label, before.candidate, before.candidate_since

    leading = _entering(smoothed, rules)
    if leading is None and label is not None and smoothed[label] >= rules.of(label).leave:
        leading = label

    if leading == label:
        candidate, since = label, at
    elif leading != candidate or before is None:
        candidate, since = leading, at
    if leading != label and at - since >= rules.of(leading).min_time_s:
        label, since = leading, at
    return Decision(label, smoothed, at, candidate, since)


def carried_over(before: Decision, labels: Sequence[str], to: Sequence[str]) -> Decision:
    """Convert a decision to the labels of a new model, so that the new model continues where the old one stopped.

    Args:
        before: decision of the old model.
        labels: labels of the old model, in the order of its outputs.
        to: labels of the new model. Labels that it does not have are dropped; labels that are new start at score 0.
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
    """Return the class with the highest score among those that reach their own threshold; None if there is none."""
    best = int(scores.argmax())
    if scores[best] >= rules.of(best).enter:
        return best
    if not rules.classes:
        return None
    for index in np.argsort(-scores, kind="stable"):
        if scores[index] >= rules.of(int(index)).enter:
            return int(index)
    return None
