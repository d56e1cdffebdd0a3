"""Defines the images of a dataset, and the names of the splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.errors import one_line

SPLITS = ("train", "val", "test")


NAMED_AT_ONCE = 5
"""Maximum number of problems of one kind that a message lists. Further problems are only counted."""


@dataclass(frozen=True, slots=True)
class Photo:
    """An image of the dataset.

    Attributes:
        path: path relative to the data root, with forward slashes.
        label: name of the class.
        split: ``train``, ``val`` or ``test``; empty until it is assigned.
        sha256: hash of the file, in hexadecimal; empty until the file is read.
        group: name of the group to which the image belongs; empty if it has none. All images of a group should be
            in the same split.
    """

    path: str
    label: str
    split: str
    sha256: str = ""
    group: str = ""


def in_short(texts: Sequence[str], limit: int = NAMED_AT_ONCE) -> str:
    """Return one printable line with the first ``limit`` texts and the number of the remaining ones."""
    more = f"; and {len(texts) - limit} more" if len(texts) > limit else ""
    return one_line(ValueError("; ".join(texts[:limit]) + more))
