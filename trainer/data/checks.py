"""Reports facts about the data that a user should know before trusting a model trained on it."""

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
"""Maximum number of images per set that a finding lists."""
MAX_IMBALANCE = 3.0
"""Maximum ratio of the sizes of the largest and the smallest class. Frigate's maintainers recommend this limit."""
MIN_SHORT_SIDE = 80
"""Minimum length of the shorter side of an image, in pixels. Frigate's maintainers found that smaller crops lead to bad
models."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A fact about the data that the user should know.

    Attributes:
        kind: kind of finding.
        message: one line that states the fact, what follows from it, and what the user can do.
        images: paths of the images concerned, relative to the data root. Each inner tuple is a set of related images.
            At most 24 sets of 6 images are listed, the worst sets first; ``message`` gives the total number. Unreadable
            images, and all but the first of several identical images, were left out of the dataset.
    """

    kind: Kind
    message: str
    images: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def about(cls, kind: Kind, message: str, images: Sequence[Sequence[str]] = ()) -> Self:
        """Create a finding: limit the number of listed images, and turn the message into one printable line."""
        # A report cannot contain file names that are not valid UTF-8, so their invalid bytes are escaped.
        shown = tuple(
            tuple(path.encode("utf-8", "backslashreplace").decode() for path in paths[:IMAGES_SHOWN])
            for paths in images[:SETS_SHOWN]
        )
        return cls(kind, one_line(ValueError(message)), shown)


def shown_images(paths: Sequence[str]) -> str:
    """Return text for a message: the first three paths, and the number of the remaining ones."""
    return in_short(paths, 3)


def unreadable(reasons: Mapping[str, str], count: int) -> list[Finding]:
    """Report images that were left out because they cannot be read.

    Args:
        reasons: dict from the path of each of these images to the reason.
        count: number of all images, including unreadable ones.
    """
    if not reasons:
        return []
    message = (
        f"{len(reasons)} of {count} images cannot be used and were left out: {in_short(list(reasons.values()), 3)}"
    )
    return [Finding.about("unreadable", message, [(path,) for path in reasons])]


def copies(sets: Sequence[Sequence[Photo]]) -> list[Finding]:
    """Report sets of byte-identical images in the same class and split. The first image of each set was kept."""
    if not sets:
        return []
    count = sum(len(inside) - 1 for inside in sets)
    message = (
        f"{_counted(count, 'image')} left out as exact copies of others, such as {shown_images([sets[0][1].path])}, "
        f"a copy of {sets[0][0].path}"
    )
    return [Finding.about("copies", message, _largest_first([[photo.path for photo in inside] for inside in sets]))]


def copies_across_splits(sets: Sequence[Sequence[Photo]]) -> list[Finding]:
    """Report sets of byte-identical images that the user put into different splits. The first image was kept."""
    if not sets:
        return []
    message = (
        f"{_counted(len(sets), 'image')} found in more than one of train, val and test, such as "
        f"{shown_images([photo.path for photo in sets[0]])}; the copy in test, or else in val, was kept and the others "
        "were left out, because training on test images makes the metrics too high. Remove the copies"
    )
    return [Finding.about("leak", message, [[photo.path for photo in inside] for inside in sets])]


def leaks(photos: Sequence[Photo], groups: Groups, user_groups: Indices) -> list[Finding]:
    """Report sets of near duplicates, and groups of the user, whose images are in different splits.

    Near duplicates in the classes `Groups.given_up` are not included; `near_duplicates` reports them.

    Args:
        photos: images with their splits.
        groups: groups and near duplicates.
        user_groups: (n,) int; images with the same number are in the same group of the user.
    """
    findings = []
    kept_together = [inside for inside in _sets(groups.near) if photos[inside[0]].label not in groups.given_up]
    for what, sets in (("near duplicates", kept_together), ("one group", _sets(user_groups))):
        across = [inside for inside in sets if len({photos[i].split for i in inside}) > 1]
        if not across:
            continue
        evaluated = sum(photos[i].split != "train" for inside in across for i in inside)
        trained = sum(photos[i].split == "train" for inside in across for i in inside)
        message = (
            f"{_counted(evaluated, 'image')} for validation or testing and {trained} for training are {what} in "
            f"different splits ({_counted(len(across), 'set')}), so the metrics are too high. Move each set into "
            "one split"
        )
        findings.append(Finding.about("leak", message, _largest_first([_one_of_each(photos, s) for s in across])))
    return findings


