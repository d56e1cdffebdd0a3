"""Splits images into training, validation and test images.

15 % of each class are for validation and 15 % for testing, at least one image each: those with the smallest content
hashes, or their groups. The split therefore depends only on the images and their groups, not on names, order or a
seed. Images of an earlier run keep their split.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edge_agent.errors import DataError

from .duplicates import Indices
from .photo import SPLITS, Photo

SHARES = {"test": 0.15, "val": 0.15}


@dataclass(frozen=True)
class _Group:
    """Images that stay together: the number of images of each class, and the smallest hash (the sort key)."""

    number: int
    key: str
    counts: Mapping[str, int]


def split_photos(photos: Sequence[Photo], together: Indices, *, frozen: Mapping[str, str]) -> list[Photo]:
    """Assign a split to every image.

    Args:
        photos: images with their hashes, all different.
        together: (n,) int, images with the same number are put into the same split.
        frozen: sha256 -> split, from an earlier run. These images keep their split, and new images of the same group
            get the most frequent split of them.

    Raises:
        DataError: groups with several classes leave a class without one of the splits.
    """
    members: dict[int, list[Photo]] = defaultdict(list)
    for photo, number in zip(photos, together.tolist(), strict=True):
        members[number].append(photo)
    splits: dict[int, str] = {}
    free: list[_Group] = []
    for number, inside in members.items():
        known = Counter(frozen[photo.sha256] for photo in inside if photo.sha256 in frozen)
        if known:
            splits[number] = min(known, key=lambda split: (-known[split], SPLITS.index(split)))
        else:
            counts = Counter(photo.label for photo in inside)
            free.append(_Group(number, min(photo.sha256 for photo in inside), counts))
    taken = Counter(
        (photo.label, frozen.get(photo.sha256, splits[number]))
        for photo, number in zip(photos, together.tolist(), strict=True)
        if number in splits
    )
    totals = Counter(photo.label for photo in photos)
    splits |= _assign(sorted(free, key=lambda group: group.key), totals, taken)
    return [
        replace(photo, split=frozen.get(photo.sha256) or splits[number])
        for photo, number in zip(photos, together.tolist(), strict=True)
    ]


def _assign(groups: Sequence[_Group], totals: Mapping[str, int], taken: Counter[tuple[str, str]]) -> dict[int, str]:
    """Assign a split to every group. Return a dict from group number to split."""
    by_label: dict[str, list[_Group]] = {label: [] for label in totals}
    for group in groups:
        for label in group.counts:
            by_label[label].append(group)
    # Classes with few groups are assigned first. If one still misses a split, it is moved to the front.
    order = sorted(totals, key=lambda label: (len(by_label[label]), label))
    for _ in totals:
        splits, stuck = _try(order, by_label, totals, taken)
        if not stuck:
            return {group.number: splits.get(group.number, "train") for group in groups}
        order.remove(stuck)
        order.insert(0, stuck)
    raise DataError(
        f"class {stuck!r} cannot be split: its groups also contain other classes, and every split leaves a class "
        f"without one of {', '.join(SPLITS)}. Make the groups smaller, or split the images yourself"
    )


def _try(
    order: Iterable[str],
    by_label: Mapping[str, Sequence[_Group]],
    totals: Mapping[str, int],
    taken: Counter[tuple[str, str]],
) -> tuple[dict[int, str], str]:
    """Assign splits class by class. Return them, and the first class that is missing from a split, or "" if none is."""
    targets = {
        (label, split): max(1, round(totals[label] * share)) for label in totals for split, share in SHARES.items()
    }
    plan = _Plan(by_label, targets, taken.copy())
    for label, split in itertools.product(order, (*SHARES, "train")):
        if split in SHARES:
            plan.fill(label, split)
        if plan.have[label, split]:
            continue
        left = plan.left(label)
        if not left:
            return plan.splits, label
        # A share is exceeded as little as possible; training gets the largest group, which fits nowhere else.
        plan.put(min(left, key=functools.partial(plan.cost, label=label, split=split)), split)
    return plan.splits, ""


@dataclass
class _Plan:
    """Splits assigned so far, with the target and the current number of images of each class and split."""

    by_label: Mapping[str, Sequence[_Group]]
    targets: Mapping[tuple[str, str], int]
    have: Counter[tuple[str, str]]
    splits: dict[int, str] = field(default_factory=dict)

    def left(self, label: str) -> list[_Group]:
        """Return the groups of this class that have no split yet, in the order of their hashes."""
        return [group for group in self.by_label[label] if group.number not in self.splits]

    def put(self, group: _Group, split: str) -> None:
        self.splits[group.number] = split
        for label, count in group.counts.items():
            self.have[label, split] += count

    def excess(self, group: _Group, split: str) -> int:
        """Return the number of images by which the group would exceed the shares of its classes."""
        return sum(
            max(0, self.have[label, split] + count - self.targets[label, split])
            for label, count in group.counts.items()
        )

    def cost(self, group: _Group, label: str, split: str) -> tuple[int, str]:
        """Return a sort key, smallest for the group to put into a split that lacks the class."""
        return (-group.counts[label] if split == "train" else self.excess(group, split), group.key)

    def fill(self, label: str, split: str) -> None:
        """Add the groups that fit, as long as enough groups remain for the splits that still lack the class."""
        left = self.left(label)
        spare = len(left) - sum(not self.have[label, other] for other in SPLITS if other != split)
        for group in left:
            if spare > 0 and not self.excess(group, split):
                self.put(group, split)
                spare -= 1
