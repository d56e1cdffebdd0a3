"""Child process that runs the canary test; see `edge_agent.store.canary`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import EdgeloopError, StoreError, one_line
from ..monitoring.system import peak_memory_mb

if TYPE_CHECKING:
    from ..inference.evaluation import Evaluation
from .canary import CanaryReport, CanaryResult

CLEAR_MARGIN = 0.3
"""An image counts as clear if its two highest expected scores differ by at least this much.

Scores of one int8 file differed by up to 0.08 between x86-64 and aarch64, so a clear image keeps its top class on any
device that works correctly."""
MIN_AGREEMENT = 0.9
"""Share of the clear images that must keep their top class. So 2 of 24 may change: the difference of 0.08 was measured
with one model, and with another model it may be 0.15."""
MAX_SCORE_DIFFERENCE = 0.1
"""Limit for `CanaryResult.score_difference`; the worst single difference measured was 0.08."""
MAX_ACCURACY_LOSS = 0.15
"""Largest accepted loss of accuracy. Of about 30 images in a bundle, 6 are close calls, and each of these may lose its
correct top class."""
_MIB = 2**20
# Address space that is reserved but never used: LiteRT and OpenCV reserve a stack for each thread. Measured with
# RLIMIT_DATA on EfficientNet-Lite0 int8: 80 MB resident, 262 MB of data; the model fails with less than 250 MB.
_RESERVED_MB = 512


def _child(argument: str) -> None:
    request = json.loads(argument)
    sender: int = request["sender"]
    _limit_resources(request["timeout_s"], request["memory_mb"])
    try:
        report = CanaryReport(result=_run(request, lambda: os.write(sender, b".")))
    except EdgeloopError as error:
        report = CanaryReport(error=one_line(error))
    except MemoryError:
        report = CanaryReport(error=f"the canary test used more than {request['memory_mb']} MB of memory")
    except Exception as error:  # noqa: BLE001  the parent must get a report for every error
        report = CanaryReport(error=f"{type(error).__name__}: {one_line(error)}")
    data = msgspec.json.encode(report)
    while data:
        data = data[os.write(sender, data) :]


def _limit_resources(timeout_s: float, memory_mb: int) -> None:
    """Set resource limits that hold even if the parent dies, and disable core dumps, which would fill the SD card."""
    import resource

    signal.setitimer(signal.ITIMER_REAL, timeout_s + 1)  # its default action ends the process
    data = (memory_mb + _RESERVED_MB) * _MIB
    for kind, limit in ((resource.RLIMIT_DATA, data), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 16 * _MIB)):
        hard = resource.getrlimit(kind)[1]
        allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (allowed, allowed))
    with suppress(OSError):
        # If the device runs out of memory, the kernel kills this process first, not the agent.
        Path("/proc/self/oom_score_adj").write_text("1000")


def _run(request: dict[str, Any], on_image: Callable[[], object]) -> CanaryResult:
    import numpy as np

    from ..bundle import open_bundle
    from ..images import decode_image
    from ..inference.classifier import Classifier
    from ..inference.evaluation import Evaluation

    bundle = open_bundle(request["bundle"])
    expected = bundle.canary()
    if not expected:
        raise StoreError("the bundle has no canary images; convert the run again")
    _become_owner(Path(request["bundle"]))
    classifier = Classifier.from_bundle(
        bundle,
        threads=request["threads"],
        delegate=request["delegate"],
        # As the agent does. An accelerator that serves one process at a time is busy while the agent runs.
        on_cpu_instead=lambda _error: None,
    )
    scores, times = [], []
    with classifier:
        for image in expected:
            result = classifier.classify(decode_image(bundle.read(image.file), image.file))
            scores.append(result.scores)
            times.append(result.inference_ms)
            on_image()
    truth = np.array([bundle.labels.index(image.label) for image in expected], np.intp)
    desktop = Evaluation(bundle.labels, truth, np.array([image.scores for image in expected], np.float32))
    device = Evaluation(bundle.labels, truth, np.stack(scores), np.array(times))
    finite = bool(np.isfinite(device.scores).all())
    return CanaryResult(
        digest=bundle.digest,
        images=len(expected),
        accuracy=device.accuracy,
        expected_accuracy=desktop.accuracy,
        agreement=device.agreement(desktop),
        score_difference=_score_difference(device, desktop) if finite else 1.0,
        p50_ms=float(np.median(device.inference_ms)),
        memory_mb=round(peak_memory_mb("self"), 1),
        threads=classifier.threads,
        runtime=classifier.runtime,
        delegate=classifier.delegate,
        reasons=tuple(problems_of(device, desktop)) if finite else ("some of its scores are not finite numbers",),
    )


def problems_of(device: Evaluation, desktop: Evaluation) -> list[str]:
    """Return the reasons why the scores from this device are not acceptable; empty if they are.

    Args:
        device: scores of the canary images on this device.
        desktop: scores of the same images that the bundle expects.
    """
    import numpy as np

    problems = []
    ordered = np.sort(desktop.scores, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] >= CLEAR_MARGIN
    same = device.predicted[clear] == desktop.predicted[clear]
    if same.size and same.mean() < MIN_AGREEMENT:
        problems.append(f"{same.size - same.sum()} of {same.size} clear images get another class than on the desktop")
    difference = _score_difference(device, desktop)
    if difference > MAX_SCORE_DIFFERENCE:
        problems.append(
            f"its scores differ by {difference:.2f} on average from the expected ones; between processors, up to "
            f"{MAX_SCORE_DIFFERENCE} is normal"
        )
    if device.accuracy < desktop.accuracy - MAX_ACCURACY_LOSS:
        problems.append(
            f"its accuracy on the canary images is {100 * device.accuracy:.0f} %, "
            f"on the desktop it was {100 * desktop.accuracy:.0f} %"
        )
    return problems


def _score_difference(device: Evaluation, desktop: Evaluation) -> float:
    return float(abs(device.scores - desktop.scores).max(axis=1).mean())


def _become_owner(bundle: Path) -> None:
    """Change from root to the user who owns the bundle, so that the model never runs as root for another user."""
    owner = bundle.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    import pwd

    try:
        os.initgroups(pwd.getpwuid(owner.st_uid).pw_name, owner.st_gid)
    except KeyError:
        os.setgroups([])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    if not os.access(os.__file__, os.R_OK, effective_ids=True):
        # This Python is in root's home, where that user cannot read it. It is not the agent's, but there is no other.
        os.seteuid(0)
        return
    os.seteuid(0)
    os.setresgid(owner.st_gid, owner.st_gid, owner.st_gid)
    os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)


if __name__ == "__main__":
    _child(sys.argv[1])
