"""Events on disk, and their way to the broker: what was stored arrives once and in order, or is counted."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from edge_agent.clock import Stamp
from edge_agent.mqtt.connection import WINDOW
from edge_agent.mqtt.outbox import Outbox
from edge_agent.mqtt.spool import Spool, SpooledEvent

from ...conftest import NAMESPACE, wait_until


def event(number: int, at: float | None = None) -> SpooledEvent:
    return SpooledEvent("a/b", str(number).encode(), Stamp(time.time() if at is None else at))


def numbers(spool: Spool, after: int = 0) -> list[int]:
    return [int(waiting.event.payload) for waiting in spool.waiting(100_000) if waiting.id > after]


def test_events_come_back_in_order_after_a_restart_without_those_delivered(tmp_path: Path) -> None:
    path = tmp_path / "state" / "spool.sqlite"
    with Spool(path) as spool:
        spool.put([event(1), event(2)])
        spool.put([event(3)])
        assert numbers(spool) == [1, 2, 3]
        first = spool.waiting(1)[0]
        assert numbers(spool, after=first.id) == [2, 3]
        spool.remove([first.id, 4711])
    with Spool(path) as spool:
        assert numbers(spool) == [2, 3]
        assert spool.depth == 2
        assert spool.on_disk
        spool.remove([waiting.id for waiting in spool.waiting(10)])
        spool.put([event(4)])
        assert spool.waiting(1)[0].id > first.id + 2  # an id is never used twice


def test_a_full_spool_drops_the_oldest_and_counts_them(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.sqlite", max_events=5) as spool:
        for number in range(8):
            spool.put([event(number)])
        assert numbers(spool) == [3, 4, 5, 6, 7]
        assert spool.dropped == 3
    with Spool(tmp_path / "spool.sqlite", max_events=5) as spool:
        spool.put([event(number) for number in range(8, 20)])
        assert numbers(spool) == [15, 16, 17, 18, 19]
        assert spool.dropped == 15


@pytest.mark.parametrize(
    "damage", [b"not a database at all, but long enough to look at" * 100, slice(8192, 60000), slice(81920, 86016)]
)
def test_a_damaged_file_is_set_aside_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes | slice
) -> None:
    path = tmp_path / "spool.sqlite"
    with Spool(path) as spool:
        spool.put([SpooledEvent("a", bytes(2000), Stamp(0.0))] * 100)
    if isinstance(damage, slice):  # in the middle: all tables, or one page of events
        whole = bytearray(path.read_bytes())
        whole[damage] = random.Random(1).randbytes(damage.stop - damage.start)
        content = bytes(whole)
    else:
        content = damage
    path.write_bytes(content)
    with Spool(path) as spool:
        spool.put([event(1)])
        assert numbers(spool) == [1]
        assert spool.on_disk
    assert "is damaged" in caplog.text
    assert (tmp_path / "spool.damaged").read_bytes() == content


def test_the_log_beside_a_damaged_file_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "cut off" / "spool.sqlite"
    path.parent.mkdir()
    with Spool(tmp_path / "spool.sqlite") as spool:
        spool.put([event(number) for number in range(100)])
    with Spool(tmp_path / "spool.sqlite") as spool:
        spool.put([SpooledEvent("a", bytes(2000), Stamp(0.0))] * 10)  # the log then holds the first page, but not all
        shutil.copy(tmp_path / "spool.sqlite-wal", path.parent)  # as a power cut leaves it
    path.write_bytes(b"no database" * 1000)
    for depth in (1, 2):
        with Spool(path) as spool:
            spool.put([event(1)])
            assert (spool.depth, spool.on_disk) == (depth, True)


def test_a_file_in_use_is_not_taken_for_damaged_and_what_was_removed_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.mqtt.spool._BUSY_S", 0.1)
    path = tmp_path / "spool.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        with Spool(path) as spool:
            spool.put([event(number) for number in range(4)])
            other.execute("BEGIN IMMEDIATE")
            spool.remove([waiting.id for waiting in spool.waiting(2)])
            assert numbers(spool) == [2, 3]
            assert not spool.on_disk
        with Spool(path) as spool:
            assert not spool.on_disk
        other.execute("ROLLBACK")
    with Spool(path) as spool:
        assert numbers(spool) == [0, 1, 2, 3]
        assert spool.on_disk


def test_a_power_cut_loses_nothing_that_was_put(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.sqlite") as spool:
        # 2 is FULL: an fsync each commit.
        assert spool._database.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_disk_that_fails_while_it_is_read_leaves_what_could_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "spool.sqlite"
    with Spool(path, max_events=2900) as spool:
        for start in range(0, 3000, 100):  # more than SQLite keeps in memory
            spool.put(
                [SpooledEvent("a", b"%04d" % number + bytes(2000), Stamp(0.0)) for number in range(start, start + 100)]
            )
    with Spool(path, max_events=2900) as spool:
        half = path.stat().st_size // 2
        with path.open("r+b") as file:
            file.seek(half)
            file.write(random.Random(1).randbytes(half))
        left = [int(one.event.payload[:4]) for one in spool.waiting(3000)]
        assert left == list(range(100, 100 + len(left)))
        assert 0 < len(left) == spool.depth < 3000
        assert not spool.on_disk
        assert spool.dropped == 100
        spool.put([event(1)])
        assert numbers(spool, after=3000) == [1]  # for those who have seen all that was lost, too
    assert "cannot be used (database disk image is malformed)" in caplog.text


def test_where_nothing_can_be_written_events_wait_in_memory_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with Spool(tmp_path / "file" / "spool.sqlite") as spool:
        spool.put([event(1)])
        assert numbers(spool) == [1]
        assert not spool.on_disk
    assert "events are kept in memory" in caplog.text


FULL = """
    import os, time
    from pathlib import Path
    from edge_agent.clock import Stamp
    from edge_agent.mqtt.spool import Spool, SpooledEvent
    with Spool(Path("disk/spool.sqlite")) as spool:
        number = 0
        while spool.on_disk:
            spool.put([SpooledEvent("a", b"%06d" % number + bytes(4000), Stamp(time.time()))])
            number += 1
        assert number > 5, number
        for _ in range(10):
            spool.put([SpooledEvent("a", b"%06d" % number + bytes(4000), Stamp(time.time()))])
            number += 1
        waiting = spool.waiting(10_000)
        assert [int(one.event.payload[:6]) for one in waiting] == list(range(number)), number
        spool.remove([one.id for one in waiting])
        assert spool.depth == 0
        print("all there", number)
