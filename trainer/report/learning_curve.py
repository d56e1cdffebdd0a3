"""Learning curve: accuracy of heads trained on growing shares of the images, with a forecast for more images.

A head is a regularised least squares classifier on the standardised features of the frozen backbone. It is solved in
one step, and on images like those of `benchmarks/support/synthetic_images.py` (24 to 600 of them) it is at least as
accurate as a logistic regression. Each share contains the one before it, has the same fraction of every class, and
adds images by whole groups, because half a burst teaches as much as the whole burst.

The forecast combines two extrapolations. The power law error = a + b n^-c (Cortes et al. 1994, Learning Curves:
Asymptotic Values and Rate of Convergence) flattens early and forecast too little; the assumption of an equal gain
with every doubling forecasts too much. The mean of the two came close. The band reaches from the 5th percentile of the
power law to the 95th percentile of the higher of the two, over resampled test images and draws. It contained the true
gain in 94 % of trials for twice the images and in 91 % for four times (8 classes of photographed objects and
scikit-learn's digits, 60 to 1500 training images, 60 to 600 test images). In the remaining trials classes had 8 to 15
images, and the gain was larger than forecast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SHARES = tuple(1.5**-k for k in range(6))
"""Largest first, down to about an eighth. For smaller shares the error, close to guessing, follows another law."""
DRAWS = 6
MAX_TRAIN, MAX_TEST = 5000, 2000
"""Maximum number of images used: a few seconds on two cores. With more, the curve covers a sample and the forecast
extrapolates further."""
MIN_TEST = 20
MIN_PER_CLASS = 2
RIDGE = 0.3
"""Best of 0.1, 0.3, 1, 3 and 10 at every number of images tried, with features scaled to a mean square of 1."""
RESAMPLES = 400
EXPONENTS = np.linspace(0.1, 1.5, 57)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One point of the learning curve.

    Attributes:
        train_images: number of training images.
        accuracy: mean accuracy of the heads over the draws, 0 to 1.
        std: standard deviation over the draws.
    """

    train_images: int
    accuracy: float
    std: float


