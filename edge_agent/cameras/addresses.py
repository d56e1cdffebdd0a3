"""Addresses of cameras as they may be shown: in messages, logs, captures and on the dashboard."""

from __future__ import annotations

import re

_IN_PATH = re.compile(r"((?:pass|passwd|password|pwd|token|secret|key)[=:])[^/&;_]*", re.IGNORECASE)
"""Some recorders expect the password in the path: ``/user=admin&password=secret&channel=1``."""


def without_secrets(source: int | str) -> str:
    """Hide what may be a password: ``rtsp://user:secret@host/x?pwd=secret`` becomes ``rtsp://***@host/x?***``."""
    scheme, separator, rest = str(source).partition("://")
    if not separator:
        return scheme
    # Split at the last @, as a password may contain an unescaped one. Hiding too much of the path does no harm.
    before, at, rest = rest.rpartition("@")
    # After a question mark, the last @ may also be part of a query.
    path = re.split(r"[?#&]" if "?" in before else r"[?#]", rest, maxsplit=1)[0]
    shown = _IN_PATH.sub(r"\1***", path)
    return f"{scheme}://{'***@' if at else ''}{shown}{'?***' if path != rest else ''}"
