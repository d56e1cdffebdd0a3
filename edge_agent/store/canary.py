"""A model proves itself on this device: the bundle's canary pictures, in a process of their own.

A model is data that native code interprets. One that crashes the interpreter, hangs or eats the memory takes down the
child process that tries it, never the agent: `prove` starts `python -m edge_agent.store.canary`, bounds its time and
memory,
and judges what it says by accuracy and a tolerance, for processors differ.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import EdgeloopError, StoreError, one_line

if TYPE_CHECKING:
    from ..inference.evaluation import Evaluation

CLEAR_MARGIN = 0.3
"""Between the two highest expected scores. Scores of one int8 file were up to 0.08 apart between x86-64 and aarch64, so
a picture this clear keeps its first class on any sound device."""
LEAST_AGREEMENT = 0.9
"""Share of the clear pictures that must keep their first class: 2 of 24 may not, for one model's 0.08 may be another's
0.15."""
MOST_OFF = 0.1
"""Mean over the pictures of how far the worst score is from the expected one; 0.08 was the worst of all of them."""
MOST_LOST = 0.15
"""Accuracy that may be lost. A bundle has 6 close calls among some 30 pictures, and all that are right may turn."""

_REPORT_LIMIT = 64 * 1024
_POLL_S = 0.05
_MIB = 2**20
# Address space that is never touched: LiteRT and OpenCV reserve a stack for each thread. Measured with RLIMIT_DATA on
# EfficientNet-Lite0 int8: 80 MB resident, 262 MB of data; refused under 250 MB.
_RESERVED_MB = 512
_MOST_MEMORY_MB = 1024
# What a delegate's driver or a virtual environment may need; nothing else of the environment, which may hold passwords.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "TMPDIR")


class Proof(msgspec.Struct, frozen=True):
    """How a model did on its canary pictures, here.

    ``reasons``: why it is refused; empty when it is not. ``accuracy``: share of pictures whose first class is the true
    one; ``expected_accuracy`` is the desktop's. ``agreement``: share with the same first class as there. ``off``: mean
    over the pictures of the largest difference of a score. ``p50_ms``: median of invoke, milliseconds. ``memory_mb``:
    peak resident, of the whole process. ``delegate``: None where it ran on the CPU.
    """

    digest: str
    pictures: int
    accuracy: float
    expected_accuracy: float
    agreement: float
    off: float
    p50_ms: float
    memory_mb: float
    threads: int
    runtime: str
    delegate: str | None
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the model may run here."""
        return not self.reasons


@dataclass(frozen=True)
class Limits:
    """What a model may use to prove itself.

    Attributes:
        threads: inference threads, the agent's; one per core up to four when left out.
        delegate: the agent's; one that does not load is passed over, as the agent does.
        timeout_s: seconds for all of it, start included. ResNet50 in float32 takes 45 s on a Pi Zero 2.
        memory_mb: resident megabytes; four fifths of what is free at most 1 GB when left out.
    """

    threads: int | None = None
    delegate: str | None = None
    timeout_s: float = 120.0
    memory_mb: int | None = None


def prove(
    bundle: Path,
    limits: Limits = Limits(),
    *,
    name: str | None = None,
    progress: Callable[[int], object] = lambda _pictures: None,
) -> Proof:
    """Run a bundle's canary pictures in a process of its own. A proof that did not pass says why.

    Args:
        bundle: the file, or the directory it was unpacked into.
        limits: see `Limits`.
        name: of the bundle in messages; its path when left out.
        progress: called with the number of pictures done.

    Raises:
        StoreError: the model crashed, hung, took too much memory, or could not be tried.
    """
    name = str(bundle) if name is None else name
    memory_mb = _free_memory_mb() if limits.memory_mb is None else limits.memory_mb
    receiver, sender = os.pipe()
    given = {
        "bundle": os.fspath(bundle.absolute()),
        "threads": limits.threads,
        "delegate": limits.delegate,
        "timeout_s": limits.timeout_s,
        "memory_mb": memory_mb,
        "sender": sender,
    }
    try:
        child = subprocess.Popen(
            # -P: a file in the working directory must not pass for one of our modules.
            [sys.executable, "-P", "-m", "edge_agent.store.canary", json.dumps(given)],
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[sender],
            start_new_session=True,
        )
    except OSError as error:
        os.close(receiver)
        raise StoreError(f"{name}: cannot be tried: {error.strerror or error}") from error
    finally:
        os.close(sender)
    try:
        said = _listen(child, receiver, limits.timeout_s, memory_mb, progress)
    except StoreError as error:
        raise StoreError(f"{name}: the model is refused: {error}") from None
    finally:
        os.close(receiver)
        # Before it is reaped, so that the group's number cannot be another's.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        code = child.wait()
    return _understood(name, said, code)


