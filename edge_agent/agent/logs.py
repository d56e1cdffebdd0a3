"""Logging to standard error: one line of text or one JSON object per entry."""

from __future__ import annotations

import logging
import sys
from typing import Literal

from ..errors import one_line

_TEXT = "%(asctime)s %(levelname)-7s %(message)s"


def configure(kind: Literal["text", "json"] = "text") -> None:
    """Configure logging at level INFO, replacing any previous configuration."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if kind == "json" else _Text(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


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
