"""Have I labelled enough? Heads trained on growing shares of the images, and where their curve leads.

A head here is a regularised least squares classifier on the frozen backbone's standardised features: solved in
one step, and on images like those of `benchmarks/support/synthetic_images.py` (24 to 600 of them) as accurate as a
logistic regression or better. Each share holds the one before it, takes the same part of every class, and
adds images by whole groups: half a burst teaches what the whole burst does.

The forecast lies between two ways on. The power law error = a + b n^-c (Cortes et al. 1994, Learning Curves:
Asymptotic Values and Rate of Convergence) bends early and foretold too little; a gain as large with every
doubling foretells too much. Their mean came close, and the band from the 5th percentile of the one to the 95th
of the other, over resampled test images and draws, held the true gain of twice the images in 94 % of trials, of
four times in 91 % (8 classes of photographed objects and scikit-learn's digits, 60 to 1500 training images, 60 to
600 test images). Where it missed, classes had 8 to 15 images, and more brought more than foretold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SHARES = tuple(1.5**-k for k in range(6))
"""Largest first, down to an eighth: below that, error follows another law (it starts from guessing)."""
DRAWS = 6
MAX_TRAIN, MAX_TEST = 5000, 2000
"""Images used at most: a few seconds on two cores. Beyond, the curve starts lower and reaches further."""
MIN_TEST = 20
MIN_PER_CLASS = 2
RIDGE = 0.3
"""Of 0.1, 0.3, 1, 3, 10 the best at every number of images tried, with features scaled to a mean square of 1."""
RESAMPLES = 400
EXPONENTS = np.linspace(0.1, 1.5, 57)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """Accuracy of heads trained on so many images: mean and standard deviation over the draws, 0 to 1."""

    train_images: int
    accuracy: float
    std: float


@dataclass(frozen=True)
class Forecast:
    """What ``times`` as many images would do to the heads' errors.

    Attributes:
        times: as many training images.
        avoided: share of the mistakes that would not be made, 0 to 1.
        low, high: between what it lies, in about 9 of 10 cases.
    """

    times: int
    avoided: float
    low: float
    high: float


@dataclass(frozen=True)
class DataSize:
    """The learning curve over the number of training images.

    Attributes:
        points: fewest images first.
        forecasts: for twice and four times the images; empty where the curve cannot tell.
        train_images: all there are, of which the last point may use only a part.
        test_images: what the heads were scored on.
    """

    points: tuple[Point, ...]
    forecasts: tuple[Forecast, ...]
    train_images: int
    test_images: int


def learn_from_shares(
    features: npt.NDArray[np.float32],
    *,
    train: npt.NDArray[np.intp],
    train_truth: npt.NDArray[np.intp],
    groups: Sequence[str],
    tested: npt.NDArray[np.intp],
    test_truth: npt.NDArray[np.intp],
    classes: int,
    seed: int = 0,
) -> DataSize:
    """Train heads on shares of the training images and score them on the test images.

    Args:
        features: (images, features) float32 of all images; only the rows used are read.
        train: (n,) int, places of the training images in it.
        train_truth: (n,) int, their class indices.
        groups: the group of each of them, or "".
        tested: (m,) int, places of the test images.
        test_truth: (m,) int, their class indices.
        classes: how many classes there are.
        seed: of draws and resampling; the same seed gives the same figures.
    """
    random = np.random.default_rng(seed)
    counts = np.bincount(train_truth, minlength=classes)
    fullest = min(1.0, MAX_TRAIN / len(train))
    shares = [share * fullest for share in SHARES if share * fullest * len(train) >= MIN_PER_CLASS * classes][::-1]
    if len(tested) > MAX_TEST:
        chosen = np.sort(random.choice(len(tested), MAX_TEST, replace=False))
        tested, test_truth = tested[chosen], test_truth[chosen]
    if len(tested) < MIN_TEST or not shares:
        return DataSize((), (), len(train), len(tested))

    first = _ranks(train_truth, groups, random)
    used = np.flatnonzero(first < _quota(counts, shares[-1])[train_truth])
    learned, asked = _standardised(features, train[used], tested)
    truth, names = train_truth[used], [groups[i] for i in used.tolist()]
    sizes, wrong = [], np.empty((len(shares), DRAWS, len(tested)), bool)
    for number, share in enumerate(shares):
        last = number == len(shares) - 1
        for draw in range(DRAWS):
            if last and draw:  # the largest share is the same images in every draw
                wrong[number, draw] = wrong[number, 0]
                continue
            ranks = _ranks(truth, names, np.random.default_rng((seed, draw)))
            taken = np.flatnonzero(ranks < _quota(counts, share)[truth])
            said = _answers(learned[taken], truth[taken], asked, classes)
            wrong[number, draw] = said != test_truth
        sizes.append(len(taken))
    accuracies = 1 - wrong.mean(axis=2)
    points = tuple(
        Point(size, float(row.mean()), float(row.std())) for size, row in zip(sizes, accuracies, strict=True)
    )
    found = forecasts(np.array(sizes), wrong, len(train), random) if len(points) >= 3 else ()
    return DataSize(points, found, len(train), len(tested))


def _quota(counts: npt.NDArray[np.intp], share: float) -> npt.NDArray[np.intp]:
    """How many images of each class a share takes: at least one."""
    return np.maximum(1, np.round(share * counts)).astype(np.intp)


def _ranks(truth: npt.NDArray[np.intp], groups: Sequence[str], random: np.random.Generator) -> npt.NDArray[np.intp]:
    """A random order within each class, 0 first, in which the images of a group follow one another."""
    names = {group: number for number, group in enumerate(dict.fromkeys(group for group in groups if group))}
    # An image without a group is a group of its own.
    group = np.array([names.get(name, len(names) + i) for i, name in enumerate(groups)], np.intp)
    drawn = random.permutation(len(names) + len(groups))
    order = np.lexsort((random.random(len(truth)), drawn[group], truth))
    starts = np.searchsorted(truth[order], truth[order])
    ranks = np.empty(len(truth), np.intp)
    ranks[order] = np.arange(len(truth)) - starts
    return ranks


def _standardised(
    features: npt.NDArray[np.float32], train: npt.NDArray[np.intp], tested: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Rows of both, with the training rows' mean 0 and deviation 1, divided by the square root of their length."""
    rows, asked = np.asarray(features[train], np.float32), np.asarray(features[tested], np.float32)
    mean, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    scale *= np.sqrt(rows.shape[1])
    return (rows - mean) / scale, (asked - mean) / scale


