"""Detection of warm-up and of disturbances, from the measured times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BATCH = 5
MAX_DRIFT = 0.05
"""Largest relative difference between the medians of two halves of a round, or of two rounds, that is not reported."""
MAX_OTHERS = 0.1
"""Number of cores that other processes may keep busy; the system of a Pi occasionally uses a tenth of a core."""
MAX_STOLEN = 0.02
"""Number of cores that the host of a virtual machine may give to other virtual machines."""


def warm_from(times_ms: Sequence[float]) -> int | None:
    """Return the index from which the times are steady; None if they are not steady yet, or there are fewer than 20.

    The times before this index are warm-up. The index is chosen such that the standard error of the times after it is
    as small as possible (MSER-5: White, Cobb and Spratt, "A comparison of five steady-state truncation heuristics for
    simulation", 2000). Unlike MSER-5, this function groups five values by their median instead of their mean, because
    an interruption by the system is not a sign of warm-up. Only the first half of the times is searched, because the
    last few values may vary little by chance. If the smallest error is at the end of the first half, there are too few
    values to decide, and None is returned.

    Args:
        times_ms: times in the order of measurement, milliseconds.
    """
    grouped = np.asarray(times_ms[: len(times_ms) // BATCH * BATCH], np.float64).reshape(-1, BATCH)
    batches = np.median(grouped, axis=1)
    count = len(batches)
    if count < 4:
        return None
    # Sums from each batch to the end give the variance of every tail at once.
    left = np.arange(count, 0, -1)
    sums, squares = np.cumsum(batches[::-1])[::-1], np.cumsum(batches[::-1] ** 2)[::-1]
    errors = (squares - sums**2 / left) / left**2
    best = int(np.argmin(errors[: count // 2 + 1]))
    return best * BATCH if best < count // 2 else None


def drift(times_ms: npt.ArrayLike) -> float:
    """Return the difference between the medians of the first and the second half, relative to the lower median."""
    times = np.asarray(times_ms, np.float64)
    if len(times) < 2:
        return 0.0
    halves = sorted(float(np.median(half)) for half in (times[: len(times) // 2], times[len(times) // 2 :]))
    return halves[1] / halves[0] - 1 if halves[0] > 0 else 0.0


def disturbances(
    rounds_ms: Sequence[Sequence[float]], *, others: float, stolen: float, throttled: Sequence[str], hotter_c: float
) -> list[str]:
    """Return notes for people on anything that disturbed the measurement; empty if nothing did.

    Args:
        rounds_ms: for each round, the times after warm-up in milliseconds.
        others: number of cores that other processes kept busy during the measurement.
        stolen: number of cores that the host of a virtual machine gave to other virtual machines.
        throttled: flags of a Raspberry Pi's firmware that were set.
        hotter_c: rise of the processor temperature in a round, degrees Celsius.
    """
    notes = []
    medians = sorted(float(np.median(times)) for times in rounds_ms)
    if medians[0] > 0 and medians[-1] / medians[0] - 1 > MAX_DRIFT:
        notes.append(f"the machine is noisy: the rounds differ by {100 * (medians[-1] / medians[0] - 1):.0f} %")
    change = max(drift(times) for times in rounds_ms)
    if change > MAX_DRIFT:
        cause = f"; the processor became {hotter_c:.0f} degrees warmer" if hotter_c >= 5 else ""
        notes.append(f"the median changed by {100 * change:.0f} % between the two halves of a round{cause}")
    if others > MAX_OTHERS:
        notes.append(f"other processes kept {others:.1f} cores busy")
    if stolen > MAX_STOLEN:
        notes.append(f"the host of this virtual machine took {100 * stolen:.0f} % of a core")
    if throttled:
        notes.append(f"the firmware reported {', '.join(throttled)}")
    return notes
