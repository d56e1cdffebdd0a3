"""The softmax temperature: scores that mean what they say (Guo et al. 2017, arXiv:1706.04599)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RANGE = (0.05, 20.0)


def fit_temperature(logits: npt.NDArray[np.floating], truth: npt.NDArray[np.intp]) -> float:
    """The temperature T at which softmax(logits / T) fits the true classes best, by log loss.

    A handful of validation pictures, all recognised, would call for infinite certainty. So the true
    class counts (n + 1) / (n + 2) and the others share the rest, as Platt (1999) does.

    Args:
        logits: (n, classes), before softmax.
        truth: (n,) int, index of the true class.

    Returns:
        T, 0.05 to 20. Above 1 the model was too sure.
    """
    count, classes = logits.shape
    target = np.full((count, classes), 1 / (count + 2) / (classes - 1))
    target[np.arange(count), truth] = (count + 1) / (count + 2)
    wanted = (target * logits).sum(axis=1).mean()
    # The loss is convex in 1/T, and its slope there is the expected logit less the wanted one.
    low, high = 1 / RANGE[1], 1 / RANGE[0]
    for _ in range(60):
        inverse = np.sqrt(low * high)
        if (softmax(logits * inverse) * logits).sum(axis=1).mean() < wanted:
            low = inverse
        else:
            high = inverse
    return float(1 / np.sqrt(low * high))


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Softmax over the last axis, in double precision."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    scores: npt.NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return scores


class Judged(NamedTuple):
    """How good logits are.

    Attributes:
        loss: mean log loss of the true classes at the fitted temperature, that is, of the model as it would be saved.
        accuracy: share of them with the highest logit, 0 to 1.
    """

    loss: float
    accuracy: float


def judge(logits: npt.NDArray[np.floating], truth: npt.NDArray[np.intp]) -> Judged:
    """Judge (n, classes) logits by the (n,) true classes."""
    scores = softmax(logits / fit_temperature(logits, truth))
    loss = -np.log(scores[np.arange(len(truth)), truth] + 1e-12).mean()
    return Judged(float(loss), float((logits.argmax(axis=1) == truth).mean()))
