"""Have I labelled enough? How often a head that learned the labelled frames is right about frames it did not see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..report.learning_curve import Forecast, forecasts
from .feature_space import Floats, Places
from .ranking import Head, fit_head

FEWEST = 40
"""Labelled frames, below which nothing is said."""
FOLDS = 4
SHARES = (0.3, 0.55, 1.0)
MOST = 3000
"""Labelled frames looked at: the newest."""


@dataclass(frozen=True)
class Outlook:
    """What labelling brought, and what more of it would.

    The labelled frames are those that were hardest, so on all frames both accuracies are higher.

    Attributes:
        labelled: frames it is about.
        before: share of them the model as it is gets right, 0 to 1; None without a model.
        now: share that heads get right which learned from the others, 0 to 1.
        twice: what twice as many labels would do to the mistakes that are left; None where the curve cannot tell.
    """

    labelled: int
    before: float | None
    now: float
    twice: Forecast | None


def outlook_on(
    rows: Floats, truth: Places, guessed: Places | None, groups: Places, known: tuple[Floats, Places], *, seed: int = 0
) -> Outlook | None:
    """Learn from shares of the labelled frames and look at the others.

    Args:
        rows: (n, d) of the labelled frames in their space.
        truth: (n,) int, their classes.
        guessed: (n,) int, what the model as it is says of them; None without one.
        groups: (n,) int, the same number for frames that were labelled together: they are on one side.
        known: rows and classes of training images, which every head learns, too.
        seed: of folds and shares.

    Returns:
        None while too little is labelled.
    """
    rows, truth, groups = rows[-MOST:], truth[-MOST:], groups[-MOST:]
    names, group = np.unique(groups, return_inverse=True)
    if len(rows) < FEWEST or len(names) < 2 * FOLDS or len(np.unique(truth)) < 2:
        return None
    random = np.random.default_rng(seed)
    fold = random.permutation(len(names))[group] % FOLDS
    rank = random.permutation(len(names))[group] / len(names)
    wrong = np.ones((len(SHARES), len(rows)), np.bool_)
    sizes = np.zeros(len(SHARES))
    for number, share in enumerate(SHARES):
        for one in range(FOLDS):
            unseen, learned = fold == one, (fold != one) & (rank < share)
            head = fit_head(np.concatenate([known[0], rows[learned]]), np.concatenate([known[1], truth[learned]]))
            wrong[number, unseen] = _answers(head, rows[unseen]) != truth[unseen]
            sizes[number] += learned.sum() / FOLDS
    now = float(1 - wrong[-1].mean())
    before = None if guessed is None else float((guessed[-MOST:] == truth).mean())
    found = forecasts(sizes.astype(np.intp), wrong[:, None], len(rows), random) if sizes[0] >= 5 else ()
    return Outlook(len(rows), before, now, found[0] if found else None)


def _answers(head: Head | None, rows: Floats) -> npt.NDArray[np.intp]:
    if head is None:
        return np.full(len(rows), -1, np.intp)
    answers: npt.NDArray[np.intp] = head.classes[(rows @ head.kernel + head.bias).argmax(axis=1)]
    return answers
