"""Assigns each image to training, validation or testing.

About 15 % of the images of each class are used for validation and 15 % for testing, but at least one image each. All
images of a group are assigned to the same split. The groups of each class are assigned in the order of the smallest
content hash in each group. The result therefore depends only on the images and their groups, and not on file names, the
order of the images or a random seed. Images of an earlier run keep their split.
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
    """Images that are assigned to the same split.

    Attributes:
        number: number of the group.
        key: smallest hash of the images, used as the sort key.
        counts: dict from each class in the group to the number of images.
    """

    number: int
    key: str
    counts: Mapping[str, int]


def split_photos(photos: Sequence[Photo], together: Indices, *, frozen: Mapping[str, str]) -> list[Photo]:
    """Assign a split to every image.

    Args:
        photos: images with their hashes, which must all be different.
        together: (n,) int; images with the same number are put into the same split.
        frozen: dict from SHA-256 to split, from an earlier run. These images keep their split. If a group contains such
            images, its new images are put into the most frequent split of these images.

    Raises:
        DataError: a class would have no images in one of the splits, because its groups also contain other classes.
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
    # Classes with few groups are assigned first. If a class still has no images in one of the splits, it is moved to
    # the front, and the assignment starts again.
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
    """Assign the groups of one class after the other.

    Return the split of each assigned group, and the first class that has no images in one of the splits, or "" if every
    class has images in all splits.
    """
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
        # The group that exceeds the targets least is put into val or test. The largest group is put into train, because
        # it fits nowhere else.
        plan.put(min(left, key=functools.partial(plan.cost, label=label, split=split)), split)
    return plan.splits, ""


@dataclass
class _Plan:
    """Splits assigned so far.

    Attributes:
        by_label: groups of each class, sorted by hash.
        targets: dict from class and split to the intended number of images.
        have: dict from class and split to the current number of images.
        splits: dict from group number to split.
    """

    by_label: Mapping[str, Sequence[_Group]]
    targets: Mapping[tuple[str, str], int]
    have: Counter[tuple[str, str]]
    splits: dict[int, str] = field(default_factory=dict)

    def left(self, label: str) -> list[_Group]:
        """Return the groups of this class that have no split yet, sorted by hash."""
        return [group for group in self.by_label[label] if group.number not in self.splits]

    def put(self, group: _Group, split: str) -> None:
        self.splits[group.number] = split
        for label, count in group.counts.items():
            self.have[label, split] += count

    def excess(self, group: _Group, split: str) -> int:
        """Return the number of images by which the targets would be exceeded if the group were put into the split."""
        return sum(
            max(0, self.have[label, split] + count - self.targets[label, split])
            for label, count in group.counts.items()
        )

    def cost(self, group: _Group, label: str, split: str) -> tuple[int, str]:
        """Return a sort key. The group with the smallest key is put into a split that lacks images of the class."""
        return (-group.counts[label] if split == "train" else self.excess(group, split), group.key)

    def fill(self, label: str, split: str) -> None:
        """Put groups of the class into the split, unless they would exceed a target.

        Keep enough groups of the class for the other splits that have no images of this class yet.
        """
        left = self.left(label)
        spare = len(left) - sum(not self.have[label, other] for other in SPLITS if other != split)
        for group in left:
            if spare > 0 and not self.excess(group, split):
                self.put(group, split)
                spare -= 1
