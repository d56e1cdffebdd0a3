"""Range clipping: clips the few largest values where the others gain more resolution than the clipping loses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edge_agent.preprocessing import Pixels

from .observers import Ranges, Values, activations

BINS = 2048
STEPS = 255
SHARES = np.linspace(1.0, 0.2, 33)
"""Fractions of each end's distance from zero that are tried as the new end."""


def clipped(model: bytes, ranges: Ranges, pixels: Pixels, *, advance: Callable[[], object] = lambda: None) -> Ranges:
    """Return for each tensor of a model the range with the least mean squared error of its values as 8-bit integers.

    Args:
        model: the float32 ``.tflite``.
        ranges: lowest and highest value of each activation.
        pixels: (images, height, width, 3) uint8, images that the ranges were measured on.
        advance: called after each image.
    """

    def values() -> Iterator[list[Values]]:
        for found in activations(model, list(ranges), pixels):
            yield found
            advance()

    return least_error(values(), ranges)


def least_error(values: Iterable[Sequence[Values]], ranges: Ranges) -> Ranges:
    """Return for each tensor the range with the least mean squared error of its values as 8-bit integers.

    As in Banner et al. 2019 (arXiv:1810.05723), but from the histogram itself rather than a distribution fitted to it.

    Args:
        values: values of all tensors, repeatedly, for example once per image.
        ranges: lowest and highest value by the tensor's name, in the same order.
    """
    counts = np.zeros((len(ranges), BINS))
    for found in values:
        for place, (value, ends) in enumerate(zip(found, ranges.values(), strict=True)):
            counts[place] += np.histogram(value, BINS, ends)[0]
    return {name: _least_error(count, *ends) for count, (name, ends) in zip(counts, ranges.items(), strict=True)}


def _least_error(counts: npt.NDArray[np.float64], low: float, high: float) -> tuple[float, float]:
    """Return the best ends within [low, high]. Zero is always included, because the quantizer needs it for padding.

    The error of a pair of ends is the squared clipping error of the values outside plus step**2 / 12 for each value.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 0:
        return low, high
    edges = np.linspace(low, high, len(counts) + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    best, least = (low, high), np.inf
    # The clipping errors of the two ends are independent, so each is summed only once.
    below = {a: float(counts[middles < a] @ np.square(middles[middles < a] - a)) for a in {low * s for s in SHARES}}
    above = {b: float(counts[middles > b] @ np.square(middles[middles > b] - b)) for b in {high * s for s in SHARES}}
    total = counts.sum()
    for a, under in below.items():
        for b, over in above.items():
            error = under + over + total * ((b - a) / STEPS) ** 2 / 12
            if error < least:
                best, least = (a, b), error
    return best
