from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.monitoring.histogram import Histogram

VALUES = st.lists(st.floats(0.002, 3_000_000), min_size=1, max_size=200)


@given(VALUES)
def test_percentiles_are_those_of_the_values_to_within_half_a_percent(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    found = histogram.take()
    assert found.count == len(values)
    for share, estimate in ((50, found.p50), (95, found.p95), (99, found.p99)):
        exact = float(np.percentile(values, share, method="inverted_cdf"))
        assert estimate == pytest.approx(exact, rel=0.0051, abs=0.001)
    assert found.max == round(max(values), 3)


@given(VALUES, VALUES)
def test_what_was_taken_is_not_taken_again(first: list[float], second: list[float]) -> None:
    histogram, fresh = Histogram(), Histogram()
    for value in first:
        histogram.add(value)
    histogram.take()
    for value in second:
        histogram.add(value)
        fresh.add(value)
    assert histogram.take() == fresh.take()
    assert histogram.take().count == 0
    assert histogram.count == len(first) + len(second)
    assert histogram.total_ms == pytest.approx(sum(first) + sum(second))


HOUR_MS = 3_600_000.0


@pytest.mark.parametrize(
    ("value", "counted_as"),
    [(-1.0, 0.0), (0.0, 0.0), (1e12, HOUR_MS), (float("inf"), HOUR_MS), (float("nan"), 0.0)],
)
def test_no_value_is_too_strange_to_be_counted(value: float, counted_as: float) -> None:
    histogram = Histogram()
    histogram.add(value)
    assert histogram.total_ms == counted_as
    found = histogram.take()
    assert found.count == 1
    assert found.max == pytest.approx(counted_as, abs=0.001)


def test_nothing_is_lost_between_the_one_who_adds_and_the_one_who_takes() -> None:
    histogram, done = Histogram(), threading.Event()

    def add() -> None:
        for number in range(50_000):
            histogram.add(1 + number % 7)
        done.set()

    thread = threading.Thread(target=add)
    thread.start()
    taken = 0
    while not done.is_set():
        taken += histogram.take().count
    thread.join()
    assert taken + histogram.take().count == 50_000


def test_cumulative_counts_are_for_ever() -> None:
    histogram = Histogram()
    for value in (1, 2, 4, 8, 16):
        histogram.add(value)
    histogram.take()
    assert histogram.at_most((0.5, 3, 10, 100)) == [0, 2, 4, 5]
    assert histogram.at_most((1, 2, 16)) == [1, 2, 5]  # a bound itself is not above it
