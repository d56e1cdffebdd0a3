"""Which frames to label next: frames with uncertain scores that differ from everything labelled so far.

A frame's value is its distance to everything labelled already (including the training images), times the uncertainty
of its scores. Distance alone would pick outliers, and uncertainty alone would pick the same difficult scene again and
again. Frames are picked greedily: each pick lowers the value of similar frames. A head that learns the labels between
rounds provides the scores. benchmarks/label_budget.py compares this order with labelling at random.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .feature_space import Floats, Indices, Space, squared_distances

GROUP = 24
"""Maximum number of similar frames shown together; people do not check more than one screen."""
FLOOR = 0.1
"""Added to the uncertainty, so that confident mistakes of the model are also found."""
REGULARISATION = 0.01
"""Regularisation of the head, as in `trainer.data.label_errors` for the same kind of rows."""


def uncertainty(scores: Floats) -> Floats:
    """Return 1 minus the margin between the two highest scores of each row; 1 with fewer than two classes.

    Args:
        scores: (n, classes) softmax scores, 0 to 1.

    Returns:
        (n,) float32, 0 to 1.
    """
    if scores.shape[1] < 2:
        return np.ones(len(scores), np.float32)
    top = np.partition(scores, -2, axis=1)
    return np.asarray(1 - (top[:, -1] - top[:, -2]), np.float32)


def value(nearest: Floats, uncertainties: Floats) -> Floats:
    """Return the value of labelling each frame.

    Args:
        nearest: (n,) squared distance to the nearest training image or labelled frame.
        uncertainties: (n,) `uncertainty` of each frame.

    Returns:
        (n,) float32, 0 or more.
    """
    return np.asarray(np.sqrt(nearest) * (uncertainties + FLOOR), np.float32)


def propose(
    space: Space,
    uncertainties: Floats,
    nearest: Floats,
    open_frames: npt.NDArray[np.bool_],
    count: int,
    *,
    most: int = GROUP,
) -> list[Indices]:
    """Propose groups of frames to label, the most valuable first.

    Each group is a frame followed by the open frames similar to it, nearest first.

    Args:
        space: points of all frames.
        uncertainties: (n,) `uncertainty` of each frame.
        nearest: (n,) squared distance to the nearest training image or annotated frame.
        open_frames: (n,) True for frames that may be proposed.
        count: maximum number of groups.
        most: maximum number of frames in a group.
    """
    nearest, left = nearest.copy(), open_frames.copy()
    groups: list[Indices] = []
    while left.any() and len(groups) < count:
        first = int(np.where(left, value(nearest, uncertainties), -1).argmax())
        distances = squared_distances(space.frames[first : first + 1], space.frames)[0]
        similar = np.flatnonzero(left & (distances <= space.similar_distance))
        similar = similar[np.argsort(distances[similar], kind="stable")]
        group = np.concatenate([[first], similar[similar != first]])[:most]
        groups.append(group)
        left[group] = False
        np.minimum(nearest, distances, out=nearest)
    return groups


@dataclass(frozen=True, eq=False)
class Head:
    """A linear classification head on the points of the space.

    Attributes:
        classes: (c,) int, learned class indices, in the order of the columns of ``kernel``.
        kernel: (d, c) float32.
        bias: (c,) float32.
    """

    classes: Indices
    kernel: Floats
    bias: Floats

    def scores(self, rows: Floats, count: int) -> Floats:
        """Return (n, count) softmax scores of (n, d) rows, with 0 for classes that were not learned."""
        logits = rows @ self.kernel + self.bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        found = np.zeros((len(rows), count), np.float32)
        found[:, self.classes] = powers / powers.sum(axis=1, keepdims=True)
        return found


def fit_head(rows: Floats, truth: Indices) -> Head | None:
    """Fit a logistic regression with equal weight per class; return None if there is only one class."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    if len(np.unique(truth)) < 2:
        return None
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = LogisticRegression(C=REGULARISATION, class_weight="balanced", max_iter=200).fit(rows, truth)
    kernel, bias = found.coef_.T, found.intercept_
    if kernel.shape[1] == 1:  # with two classes scikit-learn stores only the second
        kernel, bias = np.hstack([0 * kernel, kernel]), np.concatenate([[0], bias])
    return Head(np.asarray(found.classes_, np.intp), kernel.astype(np.float32), bias.astype(np.float32))
