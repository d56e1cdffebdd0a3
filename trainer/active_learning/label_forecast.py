"""Estimates how much the labels so far have improved the accuracy, and how much twice as many labels would.

Accuracies are measured by cross-validation: heads are trained on some of the labelled frames and tested on the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..report.learning_curve import Forecast, forecasts
from .feature_space import Floats, Indices
from .ranking import Head, fit_head

MIN_LABELS = 40
"""Minimum number of labelled frames for a forecast."""
FOLDS = 4
SHARES = (0.3, 0.55, 1.0)
MAX_LABELS = 3000
"""Maximum number of labelled frames used; the newest ones."""


@dataclass(frozen=True)
class LabelForecast:
    """Effect of the labels so far, and forecast for twice as many.

    The labelled frames are the most difficult ones, so on all frames both accuracies are higher.

    Attributes:
        labelled: number of labelled frames used.
        before: accuracy of the current model on these frames, 0 to 1; None without a model.
        now: accuracy, 0 to 1, in cross-validation: each frame is predicted by a head that was trained on other frames.
        twice: forecast for twice as many labels; None if the learning curve allows none.
    """

    labelled: int
    before: float | None
    now: float
    twice: Forecast | None


def forecast_labels(
    rows: Floats,
    truth: Indices,
    predicted: Indices | None,
    groups: Indices,
    known: tuple[Floats, Indices],
    *,
    seed: int = 0,
) -> LabelForecast | None:
    """Compute the label forecast by training heads on shares of the labelled frames.

    Args:
        rows: (n, d) points of the labelled frames.
        truth: (n,) int, class indices of the labels.
        predicted: (n,) int, class indices predicted by the current model; None without a model.
        groups: (n,) int, the same number for frames that were labelled together; these stay in one fold.
        known: points and class indices of the training images, which every head also learns.
        seed: seed of folds and shares.

    Returns:
        The forecast, or None while there are too few labels.
    """
    rows, truth, groups = rows[-MAX_LABELS:], truth[-MAX_LABELS:], groups[-MAX_LABELS:]
    names, group = np.unique(groups, return_inverse=True)
    if len(rows) < MIN_LABELS or len(names) < 2 * FOLDS or len(np.unique(truth)) < 2:
        return None
    random = np.random.default_rng(seed)
    fold = random.permutation(len(names))[group] % FOLDS
    rank = random.permutation(len(names))[group] / len(names)
    wrong = np.ones((len(SHARES), len(rows)), np.bool_)
    sizes = np.zeros(len(SHARES))
    for number, share in enumerate(SHARES):
        for held_out in range(FOLDS):
            unseen, learned = fold == held_out, (fold != held_out) & (rank < share)
            head = fit_head(np.concatenate([known[0], rows[learned]]), np.concatenate([known[1], truth[learned]]))
            wrong[number, unseen] = _predictions(head, rows[unseen]) != truth[unseen]
            sizes[number] += learned.sum() / FOLDS
    now = float(1 - wrong[-1].mean())
    before = None if predicted is None else float((predicted[-MAX_LABELS:] == truth).mean())
    found = forecasts(sizes.astype(np.intp), wrong[:, None], len(rows), random) if sizes[0] >= 5 else ()
    return LabelForecast(len(rows), before, now, found[0] if found else None)


def _predictions(head: Head | None, rows: Floats) -> npt.NDArray[np.intp]:
    if head is None:
        return np.full(len(rows), -1, np.intp)
    predictions: npt.NDArray[np.intp] = head.classes[(rows @ head.kernel + head.bias).argmax(axis=1)]
    return predictions
