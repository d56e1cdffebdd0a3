"""The process in which a model is tried; see `edge_agent.store.canary`."""

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
"""Between the two highest expected scores. Scores of one int8 file were up to 0.08 apart between x86-64 and aarch64, so
an image this clear keeps its first class on any sound device."""


LEAST_AGREEMENT = 0.9
"""Share of the clear images that must keep their first class: 2 of 24 may not, for one model's 0.08 may be another's
0.15."""


MOST_OFF = 0.1
"""Mean over the images of how far the worst score is from the expected one; 0.08 was the worst of all of them."""


MOST_LOST = 0.15
"""Accuracy that may be lost. A bundle has 6 close calls among some 30 images, and all that are right may turn."""


_MIB = 2**20


# Address space that is never touched: LiteRT and OpenCV reserve a stack for each thread. Measured with RLIMIT_DATA on
# EfficientNet-Lite0 int8: 80 MB resident, 262 MB of data; refused under 250 MB.
_RESERVED_MB = 512


def _child(argument: str) -> None:
    given = json.loads(argument)
    sender: int = given["sender"]
    _bound(given["timeout_s"], given["memory_mb"])
    try:
        report = CanaryReport(proof=_tried(given, lambda: os.write(sender, b".")))
    except EdgeloopError as error:
        report = CanaryReport(error=one_line(error))
    except MemoryError:
        report = CanaryReport(error=f"it took more than {given['memory_mb']} MB of memory")
    except Exception as error:  # noqa: BLE001  whatever it is, the parent has to be told
        report = CanaryReport(error=f"{type(error).__name__}: {one_line(error)}")
    data = msgspec.json.encode(report)
    while data:
        data = data[os.write(sender, data) :]


def _bound(timeout_s: float, memory_mb: int) -> None:
    """Limits that hold although the parent be killed, and no file of the memory on the card after a crash."""
    import resource

    signal.setitimer(signal.ITIMER_REAL, timeout_s + 1)  # its default action ends the process
    data = (memory_mb + _RESERVED_MB) * _MIB
    for kind, wanted in ((resource.RLIMIT_DATA, data), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 16 * _MIB)):
        hard = resource.getrlimit(kind)[1]
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (most, most))
    with suppress(OSError):
        # Should the device run out of memory, this goes first, not the agent.
        Path("/proc/self/oom_score_adj").write_text("1000")


def _tried(given: dict[str, Any], done: Callable[[], object]) -> CanaryResult:
    import numpy as np

    from ..bundle import open_bundle
    from ..images import decode_image
    from ..inference.classifier import Classifier
    from ..inference.evaluation import Evaluation

    bundle = open_bundle(given["bundle"])
    expected = bundle.canary()
    if not expected:
        raise StoreError("it has no canary images to prove itself with; convert the run again")
    _become_owner(Path(given["bundle"]))
    classifier = Classifier.from_bundle(
        bundle,
        threads=given["threads"],
        delegate=given["delegate"],
        # As the agent loads it: an accelerator that serves one process at a time is busy while the agent runs.
        on_cpu_instead=lambda _error: None,
    )
    scores, times = [], []
    with classifier:
        for image in expected:
            result = classifier.classify(decode_image(bundle.read(image.file), image.file))
            scores.append(result.scores)
            times.append(result.inference_ms)
            done()
    truth = np.array([bundle.labels.index(image.label) for image in expected], np.intp)
    there = Evaluation(bundle.labels, truth, np.array([image.scores for image in expected], np.float32))
    here = Evaluation(bundle.labels, truth, np.stack(scores), np.array(times))
    whole = bool(np.isfinite(here.scores).all())
    return CanaryResult(
        digest=bundle.digest,
        images=len(expected),
        accuracy=here.accuracy,
        expected_accuracy=there.accuracy,
        agreement=here.agreement(there),
        off=_off(here, there) if whole else 1.0,
        p50_ms=float(np.median(here.inference_ms)),
        memory_mb=round(peak_memory_mb("self"), 1),
        threads=classifier.threads,
        runtime=classifier.runtime,
        delegate=classifier.delegate,
        reasons=tuple(problems_of(here, there)) if whole else ("some of its scores are not numbers",),
    )


def problems_of(here: Evaluation, there: Evaluation) -> list[str]:
    """Why scores from this device are not those of a sound one; empty when they are.

    Args:
        here: the canary images on this device.
        there: the same as the bundle expects them.
    """
    import numpy as np

    problems = []
    ordered = np.sort(there.scores, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] >= CLEAR_MARGIN
    kept = here.predicted[clear] == there.predicted[clear]
    if kept.size and kept.mean() < LEAST_AGREEMENT:
        problems.append(
            f"{kept.size - kept.sum()} of {kept.size} clear images are taken for another class than where it was made"
        )
    off = _off(here, there)
    if off > MOST_OFF:
        problems.append(f"its scores are {off:.2f} off on average; {MOST_OFF} is what processors differ by")
    if here.accuracy < there.accuracy - MOST_LOST:
        problems.append(
            f"it recognises {100 * here.accuracy:.0f} % of its canary images, "
            f"{100 * there.accuracy:.0f} % where it was made"
        )
    return problems


def _off(here: Evaluation, there: Evaluation) -> float:
    return float(abs(here.scores - there.scores).max(axis=1).mean())


def _become_owner(bundle: Path) -> None:
    """What root installs for the agent's user is interpreted as that user."""
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
        # A Python in root's home, which that user cannot run: this is not the agent's, and there is no other to use.
        os.seteuid(0)
        return
    os.seteuid(0)
    os.setresgid(owner.st_gid, owner.st_gid, owner.st_gid)
    os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)


if __name__ == "__main__":
    _child(sys.argv[1])