def near_duplicates(photos: Sequence[Photo], groups: Groups, similar: Indices, *, given: bool) -> list[Finding]:
    """Report near duplicates, in up to three findings.

    The first is about near duplicates of one class, the second about near duplicates with different labels, and the
    third about classes whose near duplicates could not be kept in the same split.

    Args:
        photos: images with their splits.
        groups: groups and near duplicates.
        similar: (n,) int; images with the same number are near duplicates, even if their labels differ.
        given: True if the user has assigned the splits.
    """
    findings = []
    sets = _sets(groups.near)
    if sets:
        count = sum(map(len, sets))
        advice = "use more varied images" if given else "each set was put into one split, so the test remains valid"
        message = (
            f"{count} of {len(photos)} images are near duplicates of another, in "
            f"{_counted(len(sets), 'set')}; a set is hardly more useful for training than one of its images; {advice}"
        )
        paths = _largest_first([[photos[i].path for i in inside] for inside in sets])
        findings.append(Finding.about("near-duplicates", message, paths))
    mixed = [inside for inside in _sets(similar) if len({photos[i].label for i in inside}) > 1]
    if mixed:
        message = (
            f"{_counted(len(mixed), 'set')} of near duplicates with more than one class: correct if a fixed camera "
            "shows small changes, wrong labels if the images show the same"
        )
        findings.append(Finding.about("near-duplicates", message, [_one_of_each_label(photos, s) for s in mixed]))
    if groups.given_up:
        message = (
            f"class {in_short([repr(label) for label in groups.given_up])}: nearly all images are near duplicates of "
            "one another, as from a fixed camera. There are too few sets to split by, so the images were split one by "
            "one, and the test metrics of the class are too high. Define groups, or take photos on other days and from "
            "other places"
        )
        given_up = [[photos[i].path for i in inside] for inside in sets if photos[inside[0]].label in groups.given_up]
        findings.append(Finding.about("groups", message, _largest_first(given_up)))
    return findings


def uneven_groups(photos: Sequence[Photo], *, given: bool) -> list[Finding]:
    """Report classes that have less than half of the intended number of test images because of large groups.

    Nothing is reported if ``given`` is True, because then the splits come from the user or from an earlier run.
    """
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
        f"large groups leave few images for testing: class {in_short(few)} images; "
        "the test metrics of these classes are unreliable. Take photos of them on more occasions"
    )
    return [Finding.about("groups", message)]


def imbalance(photos: Sequence[Photo]) -> list[Finding]:
    """Report an imbalance if the largest class has more than three times as many images as the smallest."""
    counts = Counter(photo.label for photo in photos)
    most, least = max(counts, key=lambda c: (counts[c], c)), min(counts, key=lambda c: (counts[c], c))
    if counts[most] <= MAX_IMBALANCE * counts[least]:
        return []
    message = (
        f"class {most!r} has {counts[most]} images and class {least!r} only {counts[least]}: a model prefers frequent "
        f"classes. Class weights compensate for this, but more images of {least!r} help more"
    )
    return [Finding.about("imbalance", message)]


def small_images(photos: Sequence[Photo], sides: npt.NDArray[np.int32], size: tuple[int, int]) -> list[Finding]:
    """Report images whose shorter side is less than 80 pixels, or less than half the shorter side of the model input.

    Args:
        photos: the images.
        sides: (n, 2), original width and height of each image, pixels.
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
        f"{width}x{height}: enlarged to the model's {size[1]}x{size[0]} they show little detail, and the model learns "
        "their blur. Use larger images, or train with a smaller --image-size"
    )
    return [Finding.about("small", message, [(photos[i].path,) for i in small[:SETS_SHOWN]])]


def _sets(together: Indices) -> list[list[int]]:
    """Return a list of indices for each number that occurs at least twice in ``together``."""
    members = defaultdict(list)
    for i, number in enumerate(together.tolist()):
        members[number].append(i)
    return [inside for inside in members.values() if len(inside) > 1]


def _one_of_each(photos: Sequence[Photo], places: Sequence[int]) -> list[str]:
    """Return the path of the first image in each split, in the order test, val, train."""
    found = {photos[i].split: photos[i].path for i in reversed(places)}
    return [found[split] for split in reversed(SPLITS) if split in found]


def _one_of_each_label(photos: Sequence[Photo], places: Sequence[int]) -> list[str]:
    return list({photos[i].label: photos[i].path for i in reversed(places)}.values())


def _largest_first(sets: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    return sorted(sets, key=len, reverse=True)


def _counted(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count} {what}s"
