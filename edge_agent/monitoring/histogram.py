"""A histogram of durations with constant size and constant relative error, after HdrHistogram (hdrhistogram.org)."""

from __future__ import annotations

from math import ceil, log

import numpy as np

from ..messages import Percentiles

_LEAST_MS = 0.001
_RATIO = 1.01
"""Ratio of neighbouring bucket bounds; the relative error is 0.5 %."""
_BUCKETS = 1 + ceil(float(np.log(3_600_000 / _LEAST_MS) / np.log(_RATIO)))
_LOG_RATIO = float(np.log(_RATIO))


class Histogram:
    """Counts of durations in milliseconds, from a microsecond to an hour.

    One thread may call `add` while another one calls `take`; neither waits for the other. The counts only grow, and
    `take` remembers the previous counts, so that no value is lost or counted twice.
    """

    def __init__(self) -> None:
        self._counts = [0] * (_BUCKETS + 1)
        self._taken = np.zeros(_BUCKETS + 1, np.int64)
        self._max = 0.0
        self.total_ms = 0.0
        """Sum of all values ever added."""

    def add(self, ms: float) -> None:
        """Add a value. It is clipped to the range from a microsecond to an hour; NaN counts as 0."""
        ms = min(max(ms, 0.0), 3_600_000.0) if ms == ms else 0.0  # noqa: PLR0124  only not-a-number differs from itself
        self._counts[_bucket(ms)] += 1
        self.total_ms += ms
        self._max = max(self._max, ms)

    @property
    def count(self) -> int:
        """Number of values ever added."""
        return sum(self._counts)

    def at_most(self, bounds_ms: tuple[float, ...]) -> list[int]:
        """Return for each bound the number of values ever added that are at most this bound, within the error."""
        cumulative = np.cumsum(self._counts)
        return [int(cumulative[_bucket(bound)]) for bound in bounds_ms]

    def take(self) -> Percentiles:
        """Return the percentiles of the values added since the previous call; all 0 if there are none."""
        counts, highest = np.array(self._counts, np.int64), self._max
        self._max = 0.0
        new = counts - self._taken
        self._taken = counts
        total = int(new.sum())
        if not total:
            return Percentiles(0, 0.0, 0.0, 0.0, 0.0)
        cumulative = np.cumsum(new)

        def percentile(share: float) -> float:
            return round(_middle(int(np.searchsorted(cumulative, ceil(share * total)))), 3)

        # The maximum is exact, unless a value was added between the two statements above; then its bucket is used.
        top = max(highest, _middle(int(np.flatnonzero(new)[-1])) / _RATIO)
        return Percentiles(total, percentile(0.5), percentile(0.95), percentile(0.99), round(top, 3))


def _bucket(ms: float) -> int:
    if not ms > _LEAST_MS:
        return 0
    return min(_BUCKETS, 1 + int(log(ms / _LEAST_MS) / _LOG_RATIO))


def _middle(bucket: int) -> float:
    """Return the value, in ms, that represents a bucket: the geometric mean of its bounds."""
    return _LEAST_MS if bucket == 0 else _LEAST_MS * _RATIO ** (bucket - 0.5)
