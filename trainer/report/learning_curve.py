"""Measures how the accuracy grows with the number of training images, and forecasts it for more images.

The learning curve shows the accuracy of heads that are trained on growing shares of the training images. A head is a
regularised least squares classifier on the standardised features of the frozen backbone. It is computed in one step.
With 24 to 600 images like those of `benchmarks/support/synthetic_images.py`, it is at least as accurate as a logistic
regression. Each share contains the smaller ones and has the same fraction of every class. Images are added group by
group, because half of the images of a burst teach as much as the whole burst.

The forecast is the mean of two extrapolations. The first one is the power law error = a + b n^-c for n images (Cortes
et al. 1994, Learning Curves: Asymptotic Values and Rate of Convergence); in trials, its forecast of the gain was too
small. The second one assumes an equal gain with every doubling of n; its forecast was too large. The mean was close to
the true gain.

The band of the forecast is computed with resampled test images and draws. It begins at the 5th percentile of the power
law and ends at the 95th percentile of the extrapolation for which this percentile is higher. It contained the true gain
in 94 % of trials for twice the images, and in 91 % for four times the images. The trials had 8 classes of photographed
objects or the digits of scikit-learn, 60 to 1500 training images, and 60 to 600 test images. In the trials where the
true gain was outside the band, classes had 8 to 15 images, and the gain was larger than the forecast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SHARES = tuple(1.5**-k for k in range(6))
"""Shares of the training images, the largest first, down to about an eighth.

With smaller shares, the heads are hardly better than guessing, and the error follows another law.
"""
DRAWS = 6
MAX_TRAIN, MAX_TEST = 5000, 2000
"""Maximum numbers of training and test images that are used, so that the curve takes a few seconds on two cores.

If there are more training images, the curve covers only a sample of them, and the forecast extrapolates further.
"""
MIN_TEST = 20
MIN_PER_CLASS = 2
RIDGE = 0.3
"""Strength of the regularisation, for the features that `_standardised` returns.

Of the values 0.1, 0.3, 1, 3 and 10, it was the best one at every number of images tried.
"""
RESAMPLES = 400
EXPONENTS = np.linspace(0.1, 1.5, 57)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One point of the learning curve.

    Attributes:
        train_images: number of training images.
        accuracy: mean accuracy of the heads over the draws, 0 to 1.
        std: standard deviation of the accuracy over the draws.
    """

    train_images: int
    accuracy: float
    std: float


@dataclass(frozen=True)
class Forecast:
    """Forecast of the mistakes that more training images would avoid.

    Attributes:
        times: factor by which the number of training images grows.
        avoided: share of the mistakes of the heads that would be avoided, 0 to 1.
        low, high: bounds of ``avoided``; the true value is between them in about 9 of 10 cases.
    """

    times: int
    avoided: float
    low: float
    high: float


@dataclass(frozen=True)
class DataSize:
    """A learning curve and its forecasts.

    Attributes:
        points: points of the curve, the smallest number of training images first.
        forecasts: forecasts for twice and four times the training images; empty if the curve has fewer than three
            points, or if the heads of the last point make no mistakes.
        train_images: number of all training images; the last point may use only some of them.
        test_images: number of test images that the heads were tested on.
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
        groups: name of the group of each training image; "" for an image without a group.
        tested: (m,) int, rows of the test images.
        test_truth: (m,) int, class indices of the test images.
        classes: number of classes.
        seed: seed of the draws and the resampling; the same seed gives the same result.
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
    """Return how many images of each class a share contains. It contains at least one of each."""
    return np.maximum(1, np.round(share * counts)).astype(np.intp)


def _ranks(truth: npt.NDArray[np.intp], groups: Sequence[str], random: np.random.Generator) -> npt.NDArray[np.intp]:
    """Return the random rank of each image among the images of its class, starting at 0.

    Within a class, images of the same group have consecutive ranks.
    """
    names = {group: number for number, group in enumerate(dict.fromkeys(group for group in groups if group))}
    # Each image without a group gets a separate group.
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
    """Return the standardised features of the training images and of the test images.

    The mean and the standard deviation are those of the training images. The standardised features are divided by the
    square root of their number, so that the mean square of the length of a training image's feature vector is 1.
    """
    rows, test_rows = np.asarray(features[train], np.float32), np.asarray(features[tested], np.float32)
    mean, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-6
    scale *= np.sqrt(rows.shape[1])
    return (rows - mean) / scale, (test_rows - mean) / scale


def _predictions(
    rows: npt.NDArray[np.float32], truth: npt.NDArray[np.intp], test_rows: npt.NDArray[np.float32], classes: int
) -> npt.NDArray[np.intp]:
    """Train a least squares head, and return the class indices that it predicts for ``test_rows``.

    All classes have the same total weight.
    """
    counts = np.bincount(truth, minlength=classes)
    weights = (len(truth) / (classes * counts[truth])).astype(np.float32)[:, None]
    targets = np.eye(classes, dtype=np.float32)[truth] - np.float32(1 / classes)
    if len(rows) <= rows.shape[1]:  # the smaller system of equations; its solution is the same
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
    """Forecast which share of the mistakes would be avoided with twice and with four times the training images.

    Args:
        sizes: (shares,) int, number of training images in each share.
        wrong: (shares, draws, test images) bool, True for a wrong answer.
        train_images: current number of training images.
        random: random generator for the resampling.

    Returns:
        One forecast for each factor. Empty if the heads trained on the largest share make no mistakes.
    """
    shares, draws, tested = wrong.shape
    # Both the test images and the draws are random, so both are resampled.
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
    """Return the share of the errors that more training images avoid according to a power law.

    The power law is error = a + b n^-c for n images, with a >= 0 and b >= 0. For each c of a grid, a and b are fitted
    by least squares, where each share is weighted by its number of images. The c with the best fit is used.

    Args:
        sizes: (shares,) int, number of training images in each share.
        errors: (trials, shares) error rates, 0 to 1.
        now: current number of training images.
        times: factor by which the number of training images grows.

    Returns:
        (trials,) shares, 0 to 1.
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
    """Return the same as `_power_law_gain`, but assume an equal gain with every doubling: error = a - b ln n."""
    weights = sizes / sizes.sum()
    x = np.log(sizes / now)
    x_mean = x @ weights
    slope = (errors * weights) @ (x - x_mean) / (weights @ (x - x_mean) ** 2)
    at_now = np.maximum(errors @ weights - slope * x_mean, 1e-9)
    share: Floats = np.clip(-slope * np.log(times) / at_now, 0, 1)
    return share
