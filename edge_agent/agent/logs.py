"""Logging to standard error: one line of text or one JSON object per entry."""

from __future__ import annotations

import logging
import sys
import threading
import time
from dataclasses import dataclass
from typing import Literal

from ..errors import one_line

_MAX_KINDS = 1000
_TEXT = "%(asctime)s %(levelname)-7s %(message)s"


def configure(kind: Literal["text", "json"] = "text") -> None:
    """Configure logging at level INFO, replacing any previous configuration."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RateLimit())
    handler.setFormatter(_Json() if kind == "json" else _Text(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


class RateLimit(logging.Filter):
    """Leaves out messages of a kind that comes too often, and says how many: a device's disk must not fill up or wear.

    A kind is a message before its values are filled in. Others can cause messages: cameras, brokers, senders of
    commands.
    """

    def __init__(self, most: int = 30, per_s: float = 60.0) -> None:
        super().__init__()
        self._most, self._per_s = most, per_s
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide whether a message is logged. Adds a note to the last one, and to the first one afterwards."""
        now = time.monotonic()
        with self._lock:
            kind = self._kinds.get((record.name, str(record.msg)))
            if kind is None or now - kind.since_s >= self._per_s:
                left_out = 0 if kind is None else max(0, kind.count - self._most)
                if len(self._kinds) >= _MAX_KINDS:
                    self._kinds.clear()
                kind = self._kinds[record.name, str(record.msg)] = _Kind(now)
                if left_out:
                    _add(record, f"{left_out} messages of this kind were left out before")
            kind.count += 1
            if kind.count == self._most:
                _add(record, f"further messages of this kind are left out for {self._per_s:g} s")
            return kind.count <= self._most


@dataclass
class _Kind:
    since_s: float
    count: int = 0


def _add(record: logging.LogRecord, note: str) -> None:
    record.msg, record.args = f"{record.getMessage()} ({note})", ()


class _Text(logging.Formatter):
    """Keeps each message on one line, because a message may quote untrusted input that contains line breaks."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        record.message = one_line(Exception(record.message))
        return super().formatMessage(record)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        import json

        from ..messages import timestamp

        entry = {
            "time": timestamp(int(record.created * 1e9)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)
