"""Which images train, which validate and which test.

15 % of each class validate and 15 % test, at least one image each: those with the smallest content
hashes, or the groups that hold them. So the split depends on nothing but the images and their groups: not on
names, order or a seed. Images that an earlier run has split keep their place.
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
    """Images that stay together: how many of each class, and the smallest hash, which decides the order."""

    number: int
    key: str
    counts: Mapping[str, int]


def split_photos(photos: Sequence[Photo], together: Indices, *, frozen: Mapping[str, str]) -> list[Photo]:
    """Assign every image its split.

    Args:
        photos: images with their hashes, all different.
        together: (n,) int, images with the same number go to the same split.
        frozen: sha256 -> split, from an earlier run. Such images keep it, and new ones that belong together
            with them follow: where those are apart already, the split most of them are in.

    Raises:
        DataError: groups of several classes tie them together so that a class misses a split.
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
    """A split for every group."""
    by_label: dict[str, list[_Group]] = {label: [] for label in totals}
    for group in groups:
        for label in group.counts:
            by_label[label].append(group)
    # Classes with few groups choose first. One that comes away empty all the same goes before the others.
    order = sorted(totals, key=lambda label: (len(by_label[label]), label))
    for _ in totals:
        splits, stuck = _try(order, by_label, totals, taken)
        if not stuck:
            return {group.number: splits.get(group.number, "train") for group in groups}
        order.remove(stuck)
        order.insert(0, stuck)
    raise DataError(
        f"class {stuck!r} cannot be split: its groups also hold other classes, and each way leaves a class without "
        f"one of {', '.join(SPLITS)}. Make the groups smaller, or split the images yourself"
    )


def _try(
    order: Iterable[str],
    by_label: Mapping[str, Sequence[_Group]],
    totals: Mapping[str, int],
    taken: Counter[tuple[str, str]],
) -> tuple[dict[int, str], str]:
    """Choose class by class; return what was chosen, and the first class that misses a split or nothing."""
    wanted = {
        (label, split): max(1, round(totals[label] * share)) for label in totals for split, share in SHARES.items()
    }
    plan = _Plan(by_label, wanted, taken.copy())
    for label, split in itertools.product(order, (*SHARES, "train")):
        if split in SHARES:
            plan.fill(label, split)
        if plan.have[label, split]:
            continue
        left = plan.left(label)
        if not left:
            return plan.splits, label
        # What must exceed its share exceeds it least; training gets the largest, which fits nowhere else.
        plan.put(min(left, key=functools.partial(plan.cost, label=label, split=split)), split)
    return plan.splits, ""


@dataclass
class _Plan:
    """Splits chosen so far, and how many images of each class and split that makes."""

    by_label: Mapping[str, Sequence[_Group]]
    wanted: Mapping[tuple[str, str], int]
    have: Counter[tuple[str, str]]
    splits: dict[int, str] = field(default_factory=dict)

    def left(self, label: str) -> list[_Group]:
        """Groups with images of this class that have no split yet, in the order of their hashes."""
        return [group for group in self.by_label[label] if group.number not in self.splits]

    def put(self, group: _Group, split: str) -> None:
        self.splits[group.number] = split
        for label, count in group.counts.items():
            self.have[label, split] += count

    def excess(self, group: _Group, split: str) -> int:
        """Images over the classes' shares that the group would bring."""
        return sum(
            max(0, self.have[label, split] + count - self.wanted[label, split]) for label, count in group.counts.items()
        )

    def cost(self, group: _Group, label: str, split: str) -> tuple[int, str]:
        """Smallest for the group to put into a split that lacks the class."""
        return (-group.counts[label] if split == "train" else self.excess(group, split), group.key)

    def fill(self, label: str, split: str) -> None:
        """Put in what fits, as long as enough is left for the splits that still lack the class."""
        left = self.left(label)
        spare = len(left) - sum(not self.have[label, other] for other in SPLITS if other != split)
        for group in left:
            if spare > 0 and not self.excess(group, split):
                self.put(group, split)
                spare -= 1
