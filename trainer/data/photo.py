"""One image of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.errors import one_line

SPLITS = ("train", "val", "test")


NAMED_AT_ONCE = 5
"""Problems of one kind that a message names; it counts the rest."""


@dataclass(frozen=True, slots=True)
class Photo:
    """One image of the data set.

    Attributes:
        path: relative to the data root, with forward slashes.
        label: name of its class.
        split: ``train``, ``val`` or ``test``; empty until it is assigned.
        sha256: of the file's bytes, in hexadecimal; empty until it is read.
        group: images of one group never straddle splits; empty for an image on its own.
    """

    path: str
    label: str
    split: str
    sha256: str = ""
    group: str = ""


def in_short(texts: Sequence[str], limit: int = NAMED_AT_ONCE) -> str:
    """The first few texts in one printable line, and how many more there are."""
    more = f"; and {len(texts) - limit} more" if len(texts) > limit else ""
    return one_line(ValueError("; ".join(texts[:limit]) + more))
