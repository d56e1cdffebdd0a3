"""Canary test: run a bundle's canary images on this device, in a separate process.

A model is data that native code interprets. A model that crashes the interpreter, hangs or uses too much memory takes
down the child process that tests it, never the agent. `run_canary` starts `python -m edge_agent.store.canary_worker`
and limits its time and memory. The result is judged by accuracy and with a tolerance for the scores, because scores
differ between processors.
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
# Variables that a delegate's driver or a virtual environment may need. Others may hold passwords, so they are left out.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "TMPDIR")


class CanaryResult(msgspec.Struct, frozen=True, rename={"images": "pictures", "score_difference": "off"}):
    """Result of the canary test on this device.

    Attributes:
        digest: digest of the bundle.
        images: number of canary images.
        accuracy: share of images whose top class is correct, 0 to 1.
        expected_accuracy: share of images whose top class was correct on the desktop, 0 to 1.
        agreement: share of images with the same top class as on the desktop, 0 to 1.
        score_difference: largest difference between a score of an image and its expected value, mean over the images.
        p50_ms: median time of invoke, milliseconds.
        memory_mb: peak resident memory of the whole process.
        threads: inference threads.
        runtime: package and version of the interpreter.
        delegate: shared library of the delegate; None if the model ran on the CPU.
        reasons: reasons for refusing the model; empty if the test passed.
    """

    digest: str
    images: int
    accuracy: float
    expected_accuracy: float
    agreement: float
    score_difference: float
    p50_ms: float
    memory_mb: float
    threads: int
    runtime: str
    delegate: str | None
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the model may run on this device."""
        return not self.reasons


@dataclass(frozen=True)
class CanaryLimits:
    """Resources that a canary test may use.

    Attributes:
        threads: inference threads of the agent; by default one per core, up to four.
        delegate: delegate of the agent. If it cannot be loaded, the test runs on the CPU, as the agent does.
        timeout_s: seconds for the whole test, including start-up. ResNet50 in float32 takes 45 s on a Pi Zero 2.
        memory_mb: resident megabytes; by default four fifths of the free memory, at most 1 GB.
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
    """Run a bundle's canary images in a separate process. If the test fails, the result contains the reasons.

    Args:
        bundle: bundle file, or the directory it was unpacked into.
        limits: resources that the test may use.
        name: name of the bundle in messages; by default its path.
        progress: called with the number of images done.

    Raises:
        StoreError: the model crashed, hung, used too much memory, or the test could not be started.
    """
    name = str(bundle) if name is None else name
    memory_mb = _free_memory_mb() if limits.memory_mb is None else limits.memory_mb
    receiver, sender = os.pipe()
    request = {
        "bundle": os.fspath(bundle.absolute()),
        "threads": limits.threads,
        "delegate": limits.delegate,
        "timeout_s": limits.timeout_s,
        "memory_mb": memory_mb,
        "sender": sender,
    }
    try:
        child = subprocess.Popen(
            # -P: a file in the working directory must not be imported instead of one of our modules.
            [sys.executable, "-P", "-m", "edge_agent.store.canary_worker", json.dumps(request)],
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[sender],
            start_new_session=True,
        )
    except OSError as error:
        os.close(receiver)
        raise StoreError(f"{name}: the canary test cannot be started: {error.strerror or error}") from error
    finally:
        os.close(sender)
    try:
        output = _read_output(child, receiver, limits.timeout_s, memory_mb, progress)
    except StoreError as error:
        raise StoreError(f"{name}: the model is refused: {error}") from None
    finally:
        os.close(receiver)
        # Before the child is reaped: afterwards the group's number could belong to another process.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        code = child.wait()
    return _parse_output(name, output, code)


def _read_output(
    child: subprocess.Popen[bytes], receiver: int, timeout_s: float, memory_mb: int, progress: Callable[[int], object]
) -> bytes:
    """Read the child's output until it ends: one dot per image, then its report."""
    deadline = time.monotonic() + timeout_s
    output, open_ = b"", True
    while open_ or not _ended(child.pid):
        if peak_memory_mb(child.pid) > memory_mb:
            raise StoreError(f"the canary test used more than {memory_mb} MB of memory")
        if time.monotonic() > deadline:
            raise StoreError(f"the canary test did not finish within {timeout_s:g} s")
        if not open_:
            time.sleep(_POLL_S / 5)
        elif select.select([receiver], [], [], _POLL_S)[0]:
            block = os.read(receiver, 65536)
            output, open_ = output + block, bool(block)
            if len(output) > _REPORT_LIMIT:
                raise StoreError(f"the canary test wrote more than {_REPORT_LIMIT} bytes of output")
            progress(len(output) - len(output.lstrip(b".")))
    return output


class CanaryReport(msgspec.Struct):
    """Report that the child writes at its end: a result or an error."""

    result: CanaryResult | None = None
    error: str | None = None


def _parse_output(name: str, output: bytes, code: int) -> CanaryResult:
    try:
        report = msgspec.json.decode(output.lstrip(b"."), type=CanaryReport)
    except (msgspec.DecodeError, UnicodeDecodeError):
        report = CanaryReport()
    if report.error is not None:
        raise StoreError(f"{name}: the model is refused: {report.error[:1000]}")
    # The process group was killed after the child had ended, so a child that succeeded has exit code 0.
    if report.result is None or code != 0:
        raise StoreError(f"{name}: the model is refused: the canary test {_describe_exit(code)}")
    return report.result


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exited with {code} without a report"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def _ended(pid: int) -> bool:
    """Return whether a child process has ended, without reaping it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _free_memory_mb() -> int:
    free_mb = field_kib("/proc/meminfo", "MemAvailable") // 1024
    return min(_MOST_MEMORY_MB, free_mb * 4 // 5) if free_mb else _MOST_MEMORY_MB
