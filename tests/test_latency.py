from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.latency import Histogram

VALUES = st.lists(st.floats(0.002, 3_000_000), min_size=1, max_size=200)


@given(VALUES)
def test_percentiles_are_those_of_the_values_to_within_one_percent(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    found = histogram.taken()
    assert found.count == len(values)
    for share, estimate in ((50, found.p50), (95, found.p95), (99, found.p99)):
        exact = float(np.percentile(values, share, method="inverted_cdf"))
        assert estimate == pytest.approx(exact, rel=0.01, abs=0.001)
    assert found.max == pytest.approx(max(values), rel=0.02, abs=0.001)


@given(VALUES, VALUES)
def test_what_was_taken_is_not_taken_again(first: list[float], second: list[float]) -> None:
    histogram, fresh = Histogram(), Histogram()
    for value in first:
        histogram.add(value)
    histogram.taken()
    for value in second:
        histogram.add(value)
        fresh.add(value)
    assert histogram.taken() == fresh.taken()
    assert histogram.taken().count == 0
    assert histogram.count == len(first) + len(second)
    assert histogram.total_ms == pytest.approx(sum(first) + sum(second))


@pytest.mark.parametrize("value", [-1.0, 0.0, 1e12, float("inf"), float("nan")])
def test_no_value_is_too_strange_to_be_counted(value: float) -> None:
    histogram = Histogram()
    histogram.add(value)
    assert histogram.taken().count == 1


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
        taken += histogram.taken().count
    thread.join()
    assert taken + histogram.taken().count == 50_000


def test_cumulative_counts_are_for_ever() -> None:
    histogram = Histogram()
    for value in (1, 2, 4, 8, 16):
        histogram.add(value)
    histogram.taken()
    assert histogram.at_most((0.5, 3, 10, 100)) == [0, 2, 4, 5]
