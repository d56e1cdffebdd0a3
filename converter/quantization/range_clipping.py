"""Better ranges: clip the few largest values where the many others gain more resolution than that loses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edge_agent.preprocess import Pixels

from .observers import Ranges, Values, activations

BINS = 2048
STEPS = 255
SHARES = np.linspace(1.0, 0.2, 33)
"""Of each end's distance from zero that is tried as the new end."""


def clipped(model: bytes, ranges: Ranges, pixels: Pixels, *, advance: Callable[[], object] = lambda: None) -> Ranges:
    """The range of each tensor of a model with the least mean squared error of its values as 8-bit integers.

    Args:
        model: the float32 ``.tflite``.
        ranges: lowest and highest value of each activation.
        pixels: (images, height, width, 3) uint8, what they were measured on.
        advance: called after each image.
    """

    def values() -> Iterator[list[Values]]:
        for found in activations(model, list(ranges), pixels):
            yield found
            advance()

    return least_error(values(), ranges)


def least_error(values: Iterable[Sequence[Values]], ranges: Ranges) -> Ranges:
    """The ends for each tensor between which its values have the least mean squared error as 8-bit integers.

    As in Banner et al. 2019 (arXiv:1810.05723), but from the histogram itself rather than a distribution fitted to it.

    Args:
        values: time and again, the values of all tensors.
        ranges: lowest and highest of them, by the tensor's name, in the same order.
    """
    counts = np.zeros((len(ranges), BINS))
    for found in values:
        for place, (value, ends) in enumerate(zip(found, ranges.values(), strict=True)):
            counts[place] += np.histogram(value, BINS, ends)[0]
    return {name: _least_error(count, *ends) for count, (name, ends) in zip(counts, ranges.items(), strict=True)}


def _least_error(counts: npt.NDArray[np.float64], low: float, high: float) -> tuple[float, float]:
    """The best ends within [low, high], zero always included: the quantizer needs it, for paddings.

    The error of a pair of ends is what clipping does to the values outside, and a step squared over 12 for each inside.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 0:
        return low, high
    edges = np.linspace(low, high, len(counts) + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    best, least = (low, high), np.inf
    # The two ends cost independently but for the step, so each end's clipping error is summed once.
    below = {a: float(counts[middles < a] @ np.square(middles[middles < a] - a)) for a in {low * s for s in SHARES}}
    above = {b: float(counts[middles > b] @ np.square(middles[middles > b] - b)) for b in {high * s for s in SHARES}}
    total = counts.sum()
    for a, under in below.items():
        for b, over in above.items():
            error = under + over + total * ((b - a) / STEPS) ** 2 / 12
            if error < least:
                best, least = (a, b), error
    return best