def _listen(
    child: subprocess.Popen[bytes], receiver: int, timeout_s: float, memory_mb: int, progress: Callable[[int], object]
) -> bytes:
    """What the child says until it ends: a dot for each picture, then its report."""
    deadline = time.monotonic() + timeout_s
    said, open_ = b"", True
    while open_ or not _ended(child.pid):
        if peak_memory_mb(child.pid) > memory_mb:
            raise StoreError(f"it took more than {memory_mb} MB of memory")
        if time.monotonic() > deadline:
            raise StoreError(f"it was not through after {timeout_s:g} s")
        if not open_:
            time.sleep(_POLL_S / 5)
        elif select.select([receiver], [], [], _POLL_S)[0]:
            heard = os.read(receiver, 65536)
            said, open_ = said + heard, bool(heard)
            if len(said) > _REPORT_LIMIT:
                raise StoreError("it said more than any sound one does")
            progress(len(said) - len(said.lstrip(b".")))
    return said


class _Report(msgspec.Struct):
    """The last thing the child says: a proof, or why there is none."""

    proof: Proof | None = None
    error: str | None = None


def _understood(name: str, said: bytes, code: int) -> Proof:
    try:
        report = msgspec.json.decode(said.lstrip(b"."), type=_Report)
    except (msgspec.DecodeError, UnicodeDecodeError):
        report = _Report()
    if report.error is not None:
        raise StoreError(f"{name}: the model is refused: {report.error[:1000]}")
    # The group was killed after it had ended, so a child that ended well has 0 here.
    if report.proof is None or code != 0:
        raise StoreError(f"{name}: the model is refused: the process that tried it {_ending(code)}")
    return report.proof


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with {code} and no word"
    with suppress(ValueError):
        return f"died of {signal.Signals(-code).name}"
    return f"died of signal {-code}"


def _ended(pid: int) -> bool:
    """Whether a child has ended, without reaping it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def peak_memory_mb(pid: int | str) -> float:
    """Peak resident megabytes of a process; 0 where it cannot be told."""
    return _field_kib(f"/proc/{pid}/status", "VmHWM") / 1024


def _free_memory_mb() -> int:
    free_mb = _field_kib("/proc/meminfo", "MemAvailable") // 1024
    return min(_MOST_MEMORY_MB, free_mb * 4 // 5) if free_mb else _MOST_MEMORY_MB


def _field_kib(path: str, name: str) -> int:
    with suppress(OSError, ValueError), open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    return 0


# --- in the child ------------------------------------------------------------------------------


def _child(argument: str) -> None:
    given = json.loads(argument)
    sender: int = given["sender"]
    _bound(given["timeout_s"], given["memory_mb"])
    try:
        report = _Report(proof=_tried(given, lambda: os.write(sender, b".")))
    except EdgeloopError as error:
        report = _Report(error=one_line(error))
    except MemoryError:
        report = _Report(error=f"it took more than {given['memory_mb']} MB of memory")
    except Exception as error:  # noqa: BLE001  whatever it is, the parent has to be told
        report = _Report(error=f"{type(error).__name__}: {one_line(error)}")
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


def _tried(given: dict[str, Any], done: Callable[[], object]) -> Proof:
    import numpy as np

    from ..bundle import open_bundle
    from ..images import decode_picture
    from ..inference.classifier import Classifier
    from ..inference.evaluation import Evaluation

    bundle = open_bundle(given["bundle"])
    expected = bundle.canary()
    if not expected:
        raise StoreError("it has no canary pictures to prove itself with; convert the run again")
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
        for picture in expected:
            result = classifier.classify(decode_picture(bundle.read(picture.file), picture.file))
            scores.append(result.scores)
            times.append(result.inference_ms)
            done()
    truth = np.array([bundle.labels.index(picture.label) for picture in expected], np.intp)
    there = Evaluation(bundle.labels, truth, np.array([picture.scores for picture in expected], np.float32))
    here = Evaluation(bundle.labels, truth, np.stack(scores), np.array(times))
    whole = bool(np.isfinite(here.scores).all())
    return Proof(
        digest=bundle.digest,
        pictures=len(expected),
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
        here: the canary pictures on this device.
        there: the same as the bundle expects them.
    """
    import numpy as np

    problems = []
    ordered = np.sort(there.scores, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] >= CLEAR_MARGIN
    kept = here.predicted[clear] == there.predicted[clear]
    if kept.size and kept.mean() < LEAST_AGREEMENT:
        problems.append(
            f"{kept.size - kept.sum()} of {kept.size} clear pictures are taken for another class than where it was made"
        )
    off = _off(here, there)
    if off > MOST_OFF:
        problems.append(f"its scores are {off:.2f} off on average; {MOST_OFF} is what processors differ by")
    if here.accuracy < there.accuracy - MOST_LOST:
        problems.append(
            f"it recognises {100 * here.accuracy:.0f} % of its canary pictures, "
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
