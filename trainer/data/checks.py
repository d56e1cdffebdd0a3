"""What a user should know about the data before trusting a model trained on it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from edge_agent.errors import one_line

from .duplicates import Indices
from .groups import Groups
from .photo import SPLITS, Photo, in_short

Kind = Literal["unreadable", "copies", "leak", "near-duplicates", "imbalance", "small", "groups", "label"]

SETS_SHOWN = 24
IMAGES_SHOWN = 6
"""Of each set."""
MAX_IMBALANCE = 3.0
"""Largest class over the smallest; the figure Frigate's maintainers give their users."""
MIN_SHORT_SIDE = 80
"""Pixels; crops under it are a cause of bad models in the experience of Frigate's maintainers."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the user should know about the data.

    Attributes:
        kind: what it is about.
        message: one line in words: what was found, why it matters, what to do.
        images: paths relative to the data root, each inner tuple a set that belongs together; the worst
            first, at most 24 sets of 6: the message has the count. Copies and unreadable images were left
            out of the data set, all others are in it.
    """

    kind: Kind
    message: str
    images: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def about(cls, kind: Kind, message: str, images: Sequence[Sequence[str]] = ()) -> Self:
        """A finding with as many images as are worth showing, its message in one printable line."""
        # Names that are not UTF-8 have no place in a report.
        shown = tuple(
            tuple(path.encode("utf-8", "backslashreplace").decode() for path in paths[:IMAGES_SHOWN])
            for paths in images[:SETS_SHOWN]
        )
        return cls(kind, one_line(ValueError(message)), shown)


def shown_images(paths: Sequence[str]) -> str:
    """The first three paths for a message."""
    return in_short(paths, 3)


def unreadable(reasons: Mapping[str, str], count: int) -> list[Finding]:
    """Images left out because they cannot be read: path -> why, of ``count`` in all."""
    if not reasons:
        return []
    message = (
        f"{len(reasons)} of {count} images cannot be used and were left out: {in_short(list(reasons.values()), 3)}"
    )
    return [Finding.about("unreadable", message, [(path,) for path in reasons])]


def copies(sets: Sequence[Sequence[Photo]]) -> list[Finding]:
    """Sets of byte-identical images of one class and split: the first was kept."""
    if not sets:
        return []
    count = sum(len(inside) - 1 for inside in sets)
    message = (
        f"{_counted(count, 'image')} left out as exact copies, first {shown_images([sets[0][1].path])} of "
        f"{sets[0][0].path}; an image counts once"
    )
    return [Finding.about("copies", message, _largest_first([[photo.path for photo in inside] for inside in sets]))]


def copies_across_splits(sets: Sequence[Sequence[Photo]]) -> list[Finding]:
    """Sets of byte-identical images in several of the given splits: the first was kept."""
    if not sets:
        return []
    message = (
        f"{_counted(len(sets), 'image')} found in more than one of train, val and test, first "
        f"{shown_images([photo.path for photo in sets[0]])}; kept in test, else in val, and left out "
        "elsewhere, for a model that has seen its test is no better for it. Remove the copies"
    )
    return [Finding.about("leak", message, [[photo.path for photo in inside] for inside in sets])]


def leaks(photos: Sequence[Photo], groups: Groups, user_groups: Indices) -> list[Finding]:
    """Near duplicates and groups that lie in several splits, apart from classes whose near duplicates were given up.

    Args:
        photos: images with their splits.
        groups: what belongs together.
        user_groups: (n,) int, the same number for images of one group of the user's.
    """
    findings = []
    kept_together = [inside for inside in _sets(groups.near) if photos[inside[0]].label not in groups.given_up]
    for what, sets in (("near duplicates", kept_together), ("one group", _sets(user_groups))):
        across = [inside for inside in sets if len({photos[i].split for i in inside}) > 1]
        if not across:
            continue
        judged = sum(photos[i].split != "train" for inside in across for i in inside)
        seen = sum(photos[i].split == "train" for inside in across for i in inside)
        message = (
            f"{_counted(judged, 'image')} to validate or test with and {seen} to train with are {what} in "
            f"different splits, {_counted(len(across), 'set')} in all; what a model has all but seen it knows, so its "
            "figures flatter. Move each set into one split"
        )
        findings.append(Finding.about("leak", message, _largest_first([_one_of_each(photos, s) for s in across])))
    return findings


