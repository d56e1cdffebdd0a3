"""Evaluation of a classifier on labelled images; the quality gate and all reports use it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import sqrt

import numpy as np
import numpy.typing as npt

from ..preprocessing import Pixels
from .classifier import Classifier

CALIBRATION_BINS = 15
"""Number of bins, as in Guo et al. 2017, so that the figures are comparable."""
LEAST_SCORE = 1e-7
"""Lower limit for scores: a score of 0 would make the log loss infinite. Keras clips at the same value."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Mean top score and accuracy in bins of equal width over 0 to 1 (reliability diagram).

    Attributes:
        edges: (bins + 1,) float, edges of the bins; a score on an edge counts in the lower bin.
        images: (bins,) int, number of images whose top score is in the bin.
        score: (bins,) float, mean of these top scores; nan in an empty bin.
        accuracy: (bins,) float, share of these images with the correct class; nan in an empty bin.
    """

    edges: npt.NDArray[np.float64]
    images: npt.NDArray[np.int64]
    score: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of a set of images, with their true classes.

    Attributes:
        labels: class names.
        truth: (images,) int, index of the true class.
        scores: (images, classes) float32, softmax.
        inference_ms: (images,) float, wall time of each invoke; empty if it was not measured.
    """

    labels: tuple[str, ...]
    truth: npt.NDArray[np.intp]
    scores: npt.NDArray[np.float32]
    inference_ms: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    @cached_property
    def predicted(self) -> npt.NDArray[np.intp]:
        """(images,) int, index of the class with the highest score."""
        best: npt.NDArray[np.intp] = np.argmax(self.scores, axis=1)
        return best

    @cached_property
    def right(self) -> npt.NDArray[np.bool_]:
        """(images,) bool, whether the highest score is that of the true class."""
        right: npt.NDArray[np.bool_] = self.predicted == self.truth
        return right

    @property
    def accuracy(self) -> float:
        """Share of images whose highest score is that of the true class, 0 to 1."""
        return float(self.right.mean())

    @property
    def interval_95(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy; see `wilson_interval`."""
        return wilson_interval(self.accuracy, len(self.truth))

    def support(self) -> dict[str, int]:
        """Return the number of images per class, including classes without images."""
        return dict(zip(self.labels, self._count(self.truth).tolist(), strict=True))

    def recall(self) -> dict[str, float]:
        """Return for each class the share of its images that are classified correctly; omit classes without images."""
        return self._shares(self._count(self.truth[self.right]), self._count(self.truth))

    def precision(self) -> dict[str, float]:
        """Return for each class the share of its predictions that are correct; omit classes never predicted."""
        return self._shares(self._count(self.truth[self.right]), self._count(self.predicted))

    def f1(self) -> dict[str, float]:
        """Return the harmonic mean of precision and recall per class, 2 right / (images + predicted).

        Classes without images are omitted.

        van Rijsbergen 1979, Information Retrieval, chapter 7, with equal weights.
        """
        images = self._count(self.truth)
        shares = self._shares(2 * self._count(self.truth[self.right]), images + self._count(self.predicted))
        return {label: shares[label] for label, count in zip(self.labels, images, strict=True) if count}

    @property
    def macro_f1(self) -> float:
        """Mean of `f1` over the classes; each class has the same weight, regardless of its number of images."""
        return float(np.mean(list(self.f1().values())))

    def confusion(self) -> npt.NDArray[np.int64]:
        """Return the confusion matrix, (classes, classes) int: rows are true classes, columns predicted classes."""
        classes = len(self.labels)
        cells = np.bincount(self.truth * classes + self.predicted, minlength=classes * classes)
        return cells.reshape(classes, classes).astype(np.int64, copy=False)

    def confused_pairs(self) -> list[tuple[str, str, int]]:
        """Return (true class, predicted class, number of images) for all misclassified images, most frequent first."""
        wrong = ~self.right
        pairs, counts = np.unique(
            np.stack([self.truth[wrong], self.predicted[wrong]], axis=1), axis=0, return_counts=True
        )
        order = np.argsort(-counts, kind="stable")
        return [(self.labels[pairs[i, 0]], self.labels[pairs[i, 1]], int(counts[i])) for i in order]

    def top_accuracy(self, count: int) -> float:
        """Return the share of images whose true class is among the ``count`` highest scores, 0 to 1.

        In case of a tie, the class that comes first in ``labels`` counts as the higher one, as in `predicted`.
        """
        own = np.take_along_axis(self.scores, self.truth[:, None], axis=1)
        first = np.arange(len(self.labels)) < self.truth[:, None]
        ahead = ((self.scores > own) | ((self.scores == own) & first)).sum(axis=1)
        return float((ahead < count).mean())

    @property
    def log_loss(self) -> float:
        """Mean of -ln(score of the true class), in nats: the loss that the head is trained with; 0 is perfect.

        Scores are clipped at `LEAST_SCORE`. The scores of an int8 model are multiples of 1/256; a score of 0 costs 16
        nats.
        """
        own = np.take_along_axis(self.scores, self.truth[:, None], axis=1).astype(np.float64)
        return float(-np.log(np.clip(own, LEAST_SCORE, 1)).mean())

    def reliability(self, bins: int = CALIBRATION_BINS) -> Reliability:
        """Sort the top scores into bins of equal width, after Guo et al. 2017 (arXiv:1706.04599), section 2."""
        top = self.scores.max(axis=1).astype(np.float64)
        edges = np.linspace(0, 1, bins + 1)
        place = np.clip(np.searchsorted(edges, top, side="left") - 1, 0, bins - 1)
        images = np.bincount(place, minlength=bins).astype(np.int64, copy=False)
        with np.errstate(invalid="ignore"):  # an empty bin has no mean and gets nan
            score = np.bincount(place, weights=top, minlength=bins) / images
            accuracy = np.bincount(place, weights=self.right, minlength=bins) / images
        return Reliability(edges, images, score, accuracy)

    def calibration_error(self, bins: int = CALIBRATION_BINS) -> float:
        """Return the expected calibration error, 0 to 1: the mean difference between score and accuracy.

        Sum over the bins of (images in the bin / images) * |accuracy - mean score|; equation 3 of Guo et al. 2017
        (arXiv:1706.04599). If the bins contain few images, the error is above 0 by
        chance alone.
        """
        found = self.reliability(bins)
        used = found.images > 0
        gaps = np.abs(found.accuracy[used] - found.score[used])
        return float((found.images[used] * gaps).sum() / len(self.truth))

    def agreement(self, other: Evaluation) -> float:
        """Return the share of images with the same top class in both evaluations, 0 to 1."""
        return float((self.predicted == other.predicted).mean())

    def _count(self, classes: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        return np.bincount(classes, minlength=len(self.labels))

    def _shares(self, parts: npt.NDArray[np.intp], wholes: npt.NDArray[np.intp]) -> dict[str, float]:
        rows = zip(self.labels, parts.tolist(), wholes.tolist(), strict=True)
        return {label: part / whole for label, part, whole in rows if whole}


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share observed in ``count`` trials (Wilson 1927), both ends 0 to 1."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def evaluate(classifier: Classifier, images: Iterable[tuple[Pixels, str]]) -> Evaluation:
    """Classify labelled frames (BGR, with the name of their class) one by one, as the device does.

    Raises:
        ValueError: there are no images, or the classifier does not have one of the labels.
    """
    return evaluate_together([classifier], images)[0]


def evaluate_together(classifiers: Sequence[Classifier], images: Iterable[tuple[Pixels, str]]) -> list[Evaluation]:
    """Evaluate several classifiers with the same labels; each image is decoded only once. See `evaluate`."""
    truth: list[int] = []
    scores: list[list[npt.NDArray[np.float32]]] = [[] for _ in classifiers]
    times: list[list[float]] = [[] for _ in classifiers]
    for frame, label in images:
        truth.append(classifiers[0].labels.index(label))
        for place, classifier in enumerate(classifiers):
            result = classifier.classify(frame)
            scores[place].append(result.scores)
            times[place].append(result.inference_ms)
    if not truth:
        raise ValueError("there are no images to evaluate on")
    return [
        Evaluation(classifier.labels, np.array(truth, np.intp), np.stack(own), np.array(spent))
        for classifier, own, spent in zip(classifiers, scores, times, strict=True)
    ]
