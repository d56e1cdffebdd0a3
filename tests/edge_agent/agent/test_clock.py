"""A whole agent on a device whose clock is wrong, is set, and jumps."""

from __future__ import annotations

import signal
import sqlite3
import struct
import subprocess
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ...conftest import Mosquitto, Subscriber, wait_until
from ...support import SUPPORT
from ...support.processes import AgentProcess

pytestmark = pytest.mark.needs("mosquitto", "cc")


def set_clock(folder: Path, days: int) -> None:
    """So many days from now."""
    with (folder / "clock").open("r+b") as file:
        file.write(struct.pack("=q", 86400 * days))


def days(subscriber: Subscriber, kind: str) -> list[int]:
    """How far from now the device's clock was, at each message."""
    found = []
    for message in subscriber.messages(kind):
        payload: Any = message["payload"]
        at = datetime.fromisoformat(payload.get("captured_at") or payload["at"])
        found.append(round((at - datetime.now(UTC)) / timedelta(days=1)))
    return found


@pytest.mark.slow
def test_a_clock_that_jumps_loses_no_event_and_stops_nothing(
    mosquitto: Mosquitto,
    bundle_file: Path,
    video_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library, source = tmp_path / "clock.so", SUPPORT / "clock_shim.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library), str(source)], check=True)
    (tmp_path / "clock").write_bytes(bytes(8))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("CLOCK_FILE", str(tmp_path / "clock"))
    # A Pi that was off for three weeks: its clock goes on where it stopped, until the network comes.
    set_clock(tmp_path, -21)
    settings = {
        "device": "pi",
        "bundle": str(bundle_file),
        "cameras": {"door": {"source": str(video_file), "loop": True}},
        "mqtt": {"host": "127.0.0.1", "port": mosquitto.port, "keepalive_s": 2},
        "decision": {"min_time_s": 0, "smoothing_s": 0},
        "state": "state",
        "threads": 1,
        "health_every_s": 1,
    }
    mosquitto.stop()
    running = AgentProcess(tmp_path, settings)
    monkeypatch.undo()
    try:
        wait_until(lambda: waiting(tmp_path / "state" / "spool.sqlite") >= 2, 30, "events that wait")
        # Stopped, so that the subscriber is there first.
        running.process.send_signal(signal.SIGSTOP)
        mosquitto.start()
        with Subscriber(mosquitto.port, "edgeloop/pi/#") as subscriber:
            wait_until(lambda: listens(subscriber, mosquitto.port), 20, "the subscriber")
            set_clock(tmp_path, 0)
            running.process.send_signal(signal.SIGCONT)
            wait_until(lambda: days(subscriber, "/event")[:2] == [-21, -21], 30, "what was stamped before")
            for jump in (0, 400, -400):
                set_clock(tmp_path, jump)
                for kind in ("/event", "/label", "/health"):
                    count = days(subscriber, kind).count(jump)
                    wait_until(lambda: days(subscriber, kind).count(jump) > count + 1, 30, f"{kind} of {jump} days")  # noqa: B023
            assert [m["payload"] for m in subscriber.messages("/pi/status")] == ["online"]
            assert [m["payload"] for m in subscriber.messages("/door/status")] == ["online"]
            for message in subscriber.messages("/health"):
                health: Any = message["payload"]
                assert health["spool"]["dropped"] == 0
                assert 0 <= health["uptime_s"] < 600
                assert all(0 <= spread["max"] < 60_000 for spread in health["latency_ms"].values())
    finally:
        running.process.send_signal(signal.SIGCONT)
        assert running.end(signal.SIGTERM) == 0, running.log.read_text()
    assert "Traceback" not in running.log.read_text()


def waiting(spool: Path) -> int:
    """Events in a spool that another process holds."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{spool}?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT count(*) FROM event").fetchone()[0])
    return 0


def listens(subscriber: Subscriber, port: int) -> bool:
    command = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(port), "-t", "edgeloop/pi/hello", "-m", "hello"]
    subprocess.run(command, check=True, capture_output=True)
    return bool(subscriber.messages("/hello"))