def near_duplicates(photos: Sequence[Photo], groups: Groups, similar: Indices, *, given: bool) -> list[Finding]:
    """How many near duplicates there are, and whether they carry different labels or could not be kept together."""
    findings = []
    sets = _sets(groups.near)
    if sets:
        count = sum(map(len, sets))
        what = "train on different ones" if given else "each set was put into one split, so that the test stays honest"
        message = (
            f"{count} of {len(photos)} images are near duplicates of another, in "
            f"{_counted(len(sets), 'set')}: they teach little more than one of each; {what}"
        )
        paths = _largest_first([[photos[i].path for i in inside] for inside in sets])
        findings.append(Finding.about("near-duplicates", message, paths))
    mixed = [inside for inside in _sets(similar) if len({photos[i].label for i in inside}) > 1]
    if mixed:
        message = (
            f"{_counted(len(mixed), 'set')} of near duplicates with more than one class: fine where a fixed camera "
            "sees small things change, wrong labels where the images show the same"
        )
        findings.append(Finding.about("near-duplicates", message, [_one_of_each_label(photos, s) for s in mixed]))
    if groups.given_up:
        message = (
            f"class {in_short([repr(label) for label in groups.given_up])}: nearly all images are near duplicates of "
            "one another, as from a fixed camera, too few sets to split by; they were split one by one, so "
            "its test figures flatter. Name groups, or photograph on other days and from other places"
        )
        given_up = [[photos[i].path for i in inside] for inside in sets if photos[inside[0]].label in groups.given_up]
        findings.append(Finding.about("groups", message, _largest_first(given_up)))
    return findings


def uneven_groups(photos: Sequence[Photo], *, given: bool) -> list[Finding]:
    """Classes that groups left with less than half of the share meant to test with."""
    if given:
        return []
    totals, tested = Counter(p.label for p in photos), Counter(p.label for p in photos if p.split == "test")
    few = [
        f"{label!r} {tested[label]} of {totals[label]}"
        for label in sorted(totals)
        if tested[label] < 0.5 * round(0.15 * totals[label])
    ]
    if not few:
        return []
    message = (
        f"groups are so large that little is left to test with: class {in_short(few)} images; "
        "the figures of these classes say little. Photograph them on more occasions"
    )
    return [Finding.about("groups", message)]


def imbalance(photos: Sequence[Photo]) -> list[Finding]:
    """Whether the largest class has more than three times the images of the smallest."""
    counts = Counter(photo.label for photo in photos)
    most, least = max(counts, key=lambda c: (counts[c], c)), min(counts, key=lambda c: (counts[c], c))
    if counts[most] <= MAX_IMBALANCE * counts[least]:
        return []
    message = (
        f"class {most!r} has {counts[most]} images and class {least!r} only {counts[least]}: a model prefers what it "
        f"has seen more of. Classes are weighted against that, but more images of {least!r} help more"
    )
    return [Finding.about("imbalance", message)]


def small_images(photos: Sequence[Photo], sides: npt.NDArray[np.int32], size: tuple[int, int]) -> list[Finding]:
    """Images whose shorter side is under 80 pixels or under half of the model's input.

    Args:
        photos: the images.
        sides: (n, 2), width and height of each as it was stored.
        size: height and width of the model's input, pixels.
    """
    limit = max(MIN_SHORT_SIDE, min(size) // 2)
    shorter = sides.min(1)
    order = np.argsort(shorter, kind="stable")
    small = order[: int((shorter < limit).sum())]
    if not len(small):
        return []
    width, height = sides[small[0]]
    message = (
        f"{len(small)} of {len(photos)} images are shorter than {limit} pixels on a side, the smallest "
        f"{width}x{height}: enlarged to the model's {size[1]}x{size[0]} they show little, and a model learns their "
        "blur. Use larger originals, or train with a smaller --image-size"
    )
    return [Finding.about("small", message, [(photos[i].path,) for i in small[:SETS_SHOWN]])]


def _sets(together: Indices) -> list[list[int]]:
    """Places that share a number, where there are at least two."""
    members = defaultdict(list)
    for i, number in enumerate(together.tolist()):
        members[number].append(i)
    return [inside for inside in members.values() if len(inside) > 1]


def _one_of_each(photos: Sequence[Photo], places: Sequence[int]) -> list[str]:
    """The first image of each split, the test's first."""
    found = {photos[i].split: photos[i].path for i in reversed(places)}
    return [found[split] for split in reversed(SPLITS) if split in found]


def _one_of_each_label(photos: Sequence[Photo], places: Sequence[int]) -> list[str]:
    return list({photos[i].label: photos[i].path for i in reversed(places)}.values())


def _largest_first(sets: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    return sorted(sets, key=len, reverse=True)


def _counted(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count} {what}s"
