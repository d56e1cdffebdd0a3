"""Which frames to label next: those the model doubts, unlike anything labelled; and beside each what is alike.

A frame's value is how far it lies from everything labelled already (the training pictures included), times how close
the two likeliest classes are: the first alone would pick the oddest frames, the second the same doubtful scene again
and again. Frames are picked greedily, each pick lowering the value of what is like it; the head that says how sure it
is learns the labels between rounds. Distances are in the first principal components of the network's features, the
features standardised. benchmarks/label_budget.py compares this with labelling at random.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

COMPONENTS = 128
MOST_KNOWN = 5000
"""Training pictures distances are measured to and heads learn from: a random sample of more."""
MOST_FITTED = 8000
"""Rows the components are found on."""
GROUP = 24
"""Frames shown together at most; what is more than a screen is not looked at."""
NEIGHBOUR = 3
"""Frames nearer to each other than the median frame is to its third nearest are alike: of 2,000 frames in bursts of 5
to 24 of 30 objects, 99 in 100 such pairs showed the same class (three other draws: 98 to 100)."""
FLOOR = 0.1
"""Added to the uncertainty: a model that is wrong for sure must be found out, too."""
REGULARISATION = 0.01
"""As in `trainer.data.labels`, on the same kind of rows."""

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Space:
    """Frames and known pictures where near means alike.

    Attributes:
        frames: (n, COMPONENTS) float32, fewer columns where there are fewer rows or features.
        known: (m, same) of the training pictures.
        alike: squared distance under which two frames are alike.
        place: (k, f) features of other pictures to their rows.
    """

    frames: Floats
    known: Floats
    alike: float
    place: Callable[[Floats], Floats]


def space_of(features: Floats, known: Floats, *, seed: int = 0) -> Space:
    """The space of (n, f) features of frames and (m, f) of training pictures; m may be 0."""
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it has no types

    random = np.random.default_rng(seed)
    rows = np.concatenate([features, known])
    sample = rows if len(rows) <= MOST_FITTED else rows[random.choice(len(rows), MOST_FITTED, replace=False)]
    mean, scale = sample.mean(axis=0), sample.std(axis=0) + 1e-6
    with threadpool_limits(1):
        components = PCA(min(COMPONENTS, *sample.shape), svd_solver="randomized", random_state=seed)
        components.fit((sample - mean) / scale)

    def place(some: Floats) -> Floats:
        if not len(some):
            return np.zeros((0, components.n_components_), np.float32)
        with threadpool_limits(1):
            return np.asarray(components.transform((some - mean) / scale), np.float32)

    frames = place(features)
    asked = frames if len(frames) <= 1000 else frames[random.choice(len(frames), 1000, replace=False)]
    nearest = np.partition(squared_distances(asked, frames), min(NEIGHBOUR, len(frames) - 1), axis=1)
    alike = float(np.median(nearest[:, min(NEIGHBOUR, len(frames) - 1)]))
    return Space(frames, place(known), alike, place)


def squared_distances(some: Floats, others: Floats) -> Floats:
    """(k, m) float32 between (k, d) and (m, d)."""
    found: Floats = (some**2).sum(1)[:, None] + (others**2).sum(1) - 2 * some @ others.T
    return np.maximum(found, 0)


def nearest_known(space: Space) -> Floats:
    """(n,) squared distance of each frame to the nearest training picture; to the frames' mean where there is none."""
    if not len(space.known):
        return squared_distances(space.frames, space.frames.mean(axis=0, keepdims=True))[:, 0]
    nearest = np.full(len(space.frames), np.inf, np.float32)
    for start in range(0, len(space.known), 512):
        chunk = space.known[start : start + 512]
        np.minimum(nearest, squared_distances(space.frames, chunk).min(axis=1), out=nearest)
    return nearest


def uncertainty(scores: Floats) -> Floats:
    """(n,) 0 to 1: one less the margin between the two highest of (n, classes) scores; 1 without two classes."""
    if scores.shape[1] < 2:
        return np.ones(len(scores), np.float32)
    top = np.partition(scores, -2, axis=1)
    return np.asarray(1 - (top[:, -1] - top[:, -2]), np.float32)


def propose(
    space: Space, doubt: Floats, nearest: Floats, open_frames: npt.NDArray[np.bool_], count: int, *, most: int = GROUP
) -> list[Places]:
    """Groups of frames, the most valuable first: a frame, and the open ones that are alike, nearest first.

    Args:
        space: of all frames.
        doubt: (n,) `uncertainty` of each.
        nearest: (n,) squared distance to the nearest training picture or frame that is settled.
        open_frames: (n,) which may be proposed.
        count: groups at most.
        most: frames in a group at most.
    """
    nearest, left = nearest.copy(), open_frames.copy()
    groups: list[Places] = []
    while left.any() and len(groups) < count:
        value = np.where(left, np.sqrt(nearest) * (doubt + FLOOR), -1)
        first = int(value.argmax())
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