@dataclass(frozen=True)
class Forecast:
    """Forecast of the mistakes that more training images would avoid.

    Attributes:
        times: factor by which the number of training images grows.
        avoided: share of mistakes that would be avoided, 0 to 1, of the heads that the learning curve is measured with.
        low, high: bounds that contain the true value in about 9 of 10 cases.
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
        forecasts: for twice and four times the images; empty if the curve allows none.
        train_images: number of all training images; the last point may use only some of them.
        test_images: number of images the heads were scored on.
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
        train: (n,) int, rows of the training images.
        train_truth: (n,) int, class indices of the training images.
        groups: group of each training image, or "" for none.
        tested: (m,) int, rows of the test images.
        test_truth: (m,) int, class indices of the test images.
        classes: number of classes.
        seed: seed of draws and resampling; the same seed gives the same figures.
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
    learned, test_rows = _standardised(features, train[used], tested)
    truth, names = train_truth[used], [groups[i] for i in used.tolist()]
    sizes, wrong = [], np.empty((len(shares), DRAWS, len(tested)), bool)
    for number, share in enumerate(shares):
        last = number == len(shares) - 1
        for draw in range(DRAWS):
            if last and draw:  # the largest share has the same images in every draw
                wrong[number, draw] = wrong[number, 0]
                continue
            ranks = _ranks(truth, names, np.random.default_rng((seed, draw)))
            taken = np.flatnonzero(ranks < _quota(counts, share)[truth])
            predicted = _predictions(learned[taken], truth[taken], test_rows, classes)
            wrong[number, draw] = predicted != test_truth
        sizes.append(len(taken))
    accuracies = 1 - wrong.mean(axis=2)
    points = tuple(
        Point(size, float(row.mean()), float(row.std())) for size, row in zip(sizes, accuracies, strict=True)
    )
    found = forecasts(np.array(sizes), wrong, len(train), random) if len(points) >= 3 else ()
    return DataSize(points, found, len(train), len(tested))


def _quota(counts: npt.NDArray[np.intp], share: float) -> npt.NDArray[np.intp]:
    """Return the number of images of each class in a share, at least one."""
    return np.maximum(1, np.round(share * counts)).astype(np.intp)


def _ranks(truth: npt.NDArray[np.intp], groups: Sequence[str], random: np.random.Generator) -> npt.NDArray[np.intp]:
    """Return a random rank from 0 for each image within its class; images of a group have consecutive ranks."""
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
    """Standardise training and test rows by the training rows, and divide by the square root of the row length."""
    rows, test_rows = np.asarray(features[train], np.float32), np.asarray(features[tested], np.float32)
    mean, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    scale *= np.sqrt(rows.shape[1])
    return (rows - mean) / scale, (test_rows - mean) / scale


def _predictions(
    rows: npt.NDArray[np.float32], truth: npt.NDArray[np.intp], test_rows: npt.NDArray[np.float32], classes: int
) -> npt.NDArray[np.intp]:
    """Train a least squares head with equal weight per class, and return its class indices for ``test_rows``."""
    counts = np.bincount(truth, minlength=classes)
    weights = (len(truth) / (classes * counts[truth])).astype(np.float32)[:, None]
    targets = np.eye(classes, dtype=np.float32)[truth] - np.float32(1 / classes)
    if len(rows) <= rows.shape[1]:  # the same solution from the smaller of two systems
        dual = np.linalg.solve(rows @ rows.T + np.diag(RIDGE / weights[:, 0]), targets)
        kernel = rows.T @ dual
    else:
        gram = rows.T @ (weights * rows) + RIDGE * np.eye(rows.shape[1], dtype=np.float32)
        kernel = np.linalg.solve(gram, rows.T @ (weights * targets))
    predictions: npt.NDArray[np.intp] = (test_rows @ kernel).argmax(axis=1)
    return predictions


def forecasts(
    sizes: npt.NDArray[np.intp], wrong: npt.NDArray[np.bool_], train_images: int, random: np.random.Generator
) -> tuple[Forecast, ...]:
    """Forecast which share of the mistakes twice and four times the images would avoid.

    Args:
        sizes: (shares,) int, numbers of training images.
        wrong: (shares, draws, test images) bool, True for a wrong answer.
        train_images: number of training images to multiply.
        random: source of the resampling.

    Returns:
        Empty if the largest share makes no mistake.
    """
    shares, draws, tested = wrong.shape
    # Resample both the test images and the draws, as both are random.
    weights = random.multinomial(tested, np.full(tested, 1 / tested), RESAMPLES).astype(np.float32) / tested
    errors = (wrong.reshape(shares * draws, tested).astype(np.float32) @ weights.T).reshape(shares, draws, RESAMPLES)
    picks = random.integers(0, draws, (1, draws, RESAMPLES))
    resampled = np.take_along_axis(errors, picks, axis=1).mean(axis=1).T.astype(np.float64)
    measured = wrong.mean(axis=(1, 2))[None]
    if measured[0, -1] == 0:
        return ()
    forecasts = []
    for times in (2, 4):
        power_law, steady = (gain(sizes, resampled, train_images, times) for gain in (_power_law_gain, _steady_gain))
        middle = [gain(sizes, measured, train_images, times)[0] for gain in (_power_law_gain, _steady_gain)]
        high = max(np.percentile(power_law, 95), np.percentile(steady, 95))
        forecasts.append(Forecast(times, float(np.mean(middle)), float(np.percentile(power_law, 5)), float(high)))
    return tuple(forecasts)


def _power_law_gain(sizes: npt.NDArray[np.intp], errors: Floats, now: int, times: int) -> Floats:
    """Return the share of errors at ``now`` images that ``times`` as many avoid, by error = a + b n^-c, a and b >= 0.

    Fitted by least squares over a grid of c; each share is weighted by its number of images.

    Args:
        sizes: (shares,) int, numbers of training images.
        errors: (trials, shares) error rates, 0 to 1.
        now: number of training images to start from.
        times: factor by which that number grows.
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
    """Like `_power_law_gain`, but with the same gain for every doubling: error = a - b ln n."""
    weights = sizes / sizes.sum()
    x = np.log(sizes / now)
    x_mean = x @ weights
    slope = (errors * weights) @ (x - x_mean) / (weights @ (x - x_mean) ** 2)
    at_now = np.maximum(errors @ weights - slope * x_mean, 1e-9)
    share: Floats = np.clip(-slope * np.log(times) / at_now, 0, 1)
    return share