"""


@pytest.mark.needs("namespace")
def test_a_full_disk_loses_nothing_while_the_agent_lives(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    script = f"mount -t tmpfs -o size=256k none disk && exec {sys.executable} -c '{textwrap.dedent(FULL)}'"
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert "all there" in done.stdout, done.stderr
    assert "No space left" in done.stderr or "disk is full" in done.stderr


WRITER = """
    import sys, time
    from pathlib import Path
    from edge_agent.clock import Stamp
    from edge_agent.mqtt.spool import Spool, SpooledEvent
    with Spool(Path(sys.argv[1])) as spool:
        number = int(sys.argv[2])
        while True:
            spool.put([SpooledEvent("a", str(number).encode(), Stamp(time.time()))])
            print(number, flush=True)
            if number % 7 == 0:
                spool.remove([spool.waiting(1)[0].id])
            number += 1
"""


@pytest.mark.slow
def test_killed_at_any_point_it_keeps_what_it_said_it_had(tmp_path: Path) -> None:
    """100 times kill -9; every number that was printed is there, or was taken out before it."""
    # From 1: the 0 would be put in and taken out again, and nothing be left where it is killed right then.
    path, start, draw = tmp_path / "spool.sqlite", 1, random.Random(4)
    for _ in range(100):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(path), str(start)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        said = [int(writer.stdout.readline())]
        time.sleep(draw.uniform(0, 0.02))
        writer.kill()
        said += [int(line) for line in writer.stdout.read().splitlines() if line]
        writer.wait(60)
        writer.stdout.close()
        start = said[-1] + 1000
        with Spool(path) as spool:
            found = [int(one.event.payload) for one in spool.waiting(100_000)]
            assert spool.on_disk
        assert found == sorted(set(found))
        # The oldest were taken out, so what is left begins somewhere; from there on nothing that was said is missing.
        assert set(said) <= set(range(found[0])) | set(found)
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


class Network:
    """Takes events as a connection would, and answers when told to."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []
        self.left_s: list[float] = []
        self.connected = True

    def send(self, one: SpooledEvent, left_s: float) -> int | None:
        if not self.connected:
            return None
        packet = len(self.sent) + 1
        self.sent.append((packet, int(one.payload)))
        self.left_s.append(left_s)
        return packet

    @property
    def numbers(self) -> list[int]:
        return [number for _, number in self.sent]


