"""A model proves itself on this device: the bundle's canary images, in a process of their own.

A model is data that native code interprets. One that crashes the interpreter, hangs or eats the memory takes down the
child process that tries it, never the agent: `run_canary` starts `python -m edge_agent.store.canary_worker`,
bounds its time and memory, and judges what it says by accuracy and a tolerance, for processors differ.
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

import msgspec

from ..errors import StoreError
from ..monitoring.system import field_kib, peak_memory_mb

_REPORT_LIMIT = 64 * 1024
_POLL_S = 0.05
_MOST_MEMORY_MB = 1024
# What a delegate's driver or a virtual environment may need; nothing else of the environment, which may hold passwords.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "TMPDIR")


class CanaryResult(msgspec.Struct, frozen=True, rename={"images": "pictures"}):
    """How a model did on its canary images, here.

    ``reasons``: why it is refused; empty when it is not. ``accuracy``: share of images whose first class is the true
    one; ``expected_accuracy`` is the desktop's. ``agreement``: share with the same first class as there. ``off``: mean
    over the images of the largest difference of a score. ``p50_ms``: median of invoke, milliseconds. ``memory_mb``:
    peak resident, of the whole process. ``delegate``: None where it ran on the CPU.
    """

    digest: str
    images: int
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
class CanaryLimits:
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


def run_canary(
    bundle: Path,
    limits: CanaryLimits = CanaryLimits(),
    *,
    name: str | None = None,
    progress: Callable[[int], object] = lambda _images: None,
) -> CanaryResult:
    """Run a bundle's canary images in a process of its own. A proof that did not pass says why.

    Args:
        bundle: the file, or the directory it was unpacked into.
        limits: see `CanaryLimits`.
        name: of the bundle in messages; its path when left out.
        progress: called with the number of images done.

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
            [sys.executable, "-P", "-m", "edge_agent.store.canary_worker", json.dumps(given)],
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
    """What the child says until it ends: a dot for each image, then its report."""
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


class CanaryReport(msgspec.Struct):
    """The last thing the child says: a proof, or why there is none."""

    proof: CanaryResult | None = None
    error: str | None = None


def _understood(name: str, said: bytes, code: int) -> CanaryResult:
    try:
        report = msgspec.json.decode(said.lstrip(b"."), type=CanaryReport)
    except (msgspec.DecodeError, UnicodeDecodeError):
        report = CanaryReport()
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


def _free_memory_mb() -> int:
    free_mb = field_kib("/proc/meminfo", "MemAvailable") // 1024
    return min(_MOST_MEMORY_MB, free_mb * 4 // 5) if free_mb else _MOST_MEMORY_MB