def _answers(
    rows: npt.NDArray[np.float32], truth: npt.NDArray[np.intp], asked: npt.NDArray[np.float32], classes: int
) -> npt.NDArray[np.intp]:
    """Classes that a least squares head, each class weighing the same, names for ``asked``."""
    counts = np.bincount(truth, minlength=classes)
    weights = (len(truth) / (classes * counts[truth])).astype(np.float32)[:, None]
    targets = np.eye(classes, dtype=np.float32)[truth] - np.float32(1 / classes)
    if len(rows) <= rows.shape[1]:  # the same solution from the smaller of two systems
        dual = np.linalg.solve(rows @ rows.T + np.diag(RIDGE / weights[:, 0]), targets)
        kernel = rows.T @ dual
    else:
        gram = rows.T @ (weights * rows) + RIDGE * np.eye(rows.shape[1], dtype=np.float32)
        kernel = np.linalg.solve(gram, rows.T @ (weights * targets))
    answers: npt.NDArray[np.intp] = (asked @ kernel).argmax(axis=1)
    return answers


def forecasts(
    sizes: npt.NDArray[np.intp], wrong: npt.NDArray[np.bool_], train_images: int, random: np.random.Generator
) -> tuple[Forecast, ...]:
    """Mistakes that more images would avoid, from (shares, draws, test images) of wrong answers."""
    shares, draws, tested = wrong.shape
    # Both what was drawn to train on and what to test on could have come out otherwise.
    weights = random.multinomial(tested, np.full(tested, 1 / tested), RESAMPLES).astype(np.float32) / tested
    errors = (wrong.reshape(shares * draws, tested).astype(np.float32) @ weights.T).reshape(shares, draws, RESAMPLES)
    picks = random.integers(0, draws, (1, draws, RESAMPLES))
    resampled = np.take_along_axis(errors, picks, axis=1).mean(axis=1).T.astype(np.float64)
    measured = wrong.mean(axis=(1, 2))[None]
    if measured[0, -1] == 0:
        return ()
    forecasts = []
    for times in (2, 4):
        bent, straight = (gain(sizes, resampled, train_images, times) for gain in (_power_law_gain, _steady_gain))
        middle = [gain(sizes, measured, train_images, times)[0] for gain in (_power_law_gain, _steady_gain)]
        high = max(np.percentile(bent, 95), np.percentile(straight, 95))
        forecasts.append(Forecast(times, float(np.mean(middle)), float(np.percentile(bent, 5)), float(high)))
    return tuple(forecasts)


def _power_law_gain(sizes: npt.NDArray[np.intp], errors: Floats, now: int, times: int) -> Floats:
    """Share of the errors at ``now`` images avoided with ``times`` as many, by error = a + b n^-c, a and b >= 0.

    Least squares, a share weighing as its images, over a grid of c. ``errors`` is (trials, shares).
    """
    weights = sizes / sizes.sum()
    x = (sizes / now) ** -EXPONENTS[:, None]
    mean_x, mean_error = x @ weights, errors @ weights
    spread = (x**2) @ weights - mean_x**2
    b = ((errors * weights) @ x.T - mean_x * mean_error[:, None]) / spread
    a = mean_error[:, None] - b * mean_x
    through_zero = ((errors * weights) @ x.T) / ((x**2) @ weights)
    b = np.maximum(0, np.where(a < 0, through_zero, b))
    a = np.where(b > 0, np.maximum(0, a), mean_error[:, None])
    misfit = ((errors[:, None, :] - a[..., None] - b[..., None] * x) ** 2) @ weights
    best = misfit.argmin(axis=1)
    rows = np.arange(len(errors))
    gain = b[rows, best] * (1 - float(times) ** -EXPONENTS[best])
    share: Floats = gain / np.maximum(a[rows, best] + b[rows, best], 1e-9)
    return share


def _steady_gain(sizes: npt.NDArray[np.intp], errors: Floats, now: int, times: int) -> Floats:
    """The same if every doubling went on to bring as much: error = a - b ln n."""
    weights = sizes / sizes.sum()
    x = np.log(sizes / now)
    x_mean = x @ weights
    slope = (errors * weights) @ (x - x_mean) / (weights @ (x - x_mean) ** 2)
    at_now = np.maximum(errors @ weights - slope * x_mean, 1e-9)
    share: Floats = np.clip(-slope * np.log(times) / at_now, 0, 1)
    return share
