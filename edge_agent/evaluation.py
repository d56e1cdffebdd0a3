"""How good a classifier is on labelled pictures: the one scorer of the gate and the reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .classifier import Classifier
from .preprocess import Pixels


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of a set of pictures beside their true classes.

    Attributes:
        labels: the class names.
        truth: (pictures,) int, index of the true class.
        scores: (pictures, classes) float32, softmax.
        inference_ms: (pictures,) float, wall time of each invoke; empty where nothing was timed.
    """

    labels: tuple[str, ...]
    truth: npt.NDArray[np.intp]
    scores: npt.NDArray[np.float32]
    inference_ms: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    @property
    def predicted(self) -> npt.NDArray[np.intp]:
        """(pictures,) int, index of the class with the highest score."""
        best: npt.NDArray[np.intp] = np.argmax(self.scores, axis=1)
        return best

    @property
    def accuracy(self) -> float:
        """Share of pictures whose highest score is the true class, 0 to 1."""
        return float((self.predicted == self.truth).mean())

    def recall(self) -> dict[str, float]:
        """Share of each class's pictures that were recognised; classes without pictures are left out."""
        right = self.predicted == self.truth
        return {
            label: float(right[self.truth == i].mean())
            for i, label in enumerate(self.labels)
            if (self.truth == i).any()
        }

    def confusion(self) -> npt.NDArray[np.int64]:
        """(classes, classes) int: row the true class, column the predicted one."""
        matrix = np.zeros((len(self.labels), len(self.labels)), np.int64)
        np.add.at(matrix, (self.truth, self.predicted), 1)
        return matrix

    def agreement(self, other: Evaluation) -> float:
        """Share of pictures on which both name the same class first, 0 to 1."""
        return float((self.predicted == other.predicted).mean())


def evaluate(classifier: Classifier, pictures: Iterable[tuple[Pixels, str]]) -> Evaluation:
    """Classify labelled frames (BGR, with the name of their class), one by one, as the device does.

    Raises:
        ValueError: there are none, or a label is not one of the classifier's.
    """
    truth, scores, times = [], [], []
    for frame, label in pictures:
        result = classifier.classify(frame)
        truth.append(classifier.labels.index(label))
        scores.append(result.scores)
        times.append(result.inference_ms)
    if not scores:
        raise ValueError("there are no pictures to evaluate on")
    return Evaluation(classifier.labels, np.array(truth, np.intp), np.stack(scores), np.array(times))