def test_an_event_stays_until_it_is_acknowledged_and_is_sent_once(tmp_path: Path) -> None:
    network = Network()
    with Outbox(tmp_path / "spool.sqlite", network.send, expiry_s=60) as outbox:
        for number in range(WINDOW + 10):
            outbox.put(event(number))
        wait_until(lambda: len(network.sent) == WINDOW, 10, "a window of events")
        for packet in range(1, 6):
            outbox.acknowledge(packet)
        outbox.acknowledge(999)  # a label's, not an event's
        wait_until(lambda: len(network.sent) == WINDOW + 5, 10, "as many more as were acknowledged")
        wait_until(lambda: outbox.depth == WINDOW + 5, 10, "the depth")
    assert network.numbers == list(range(WINDOW + 5))
    # The next process sends again what was under way, then what had not been sent.
    again = Network()
    with Outbox(tmp_path / "spool.sqlite", again.send, expiry_s=60) as outbox:
        outbox.wake()
        wait_until(lambda: len(again.sent) == WINDOW, 10, "a window of events")
        for packet in range(1, WINDOW + 1):
            outbox.acknowledge(packet)
        wait_until(lambda: len(again.sent) == WINDOW + 5, 10, "the rest")
        for packet in range(WINDOW + 1, WINDOW + 6):
            outbox.acknowledge(packet)
        wait_until(lambda: outbox.depth == 0, 10, "an empty spool")
    assert again.numbers == list(range(5, WINDOW + 10))


def test_nothing_is_sent_without_a_connection_and_all_of_it_with_one() -> None:
    network = Network()
    network.connected = False
    with Outbox(None, network.send, expiry_s=60) as outbox:
        for number in range(5):
            outbox.put(event(number))
        wait_until(lambda: outbox.depth == 5, 10, "the events to be stored")
        assert network.sent == []
        network.connected = True
        outbox.wake()
        wait_until(lambda: network.numbers == list(range(5)), 10, "all of them, in order")


def test_expired_events_are_dropped_and_counted_and_those_of_the_future_are_sent(tmp_path: Path) -> None:
    network, now = Network(), time.time()
    with Spool(tmp_path / "spool.sqlite") as spool:
        spool.put([event(number, at) for number, at in enumerate((now - 61, now - 20, now + 1e6))])
    with (
        pytest.MonkeyPatch.context() as patch,
        Outbox(tmp_path / "spool.sqlite", network.send, expiry_s=60) as outbox,
    ):
        patch.setattr("edge_agent.clock.is_clock_set", lambda: True)
        outbox.wake()
        wait_until(lambda: network.numbers == [1, 2], 10, "those that are not too old")
        wait_until(lambda: outbox.dropped == 1, 10, "the other to be counted")
    assert 20 < network.left_s[0] <= 40
    assert network.left_s[1] == 60


def test_the_newest_event_of_each_topic_is_remembered_also_when_it_is_delivered(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool.sqlite") as spool:
        spool.put([event(1), SpooledEvent("a/c", b"2", Stamp.now()), event(3)])
        spool.remove([waiting.id for waiting in spool.waiting(10)])
    with Spool(tmp_path / "spool.sqlite") as spool:
        assert {(one.topic, one.payload) for one in spool.latest()} == {("a/b", b"3"), ("a/c", b"2")}


def test_what_was_stamped_before_the_clock_was_set_is_as_new_as_it_is(tmp_path: Path) -> None:
    network, now = Network(), Stamp.now()
    long_ago = now.wall_s - 1e6
    stamps = [
        Stamp(long_ago, "an earlier boot", 5.0, is_set=True),  # really old
        Stamp(long_ago, "an earlier boot", 5.0, is_set=False),  # nobody knows
        now._replace(wall_s=long_ago),  # of this boot: just now, whatever the clock says
        now._replace(uptime_s=now.uptime_s - 100),  # of this boot: too old
        now._replace(wall_s=now.wall_s + 1e6, uptime_s=now.uptime_s - 20),
    ]
    with Spool(tmp_path / "spool.sqlite") as spool:
        spool.put([SpooledEvent("a/b", str(number).encode(), stamp) for number, stamp in enumerate(stamps)])
    with (
        pytest.MonkeyPatch.context() as patch,
        Outbox(tmp_path / "spool.sqlite", network.send, expiry_s=60) as outbox,
    ):
        patch.setattr("edge_agent.clock.is_clock_set", lambda: True)
        outbox.wake()
        wait_until(lambda: network.numbers == [1, 2, 4], 10, "all but what is too old")
        wait_until(lambda: outbox.dropped == 2, 10, "the others to be counted")
    assert network.left_s[0] == 60
    assert 30 < network.left_s[1] <= 60
    assert 10 < network.left_s[2] <= 40


def test_a_disk_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging, gate = threading.Event(), threading.Event()

    def hang(_self: Spool, _events: list[SpooledEvent]) -> None:
        hanging.set()
        gate.wait(20)

    monkeypatch.setattr(Spool, "put", hang)
    with Outbox(None, Network().send, expiry_s=60) as outbox:
        outbox.put(event(0))
        assert hanging.wait(10)
        for number in range(1500):
            outbox.put(event(number))
        gate.set()
        wait_until(lambda: outbox.dropped == 500, 10, "the others to be counted")
