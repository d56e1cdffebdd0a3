"""The spool: events that wait for the broker, stored on disk to survive restarts and power cuts."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from ..clock import Stamp

log = logging.getLogger(__name__)

MAX_EVENTS = 10_000
"""Maximum number of events. At half a kilobyte each, they take 5 MB on the SD card. A camera whose label changes once a
minute fills the spool in a week."""

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS event (
        id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload BLOB NOT NULL, at REAL NOT NULL
    );
    CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
    INSERT OR IGNORE INTO counter VALUES ('dropped', 0);
    CREATE TABLE IF NOT EXISTS latest (
        topic TEXT PRIMARY KEY, payload BLOB NOT NULL, at REAL NOT NULL, boot TEXT, uptime REAL, clock_set INTEGER
    );
"""
_ADDED = {"boot": "TEXT", "uptime": "REAL", "clock_set": "INTEGER"}
"""Columns of `event` that files of version 0.1 do not have; NULL there."""
_COLUMNS = "topic, payload, at, boot, uptime, clock_set"
_BUSY_S = 5.0


class SpooledEvent(NamedTuple):
    """A message to deliver. ``at``: when it was created."""

    topic: str
    payload: bytes
    at: Stamp


class Waiting(NamedTuple):
    """An event in the spool. Ids increase, and are never used twice."""

    id: int
    event: SpooledEvent


