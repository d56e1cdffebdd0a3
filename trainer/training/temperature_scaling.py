"""Calibrates softmax scores by temperature scaling (Guo et al. 2017, arXiv:1706.04599)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RANGE = (0.05, 20.0)
PRIOR_SPREAD = 0.5
"""Standard deviation of the prior of log T. It assumes that two thirds of all models need a T between 0.6 and 1.6."""


def fit_temperature(logits: npt.NDArray[np.floating], truth: npt.NDArray[np.intp]) -> float:
    """Return the temperature T for which softmax(logits / T) predicts the true classes with the lowest log loss.

    If there are only a few validation images and all are classified correctly, the best T would be 0. Therefore a
    prior is used: log T has a normal distribution with mean 0. With more than a few dozen images, the prior has little
    influence.

    Args:
        logits: (n, classes), before softmax.
        truth: (n,) int, index of the true class.

    Returns:
        T, 0.05 to 20. If it is greater than 1, the original scores were overconfident.
    """
    from scipy.optimize import minimize_scalar

    def negative_log_posterior(log_t: float) -> float:
        return len(truth) * log_loss(logits / np.exp(log_t), truth) + (log_t / PRIOR_SPREAD) ** 2 / 2

    found = minimize_scalar(negative_log_posterior, bounds=np.log(RANGE), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Compute the softmax over the last axis in double precision."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    scores: npt.NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return scores


class Judged(NamedTuple):
    """The result of evaluating logits.

    Attributes:
        losses: (n,) log loss of every image, with the logits divided by the fitted temperature as in the saved model.
        accuracy: share of the images whose true class has the highest logit, 0 to 1.
    """

    losses: npt.NDArray[np.float64]
    accuracy: float

    @property
    def loss(self) -> float:
        """Mean of ``losses``."""
        return float(self.losses.mean())


def judge(logits: npt.NDArray[np.floating], truth: npt.NDArray[np.intp]) -> Judged:
    """Evaluate (n, classes) logits against the (n,) true classes."""
    losses = log_losses(logits / fit_temperature(logits, truth), truth)
    return Judged(losses, float((logits.argmax(axis=1) == truth).mean()))


def log_loss(logits: npt.NDArray[np.floating], truth: npt.NDArray[np.intp]) -> float:
    """Return the mean of `log_losses` over all images."""
    return float(log_losses(logits, truth).mean())


def log_losses(logits: npt.NDArray[np.floating], truth: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Return for every image the negative logarithm of the softmax score of its true class, (n,) float64."""
    losses: npt.NDArray[np.float64] = -np.log(softmax(logits)[np.arange(len(truth)), truth] + 1e-12)
    return losses
