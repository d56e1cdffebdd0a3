"""A whole agent, killed again and again: what it had on disk is whole, and it comes back."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from hashlib import sha256
from pathlib import Path

import pytest

from edge_agent.bundle import open_bundle
from edge_agent.captures.folder import Captures, read_capture
from edge_agent.store.canary import CanaryLimits
from edge_agent.store.model_store import ModelStore

from ...conftest import Mosquitto, Subscriber, wait_until
from ...support.processes import AgentProcess
from .test_command_handlers import models

__all__ = ["models"]

pytestmark = pytest.mark.needs("mosquitto")

KILLS = int(os.environ.get("EDGELOOP_KILLS", "12"))
"""100 take three minutes."""


@pytest.mark.long
def test_kill_9_at_any_moment_leaves_an_agent_that_comes_back(
    tmp_path: Path, video_file: Path, models: dict[str, Path], mosquitto: Mosquitto, subscriber: Subscriber
) -> None:
    state = tmp_path / "state"
    store = ModelStore(state)
    for number in "12":
        store.install(models[number], signers=None, limits=CanaryLimits(threads=1))
        store.good()
    settings = {
        "device": "pi",
        "cameras": {"door": {"source": str(video_file), "loop": True}},
        "mqtt": {"host": "127.0.0.1", "port": mosquitto.port, "keepalive_s": 2},
        "state": "state",
        "threads": 1,
        "record": {"per_hour": 3600, "random_every_s": 1, "max_mb": 0.2, "min_free_mb": 0},
        "decision": {"min_time_s": 0, "smoothing_s": 0},
    }
    chance = random.Random(5)
    for kill in range(KILLS):
        running = AgentProcess(tmp_path, settings)
        try:
            time.sleep(chance.uniform(0.2, 3.0))
            if kill % 3 == 0:
                store.activate(f"ground-{1 + kill % 2}")
                time.sleep(chance.uniform(0, 0.3))
        finally:
            assert running.process.poll() is None, running.log.read_text()
            assert running.end(signal.SIGKILL) == -signal.SIGKILL
        current = store.current()
        assert current is not None
        open_bundle(Path(current.path))  # checks every hash
        if (state / "spool.sqlite").exists():
            with sqlite3.connect(state / "spool.sqlite") as database:
                assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            database.close()
        for line in (state / "captures").glob("*/*.json"):
            capture = read_capture(line)
            assert capture is not None
            if line.with_suffix(".jpg").exists():
                assert sha256(line.with_suffix(".jpg").read_bytes()).hexdigest() == capture.sha256
    assert not (state / "spool.damaged").exists()

    before = len(subscriber.messages("/event"))
    running = AgentProcess(tmp_path, settings)
    wait_until(lambda: len(subscriber.messages("/event")) > before, 20, "it is back")
    assert running.end(signal.SIGTERM) == 0, running.log.read_text()
    captures = Captures(state / "captures", max_bytes=1e9, min_free_bytes=0)
    captures.sweep()
    captures.index()
    assert captures.size > 0
    with sqlite3.connect(state / "spool.sqlite") as database:
        assert database.execute("SELECT count(*) FROM event").fetchone() == (0,)
    database.close()
