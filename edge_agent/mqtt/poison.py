"""Finds a message to which the broker answers by closing the connection.

MQTT 3.1.1 has no other way to refuse a message, and MQTT 5 brokers do the same with packets that are too large, or
topics that are too deep. A client that sends such a message again after each reconnect never gets any further.
"""

from __future__ import annotations

from collections.abc import Sequence

_CAUTIOUS_AFTER = 2
_PROOFS = 3


class PoisonFinder:
    """Decides which message is to blame for lost connections. Not thread-safe.

    After two losses with messages under way, the caller sends them one at a time. A message is to blame if it was
    alone under way three times in a row when the broker closed a connection on which it had accepted other messages.
    """

    def __init__(self) -> None:
        self._losses = 0
        self._proofs = 0
        self._suspect: int | None = None

    @property
    def is_cautious(self) -> bool:
        """Whether to have only one message under way."""
        return self._losses >= _CAUTIOUS_AFTER

    def all_acknowledged(self) -> None:
        """Note that the broker has acknowledged every message."""
        self._losses = self._proofs = 0
        self._suspect = None

    def lost(self, under_way: Sequence[int], *, by_broker: bool, accepted_others: bool) -> int | None:
        """Note the loss of a connection.

        Args:
            under_way: Keys of the messages that were not acknowledged.
            by_broker: Whether the broker closed the connection.
            accepted_others: Whether it had acknowledged messages on this connection before.

        Returns:
            Key of the message that is to blame; None if that is not known.
        """
        if not by_broker or not under_way:
            return None
        self._losses += 1
        if len(under_way) > 1 or not accepted_others:
            return None
        (key,) = under_way
        self._proofs = self._proofs + 1 if key == self._suspect else 1
        self._suspect = key
        if self._proofs < _PROOFS:
            return None
        self.all_acknowledged()
        return key
