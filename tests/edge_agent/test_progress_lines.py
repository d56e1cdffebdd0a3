"""Plain progress lines where the output is not a terminal."""

from __future__ import annotations

import threading

import pytest

from edge_agent import progress_lines as module
from edge_agent.progress_lines import progress_lines


class Lines:
    """Collects lines and lets a test wait for the next one."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._written = threading.Semaphore(0)

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self._written.release()

    def next(self) -> str:
        assert self._written.acquire(timeout=10), "no line was written"
        return self.lines[-1]


def test_short_work_prints_nothing() -> None:
    lines = Lines()
    with progress_lines("Fine-tuning", 2, lines) as advance:
        advance()
        advance()
    assert lines.lines == []
    assert module.INTERVAL_S == 30


def test_long_work_prints_its_share_its_detail_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    lines = Lines()
    with progress_lines("Fine-tuning", 100, lines, interval_s=0.01) as advance:
        now[0] += 140
        advance(37, detail="epoch 2 of 9")
        lines.next()
        assert lines.next() == "fine-tuning: 37 %, epoch 2 of 9, 4 min left"
    assert lines.lines[-1] == "fine-tuning: done in 2 min"


def test_lines_continue_while_one_step_takes_long() -> None:
    lines = Lines()
    with progress_lines("Converting to float32", 1, lines, interval_s=0.01):
        for _ in range(3):
            assert lines.next() == "converting to float32: 0 %, 0 s so far"


def test_work_of_unknown_length_says_how_long_it_has_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    lines = Lines()
    with progress_lines("Looking for near duplicates", None, lines, interval_s=0.01):
        now[0] += 2 * 3600 + 300
        lines.next()
        assert lines.next() == "looking for near duplicates: 2 h 5 min so far"


def test_steps_of_an_interrupted_run_do_not_shorten_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    lines = Lines()
    with progress_lines("Fine-tuning", 100, lines, done=80, interval_s=0.01) as advance:
        now[0] += 40
        advance(10)
        lines.next()
        assert lines.next() == "fine-tuning: 90 %, 40 s left"


def test_a_failure_ends_the_lines() -> None:
    lines = Lines()
    with pytest.raises(OSError, match="disk"), progress_lines("Writing", 2, lines, interval_s=0.01):  # noqa: PT012  the line comes first
        lines.next()
        raise OSError("disk")
    assert "writing: done" not in lines.lines[-1]
    assert "progress lines" not in {thread.name for thread in threading.enumerate()}
