"""Finds images that must be in the same split: the groups defined by the user, and near duplicates of one class."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edge_agent.errors import ConfigError, DataError

from .duplicates import Indices, join
from .photo import Photo, in_short

MIN_GROUPS = 3
"""Minimum number of groups per class: one each for training, validation and testing."""
MAX_SHARE = 0.9
"""Maximum share of the images of a class that may be in one set of near duplicates. If the share were greater, at most
5 % each would remain for validation and testing."""


@dataclass(frozen=True, eq=False)
class Groups:
    """Sets of images that must be in the same split.

    Attributes:
        together: (n,) int; images with the same number must be in the same split.
        near: (n,) int; images with the same number are near duplicates of one class.
        given_up: classes whose near duplicates are not kept together, because the class has too few sets, or one of its
            sets is too large.
    """

    together: Indices
    near: Indices
    given_up: tuple[str, ...]


def group_by_name(photos: Sequence[Photo], pattern: str) -> list[Photo]:
    """Set the group of each image by searching its path for a regular expression.

    The name of the group is the text of the first capturing group, or the whole match if the pattern has no capturing
    group. Images without a match get no group. The search has no time limit, because the user chooses the pattern.

    Raises:
        ConfigError: the pattern is not a regular expression, or the images already have groups.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{pattern!r} is not a regular expression: {error}; example: '(burst_\\d+)'") from error
    if any(photo.group for photo in photos):
        raise ConfigError("the CSV file has groups already; clear its group column, or leave out --group-by")
    grouped = []
    for photo in photos:
        match = expression.search(photo.path)
        group = "" if match is None else match[1] if expression.groups else match[0]
        grouped.append(replace(photo, group=group or ""))
    return grouped


def find_groups(photos: Sequence[Photo], similar: Indices, *, settled: Collection[str] = ()) -> Groups:
    """Merge the groups of the user and the near duplicates into sets that must be in the same split.

    Args:
        photos: images with their hashes and the groups of the user.
        similar: (n,) int; images with the same number are near duplicates, even if their classes differ.
        settled: classes that already have images in every split and therefore need no groups.

    Raises:
        DataError: a class has fewer than three groups of the user, where an image without a group counts as one group.
            The message covers all such classes.
    """
    labels = [photo.label for photo in photos]
    near = same(list(zip(labels, similar.tolist(), strict=True)))
    given = same([photo.group or i for i, photo in enumerate(photos)])
    few = [
        f"class {label!r} has {count} groups"
        for label, count in sorted(_sets(labels, given).items())
        if count < MIN_GROUPS and label not in settled
    ]
    if few:
        raise DataError(
            f"{in_short(few)}; {MIN_GROUPS} are needed, one each for training, validation and testing: take photos of "
            "the class on more occasions, or make the groups smaller"
        )
    together = _joined(given, near)
    counts, largest = _sets(labels, together), _largest(labels, near)
    given_up = tuple(
        label
        for label in sorted(counts)
        if label not in settled and (counts[label] < MIN_GROUPS or largest[label] > MAX_SHARE)
    )
    if given_up:
        apart = np.array([label in given_up for label in labels])
        together = _joined(given, np.where(apart, np.arange(len(photos)), near))
    return Groups(together, near, given_up)


def with_group_names(photos: Sequence[Photo], groups: Groups) -> list[Photo]:
    """Give all images in a set of near duplicates the same group name, which contains the smallest hash of the set.

    Images that are already in a group of the user keep the name of that group. Sets that are not kept together get no
    name.
    """
    members = defaultdict(list)
    for i, number in enumerate(groups.near.tolist()):
        members[number].append(i)
    named = list(photos)
    for places in members.values():
        if len(places) > 1 and photos[places[0]].label not in groups.given_up:
            name = f"near:{min(photos[i].sha256 for i in places)[:12]}"
            for i in places:
                named[i] = replace(photos[i], group=photos[i].group or name)
    return named


def same(keys: Iterable[Hashable]) -> Indices:
    """Return for each key the index of its first occurrence."""
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(key, i) for i, key in enumerate(keys)], np.intp)


def _joined(one: Indices, other: Indices) -> Indices:
    together = one.copy()
    join(together, np.arange(len(other)), other)
    return together


def _sets(labels: Sequence[str], together: Indices) -> Counter[str]:
    """Count the sets of each class."""
    return Counter(label for label, _ in set(zip(labels, together.tolist(), strict=True)))


def _largest(labels: Sequence[str], together: Indices) -> dict[str, float]:
    """Return, for each class, the share of its images that are in its largest set."""
    totals = Counter(labels)
    largest: dict[str, float] = {}
    for (label, _), count in Counter(zip(labels, together.tolist(), strict=True)).items():
        largest[label] = max(largest.get(label, 0.0), count / totals[label])
    return largest
