"""Progress without a terminal: as plain lines for a log file, a pipe or a CI job, or as values for a callback."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

INTERVAL_S = 30.0
"""Seconds between two lines. Work that takes less prints nothing."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one stage of long work has come.

    Attributes:
        stage: name of the stage, such as "Fine-tuning".
        done: finished steps.
        total: number of steps; None if unknown. The last report of a stage has ``done == total``.
        detail: more about the current step, such as "epoch 2 of 9"; may be empty.
    """

    stage: str
    done: int
    total: int | None
    detail: str = ""


class Advance(Protocol):
    """Reports finished steps."""

    def __call__(self, count: int = 1, *, detail: str = "") -> object:
        """Add ``count`` finished steps; ``detail`` says more about the current one, such as "epoch 2 of 9"."""
        ...


@contextmanager
def progress_lines(
    label: str, total: int | None, write: Callable[[str], object], *, done: int = 0, interval_s: float | None = None
) -> Iterator[Advance]:
    """Write a line such as "fine-tuning: 37 %, epoch 2 of 9, 4 min left" every half minute until the block ends.

    The lines come from a thread, so they also appear while a single step takes long. If any line
    was written, a last line gives the total duration.

    Args:
        label: name of the work.
        total: number of steps; None if unknown.
        write: prints one line.
        done: steps that were finished before, by an interrupted run.
        interval_s: seconds between two lines; `INTERVAL_S` when None.

    Yields:
        A function that adds finished steps.
    """
    interval_s = INTERVAL_S if interval_s is None else interval_s
    work = _Work(label[:1].lower() + label[1:], total, done)
    ended = threading.Event()
    lines = 0

    def report() -> None:
        nonlocal lines
        while not ended.wait(interval_s):
            lines += 1
            with suppress(ValueError):  # `native_noise_hidden` closed the stream at this moment; the next line follows
                write(work.line())

    thread = threading.Thread(target=report, name="progress lines", daemon=True)
    thread.start()
    try:
        yield work.advance
    finally:
        ended.set()
        thread.join()
    if lines:
        write(f"{work.label}: done in {_duration(work.elapsed_s())}")


@contextmanager
def progress_calls(
    stage: str, total: int | None, report: Callable[[Progress], object], *, done: int = 0
) -> Iterator[Advance]:
    """Call ``report`` when a stage begins, after every step, and when it ends.

    Args:
        stage: name of the stage.
        total: number of steps; None if unknown.
        report: receives each `Progress`.
        done: steps that were finished before, by an interrupted run.

    Yields:
        A function that adds finished steps.
    """
    report(Progress(stage, done, total))

    def advance(count: int = 1, *, detail: str = "") -> None:
        nonlocal done
        done += count
        report(Progress(stage, done, total, detail))

    yield advance
    # A stage that ended early, such as a fine-tuning that stopped improving, is as complete as any.
    if total is None or done != total:
        report(Progress(stage, done, done))


class _Work:
    def __init__(self, label: str, total: int | None, done: int) -> None:
        self.label = label
        self._total, self._done, self._done_before = total, done, done
        self._detail = ""
        self._started = time.monotonic()

    def advance(self, count: int = 1, *, detail: str = "") -> None:
        self._done, self._detail = self._done + count, detail

    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def line(self) -> str:
        done, now_done, elapsed_s = self._done, self._done - self._done_before, self.elapsed_s()
        left_s = elapsed_s * max(0, self._total - done) / now_done if self._total and now_done else None
        parts = (
            f"{min(100, 100 * done // self._total)} %" if self._total else "",
            self._detail,
            f"{_duration(elapsed_s)} so far" if left_s is None else f"{_duration(left_s)} left",
        )
        return f"{self.label}: {', '.join(part for part in parts if part)}"


def _duration(seconds: float) -> str:
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
