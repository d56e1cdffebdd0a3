"""The log of the agent: one line per message, and never a flood of them."""

from __future__ import annotations

import logging

import pytest

from edge_agent.agent.logs import RateLimit


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("edge_agent.agent.logs.time.monotonic", lambda: now[0])
    return now


def test_a_flood_of_one_kind_is_cut_and_counted_and_others_pass(clock: list[float]) -> None:
    kept, log = Kept(), logging.getLogger("edgeloop-test")
    log.setLevel(logging.INFO)
    kept.addFilter(RateLimit(most=3, per_s=60))
    log.addHandler(kept)
    for number in range(10):
        log.warning("the command %r is malformed", number)
    log.info("camera %s: %s", "door", "brick")
    assert kept.lines == [
        "the command 0 is malformed",
        "the command 1 is malformed",
        "the command 2 is malformed (further messages of this kind are left out for 60 s)",
        "camera door: brick",
    ]
    clock[0] += 60
    kept.lines.clear()
    log.warning("the command %r is malformed", "x")
    log.warning("the command %r is malformed", "y")
    assert kept.lines == [
        "the command 'x' is malformed (7 messages of this kind were left out before)",
        "the command 'y' is malformed",
    ]


def test_many_kinds_take_no_memory_without_end(clock: list[float]) -> None:
    limit = RateLimit()
    for number in range(5000):
        assert limit.filter(logging.LogRecord("x", logging.INFO, "", 0, f"message {number}", (), None))
    assert len(limit._kinds) <= 1000
