"""Which frames to label next: those the model doubts, unlike anything labelled; and beside each what is alike.

A frame's value is how far it lies from everything labelled already (the training images included), times how close
the two likeliest classes are: the first alone would pick the oddest frames, the second the same doubtful scene again
and again. Frames are picked greedily, each pick lowering the value of what is like it; the head that says how sure it
is learns the labels between rounds. benchmarks/label_budget.py compares this with labelling at random.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .feature_space import Floats, Places, Space, squared_distances

GROUP = 24
"""Frames shown together at most; what is more than a screen is not looked at."""
FLOOR = 0.1
"""Added to the uncertainty: a model that is wrong for sure must be found out, too."""
REGULARISATION = 0.01
"""As in `trainer.data.label_errors`, on the same kind of rows."""


def uncertainty(scores: Floats) -> Floats:
    """(n,) 0 to 1: one less the margin between the two highest of (n, classes) scores; 1 without two classes."""
    if scores.shape[1] < 2:
        return np.ones(len(scores), np.float32)
    top = np.partition(scores, -2, axis=1)
    return np.asarray(1 - (top[:, -1] - top[:, -2]), np.float32)


def value(nearest: Floats, doubt: Floats) -> Floats:
    """(n,) what labelling a frame is worth, from (n,) squared distance to what is known and (n,) `uncertainty`."""
    return np.asarray(np.sqrt(nearest) * (doubt + FLOOR), np.float32)


def propose(
    space: Space, doubt: Floats, nearest: Floats, open_frames: npt.NDArray[np.bool_], count: int, *, most: int = GROUP
) -> list[Places]:
    """Groups of frames, the most valuable first: a frame, and the open ones that are alike, nearest first.

    Args:
        space: of all frames.
        doubt: (n,) `uncertainty` of each.
        nearest: (n,) squared distance to the nearest training image or frame that is settled.
        open_frames: (n,) which may be proposed.
        count: groups at most.
        most: frames in a group at most.
    """
    nearest, left = nearest.copy(), open_frames.copy()
    groups: list[Places] = []
    while left.any() and len(groups) < count:
        first = int(np.where(left, value(nearest, doubt), -1).argmax())
        distances = squared_distances(space.frames[first : first + 1], space.frames)[0]
        alike = np.flatnonzero(left & (distances <= space.alike))
        alike = alike[np.argsort(distances[alike], kind="stable")]
        group = np.concatenate([[first], alike[alike != first]])[:most]
        groups.append(group)
        left[group] = False
        np.minimum(nearest, distances, out=nearest)
    return groups


@dataclass(frozen=True, eq=False)
class Head:
    """A head for the frames' space. ``classes``: (c,) int, the class indices it has learned, in its scores' order."""

    classes: Places
    kernel: Floats
    bias: Floats

    def scores(self, rows: Floats, count: int) -> Floats:
        """(n, count) softmax over all ``count`` classes, 0 for those it never saw."""
        logits = rows @ self.kernel + self.bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        found = np.zeros((len(rows), count), np.float32)
        found[:, self.classes] = powers / powers.sum(axis=1, keepdims=True)
        return found


def fit_head(rows: Floats, truth: Places) -> Head | None:
    """A logistic regression in which each class weighs the same; None while there is only one class."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    if len(np.unique(truth)) < 2:
        return None
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = LogisticRegression(C=REGULARISATION, class_weight="balanced", max_iter=200).fit(rows, truth)
    kernel, bias = found.coef_.T, found.intercept_
    if kernel.shape[1] == 1:  # of two classes it keeps the second alone
        kernel, bias = np.hstack([0 * kernel, kernel]), np.concatenate([[0], bias])
    return Head(np.asarray(found.classes_, np.intp), kernel.astype(np.float32), bias.astype(np.float32))
