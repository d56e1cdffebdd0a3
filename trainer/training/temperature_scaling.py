"""The softmax temperature: scores that mean what they say (Guo et al. 2017, arXiv:1706.04599)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RANGE = (0.05, 20.0)
PRIOR_SPREAD = 0.5
"""Standard deviation of log T before any image is seen: two thirds of all models need 0.6 to 1.6."""


def fit_temperature(logits: npt.NDArray[np.floating], truth: npt.NDArray[np.intp]) -> float:
    """The temperature T at which softmax(logits / T) fits the true classes best, by log loss.

    A handful of validation images, all recognised, would call for infinite certainty. So T is the likeliest
    one under a prior, log T normal about 0; some dozens of images overrule it.

    Args:
        logits: (n, classes), before softmax.
        truth: (n,) int, index of the true class.

    Returns:
        T, 0.05 to 20. Above 1 the model was too sure.
    """
    from scipy.optimize import minimize_scalar

    def surprise(log_t: float) -> float:
        return len(truth) * log_loss(logits / np.exp(log_t), truth) + (log_t / PRIOR_SPREAD) ** 2 / 2

    found = minimize_scalar(surprise, bounds=np.log(RANGE), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Softmax over the last axis, in double precision."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    scores: npt.NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return scores


class Judged(NamedTuple):
    """How good logits are.

    Attributes:
        losses: (n,) log loss of every image's true class at the fitted temperature, that is, of the model as it
            would be saved.
        accuracy: share of them with the highest logit, 0 to 1.
    """

    losses: npt.NDArray[np.float64]
    accuracy: float

    @property
    def loss(self) -> float:
        """Their mean."""
        return float(self.losses.mean())


def judge(logits: npt.NDArray[np.floating], truth: npt.NDArray[np.intp]) -> Judged:
    """Judge (n, classes) logits by the (n,) true classes."""
    losses = log_losses(logits / fit_temperature(logits, truth), truth)
    return Judged(losses, float((logits.argmax(axis=1) == truth).mean()))


def log_loss(logits: npt.NDArray[np.floating], truth: npt.NDArray[np.intp]) -> float:
    """Mean negative logarithm of the true classes' softmax scores."""
    return float(log_losses(logits, truth).mean())


def log_losses(logits: npt.NDArray[np.floating], truth: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """The same of every image, (n,)."""
    losses: npt.NDArray[np.float64] = -np.log(softmax(logits)[np.arange(len(truth)), truth] + 1e-12)
    return losses
