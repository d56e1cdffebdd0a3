"""Range clipping: narrows the range of a tensor, so that 8-bit integers represent its values with smaller steps.

The few values outside the narrower range are clipped. A range is narrowed only if the error that the smaller steps
avoid is larger than the error that the clipping adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edge_agent.preprocessing import Pixels

from .observers import Ranges, Values, activations

BINS = 2048
STEPS = 255
SHARES = np.linspace(1.0, 0.2, 33)
"""Factors by which each end of a range is multiplied; the results are tried as the new end."""


def clipped(model: bytes, ranges: Ranges, pixels: Pixels, *, advance: Callable[[], object] = lambda: None) -> Ranges:
    """Measure the values of a model's tensors and return the best range of each tensor.

    With this range, storing the values as 8-bit integers causes the least mean squared error.

    Args:
        model: the float32 ``.tflite``.
        ranges: lowest and highest value of each activation.
        pixels: (images, height, width, 3) uint8, images on which these ranges were measured.
        advance: called after each image.
    """

    def values() -> Iterator[list[Values]]:
        for found in activations(model, list(ranges), pixels):
            yield found
            advance()

    return least_error(values(), ranges)


def least_error(values: Iterable[Sequence[Values]], ranges: Ranges) -> Ranges:
    """Return for each tensor the range with which its values have the least mean squared error as 8-bit integers.

    The method follows Banner et al. 2019 (arXiv:1810.05723), but computes the error from the histogram of the values
    and not from a distribution fitted to them.

    Args:
        values: yields the values of all tensors several times, for example once per image.
        ranges: maps the name of each tensor to its lowest and highest value, in the order of the tensors in ``values``.
    """
    counts = np.zeros((len(ranges), BINS))
    for found in values:
        for place, (value, ends) in enumerate(zip(found, ranges.values(), strict=True)):
            counts[place] += np.histogram(value, BINS, ends)[0]
    return {name: _least_error(count, *ends) for count, (name, ends) in zip(counts, ranges.items(), strict=True)}


def _least_error(counts: npt.NDArray[np.float64], low: float, high: float) -> tuple[float, float]:
    """Return the best range within [low, high], extended to include zero, which the quantizer needs for padding.

    The error of a range is the sum of two parts: the squared clipping errors of the values outside the range, and
    step**2 / 12 for each value.
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