class Spool:
    """A bounded queue of events in an SQLite file, oldest first. A context manager. Not thread-safe.

    When `put` returns, the events are on disk and survive a crash. If the spool is full, the oldest events are dropped
    and counted. A damaged file is renamed. If the disk cannot be used (full, read-only, missing or failing), the spool
    continues in memory with the events that can still be read. Both cases are logged; no exception is raised.

    Args:
        path: SQLite file, whose directory is created if needed; None keeps everything in memory.
        max_events: Maximum number of events.
    """

    def __init__(self, path: Path | None, *, max_events: int = MAX_EVENTS) -> None:
        self._path = path
        self._max_events = max_events
        self._last = 0

    def __enter__(self) -> Self:
        self._database = self._opened()
        self._last = self._number("SELECT coalesce(max(seq), 0) FROM sqlite_sequence")
        return self

    def __exit__(self, *exception: object) -> None:
        self._database.close()

    @property
    def on_disk(self) -> bool:
        """Whether events survive a restart of the process."""
        return self._path is not None

    @property
    def last(self) -> int:
        """Id of the newest event ever stored; 0 before the first."""
        return self._last

    @property
    def depth(self) -> int:
        """Number of waiting events."""
        return self._number("SELECT count(*) FROM event")

    @property
    def dropped(self) -> int:
        """Number of events dropped since the file was created."""
        return self._number("SELECT value FROM counter WHERE name = 'dropped'")

    def put(self, events: Sequence[SpooledEvent]) -> None:
        """Append events: all of them or, if this fails, none."""
        if not events:
            return
        try:
            self._put(events)
        except sqlite3.Error as error:
            self._leave_disk(error)
            self._put(events)

    def waiting(
        self, limit: int, *, except_ids: Collection[int] = (), except_topics: Collection[str] = ()
    ) -> list[Waiting]:
        """Up to ``limit`` events, oldest first, without those with one of these ids or topics."""
        ids, topics = (", ".join("?" * len(values)) for values in (except_ids, except_topics))
        query = f"""SELECT id, {_COLUMNS} FROM event WHERE id NOT IN ({ids}) AND topic NOT IN ({topics})
                    ORDER BY id LIMIT ?"""  # noqa: S608  placeholders alone
        rows = self._rows(query, *except_ids, *except_topics, limit)
        return [Waiting(ident, _event(*columns)) for ident, *columns in rows]

    def latest(self) -> list[SpooledEvent]:
        """The newest event ever stored on each topic, delivered or not."""
        return [_event(*columns) for columns in self._rows(f"SELECT {_COLUMNS} FROM latest")]  # noqa: S608

    def remove(self, idents: Iterable[int]) -> None:
        """Remove delivered events; ids that do not exist are ignored."""
        rows = [(ident,) for ident in idents]
        if not rows:
            return
        try:
            with self._database:
                self._database.executemany("DELETE FROM event WHERE id = ?", rows)
        except sqlite3.Error as error:
            # The copy in memory has the remaining events, so no event is sent twice before the next start.
            self._leave_disk(error)
            with self._database:
                self._database.executemany("DELETE FROM event WHERE id = ?", rows)

    def _rows(self, query: str, *values: int | str) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            self._leave_disk(error)
            return self._database.execute(query, values).fetchall()

    def _number(self, query: str) -> int:
        return int(self._rows(query)[0][0])

    def _put(self, events: Sequence[SpooledEvent]) -> None:
        with self._database:
            rows = [(event.topic, event.payload, *event.at) for event in events]
            self._database.executemany(f"INSERT INTO event ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", rows)  # noqa: S608
            self._database.executemany(f"REPLACE INTO latest ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", rows)  # noqa: S608
            beyond = self._database.execute(
                "DELETE FROM event WHERE id <= (SELECT id FROM event ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (self._max_events,),
            ).rowcount
            if beyond:
                self._database.execute("UPDATE counter SET value = value + ? WHERE name = 'dropped'", (beyond,))
        self._last += len(events)

    def _opened(self) -> sqlite3.Connection:
        if self._path is None:
            return _connected(":memory:")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return _connected(str(self._path))
        except (sqlite3.DatabaseError, OSError) as error:
            if isinstance(error, OSError | sqlite3.OperationalError):
                return self._in_memory(error)
        damaged = self._path.with_suffix(".damaged")
        log.error("%s is damaged; it was renamed to %s, and its events are lost", self._path, damaged)
        try:
            for ending in ("-wal", "-shm"):
                self._path.with_name(self._path.name + ending).unlink(missing_ok=True)
            os.replace(self._path, damaged)
            return _connected(str(self._path))
        except (sqlite3.Error, OSError) as error:
            return self._in_memory(error)

    def _leave_disk(self, error: sqlite3.Error) -> None:
        """Continue in memory with all events that can still be read, under the same ids."""
        disk = self._database
        self._database = self._in_memory(error)
        rows: list[tuple[Any, ...]] = []
        dropped = 0
        with suppress(sqlite3.Error):
            dropped = disk.execute("SELECT value FROM counter WHERE name = 'dropped'").fetchone()[0]
        with suppress(sqlite3.Error):
            # Row by row, to get the rows before the damage in a damaged file.
            rows.extend(disk.execute(f"SELECT id, {_COLUMNS} FROM event ORDER BY id"))  # noqa: S608
        with suppress(sqlite3.Error):
            disk.close()
        with self._database as memory:
            memory.executemany(f"INSERT INTO event (id, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows)  # noqa: S608
            memory.execute("UPDATE counter SET value = ? WHERE name = 'dropped'", (dropped,))
            # An id is never used twice.
            memory.execute("DELETE FROM sqlite_sequence")
            memory.execute("INSERT INTO sqlite_sequence VALUES ('event', ?)", (self._last,))

    def _in_memory(self, error: Exception) -> sqlite3.Connection:
        log.error(
            "%s cannot be used (%s): events are kept in memory until the agent stops; repair the disk, or set `state` "
            "in agent.yaml to a directory that the agent may write to",
            self._path,
            getattr(error, "strerror", None) or error,
        )
        self._path = None
        return _connected(":memory:")


def _event(
    topic: str, payload: bytes, at: float, boot: str | None, uptime_s: float | None, clock_set: int | None
) -> SpooledEvent:
    return SpooledEvent(topic, bytes(payload), Stamp(at, boot or "", uptime_s or 0.0, clock_set != 0))


def _connected(path: str) -> sqlite3.Connection:
    # Created by one thread and then used by another one, but never by two at the same time.
    database = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False)
    try:
        # One fsync per commit, and readers do not block: https://www.sqlite.org/wal.html
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.executescript(_SCHEMA)
        present = {row[1] for row in database.execute("PRAGMA table_info(event)")}
        for name, kind in _ADDED.items():
            if name not in present:
                database.execute(f"ALTER TABLE event ADD COLUMN {name} {kind}")
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except BaseException:
        database.close()
        raise
    if verdict != "ok":
        database.close()
        raise sqlite3.DatabaseError(verdict)
    return database
