"""Events that wait for the broker, on disk: they outlive an outage, the agent and a power cut."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

log = logging.getLogger(__name__)

MOST = 10_000
"""Events kept; at half a kilobyte each, 5 MB on the card. A camera that changes its label once a minute fills it in a
week."""

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS event (
        id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload BLOB NOT NULL, at REAL NOT NULL
    );
    CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
    INSERT OR IGNORE INTO counter VALUES ('dropped', 0);
"""
_BUSY_S = 5.0


class SpooledEvent(NamedTuple):
    """One message to be delivered: its topic, its payload, and when it came about, seconds since 1970."""

    topic: str
    payload: bytes
    at: float


class Waiting(NamedTuple):
    """An event in the spool. ``id`` grows from event to event and is never used twice."""

    id: int
    event: SpooledEvent


class Spool:
    """A bounded queue of events in an SQLite file, oldest first. For one thread; a context manager.

    What `put` returned from is on the disk, whatever happens to the process. When it is full the oldest are dropped,
    and counted. A file that is damaged is set aside, and a disk that cannot be used (full, read-only, absent, failing)
    makes the spool go on in memory with what can still be read: both are logged, neither raises.

    Args:
        path: of the file; its directory is made. None keeps everything in memory.
        most: events it holds.
    """

    def __init__(self, path: Path | None, *, most: int = MOST) -> None:
        self._path = path
        self._most = most
        self._last = 0

    def __enter__(self) -> Self:
        self._database = self._opened()
        self._last = self._number("SELECT coalesce(max(seq), 0) FROM sqlite_sequence")
        return self

    def __exit__(self, *exception: object) -> None:
        self._database.close()

    @property
    def on_disk(self) -> bool:
        """Whether what is put in outlives the process."""
        return self._path is not None

    @property
    def last(self) -> int:
        """Id of the newest event there ever was; 0 before the first."""
        return self._last

    @property
    def depth(self) -> int:
        """Events waiting."""
        return self._number("SELECT count(*) FROM event")

    @property
    def dropped(self) -> int:
        """Events that had to go, since the file was made."""
        return self._number("SELECT value FROM counter WHERE name = 'dropped'")

    def put(self, events: Sequence[SpooledEvent]) -> None:
        """Append events, all or none of them."""
        if not events:
            return
        try:
            self._put(events)
        except sqlite3.Error as error:
            self._leave_disk(error)
            self._put(events)

    def after(self, last: int, most: int) -> list[Waiting]:
        """Up to so many events behind the one with this id, oldest first."""
        rows = self._rows("SELECT id, topic, payload, at FROM event WHERE id > ? ORDER BY id LIMIT ?", last, most)
        return [Waiting(ident, SpooledEvent(topic, bytes(payload), at)) for ident, topic, payload, at in rows]

    def remove(self, idents: Iterable[int]) -> None:
        """Forget delivered events; those that are gone already are passed over."""
        rows = [(ident,) for ident in idents]
        if not rows:
            return
        try:
            with self._database:
                self._database.executemany("DELETE FROM event WHERE id = ?", rows)
        except sqlite3.Error as error:
            # Memory knows what is left, so nothing is sent twice before the next start.
            self._leave_disk(error)
            with self._database:
                self._database.executemany("DELETE FROM event WHERE id = ?", rows)

    def _rows(self, query: str, *values: int) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            self._leave_disk(error)
            return self._database.execute(query, values).fetchall()

    def _number(self, query: str) -> int:
        return int(self._rows(query)[0][0])

    def _put(self, events: Sequence[SpooledEvent]) -> None:
        with self._database:
            self._database.executemany("INSERT INTO event (topic, payload, at) VALUES (?, ?, ?)", events)
            beyond = self._database.execute(
                "DELETE FROM event WHERE id <= (SELECT id FROM event ORDER BY id DESC LIMIT 1 OFFSET ?)", (self._most,)
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
        aside = self._path.with_suffix(".damaged")
        log.error("%s is damaged; it is now %s, and the events in it are lost", self._path, aside)
        try:
            for ending in ("-wal", "-shm"):
                self._path.with_name(self._path.name + ending).unlink(missing_ok=True)
            os.replace(self._path, aside)
            return _connected(str(self._path))
        except (sqlite3.Error, OSError) as error:
            return self._in_memory(error)

    def _leave_disk(self, error: sqlite3.Error) -> None:
        """Go on in memory with all that is waiting and can be read, under the same ids."""
        disk = self._database
        self._database = self._in_memory(error)
        rows: list[tuple[Any, ...]] = []
        dropped = 0
        with suppress(sqlite3.Error):
            dropped = disk.execute("SELECT value FROM counter WHERE name = 'dropped'").fetchone()[0]
        with suppress(sqlite3.Error):
            # Row by row: of a damaged file, those before the damage.
            rows.extend(disk.execute("SELECT id, topic, payload, at FROM event ORDER BY id"))
        with suppress(sqlite3.Error):
            disk.close()
        with self._database as memory:
            memory.executemany("INSERT INTO event VALUES (?, ?, ?, ?)", rows)
            memory.execute("UPDATE counter SET value = ? WHERE name = 'dropped'", (dropped,))
            # Whoever asks for what is behind the last id it saw must not wait for ids to catch up.
            memory.execute("DELETE FROM sqlite_sequence")
            memory.execute("INSERT INTO sqlite_sequence VALUES ('event', ?)", (self._last,))

    def _in_memory(self, error: Exception) -> sqlite3.Connection:
        log.error(
            "%s cannot be used (%s): events wait in memory until the agent ends; mend it, or set `state` in "
            "agent.yaml to a directory of the agent's own",
            self._path,
            getattr(error, "strerror", None) or error,
        )
        self._path = None
        return _connected(":memory:")


def _connected(path: str) -> sqlite3.Connection:
    # Made by one thread, then used by another: never by two at once.
    database = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False)
    try:
        # One fsync a commit, and readers need not wait: https://www.sqlite.org/wal.html
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.executescript(_SCHEMA)
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except BaseException:
        database.close()
        raise
    if verdict != "ok":
        database.close()
        raise sqlite3.DatabaseError(verdict)
    return database
