"""When a model has warmed up, and whether what was measured can be trusted: arithmetic on times alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BATCH = 5
MOST_DRIFT = 0.05
"""Between two halves, or two rounds, of what should be the same: the promise of a report."""
MOST_OTHERS = 0.1
"""Cores that others may keep busy: 5 % of a Pi's four is what its system takes now and then."""
MOST_STOLEN = 0.02


def warm_from(times_ms: Sequence[float]) -> int | None:
    """Index from which times are steady; None while they are not yet.

    The truncation that makes the rest's standard error least (MSER-5: White, Cobb and Spratt, "A comparison of five
    steady-state truncation heuristics for simulation", 2000), on medians of five where they take means: a time that the
    system interrupted is no sign of warming up. Looked for in the first half, for a few last times vary little by
    chance; least at its end says that there are too few to tell.

    Args:
        times_ms: in their order.
    """
    grouped = np.asarray(times_ms[: len(times_ms) // BATCH * BATCH], np.float64).reshape(-1, BATCH)
    batches = np.median(grouped, axis=1)
    count = len(batches)
    if count < 4:
        return None
    # Sums from each batch to the end: the variance of every tail at once.
    left = np.arange(count, 0, -1)
    sums, squares = np.cumsum(batches[::-1])[::-1], np.cumsum(batches[::-1] ** 2)[::-1]
    errors = (squares - sums**2 / left) / left**2
    best = int(np.argmin(errors[: count // 2 + 1]))
    return best * BATCH if best < count // 2 else None


def drift(times_ms: npt.ArrayLike) -> float:
    """How far the medians of the first and the second half are apart, of the lower one."""
    times = np.asarray(times_ms, np.float64)
    if len(times) < 2:
        return 0.0
    halves = sorted(float(np.median(half)) for half in (times[: len(times) // 2], times[len(times) // 2 :]))
    return halves[1] / halves[0] - 1 if halves[0] > 0 else 0.0


def disturbances(
    rounds_ms: Sequence[Sequence[float]], *, others: float, stolen: float, throttled: Sequence[str], hotter_c: float
) -> list[str]:
    """What speaks against what was measured, for people; empty where nothing does.

    Args:
        rounds_ms: times of each round, once warm; the rounds should be the same.
        others: cores that other processes kept busy meanwhile.
        stolen: cores that the host of a virtual machine gave to others.
        throttled: flags of a Raspberry Pi's firmware.
        hotter_c: degrees the processor gained in a round.
    """
    notes = []
    medians = sorted(float(np.median(times)) for times in rounds_ms)
    if medians[0] > 0 and medians[-1] / medians[0] - 1 > MOST_DRIFT:
        notes.append(f"the machine is noisy: its rounds differ by {100 * (medians[-1] / medians[0] - 1):.0f} %")
    changed = max(drift(times) for times in rounds_ms)
    if changed > MOST_DRIFT:
        cause = f", {hotter_c:.0f} degrees warmer" if hotter_c >= 5 else ""
        notes.append(f"a round changed by {100 * changed:.0f} % from its first to its second half{cause}")
    if others > MOST_OTHERS:
        notes.append(f"other processes kept {others:.1f} cores busy")
    if stolen > MOST_STOLEN:
        notes.append(f"the host of this virtual machine took {100 * stolen:.0f} % of a core")
    if throttled:
        notes.append(f"the firmware says {', '.join(throttled)}")
    return notes
