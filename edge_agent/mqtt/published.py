"""What this device has published as retained messages, which stay at the broker until somebody clears them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from ..atomic_files import replacing

log = logging.getLogger(__name__)

_MAX_BYTES = 1_000_000


class _Content(msgspec.Struct):
    """The file. ``components``: platforms of Home Assistant's components, by discovery topic and key."""

    v: int = 1
    topics: list[str] = []
    components: dict[str, dict[str, str]] = {}


class Published:
    """The retained topics and Home Assistant components that this device has published, also under former names.

    Thread-safe. If the file cannot be read or written, this is logged, and nothing is cleared.

    Args:
        path: JSON file; None remembers nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._content = _read(path)

    def no_longer(self, topics: Iterable[str]) -> list[str]:
        """Remember that ``topics`` are published from now on; returns the other ones that were published before."""
        current = dict.fromkeys(topics)
        with self._lock:
            stale = [topic for topic in self._content.topics if topic not in current]
            self._save(topics=[*current, *stale])
        return stale

    def cleared(self, topic: str) -> None:
        """Forget a topic, whose retained message the broker has cleared."""
        with self._lock:
            components = {name: keys for name, keys in self._content.components.items() if name != topic}
            self._save(topics=[one for one in self._content.topics if one != topic], components=components)

    def removed_components(self, topic: str, platforms: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Remember the components of a discovery message; returns the removed ones, to be announced as removed.

        They are announced for good, because Home Assistant may be off for any time.

        Args:
            topic: topic of the discovery message.
            platforms: platforms of the current components, by key.
        """
        with self._lock:
            known = self._content.components.get(topic, {})
            self._save(components={**self._content.components, topic: {**known, **platforms}})
        return {key: {"platform": platform} for key, platform in known.items() if key not in platforms}

    def _save(self, **changes: object) -> None:
        content = msgspec.structs.replace(self._content, **changes)
        if content == self._content or self._path is None:
            return
        self._content = content
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as file:
                file.write(msgspec.json.encode(content))
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error.strerror or error)


def _read(path: Path | None) -> _Content:
    if path is None:
        return _Content()
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_BYTES), type=_Content)
    except FileNotFoundError:
        pass
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("%s cannot be read (%s); retained messages of removed cameras are not cleared", path, error)
    return _Content()
