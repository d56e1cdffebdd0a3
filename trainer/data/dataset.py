"""Loads a dataset: labelled, split and preprocessed images from files on disk. Start reading at `load_dataset`."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from edge_agent.errors import DataError
from edge_agent.preprocessing import PreprocessSpec

from ..progress import status
from . import checks as about
from .cache import PixelCache, default_cache
from .checks import Finding
from .duplicates import near_duplicates
from .groups import find_groups, group_by_name, same, with_group_names
from .ingest import Ingested, ingest
from .photo import SPLITS, Photo, in_short
from .pixels import PixelRows
from .sources import check_classes, data_root, find_photos
from .split import split_photos

MAX_UNREADABLE = 0.1
_QUIET = Console(quiet=True)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with their labels, splits and preprocessed pixels.

    Attributes:
        labels: class names, sorted.
        photos: one entry per image, sorted by path within the class, without copies and unreadable images.
        pixels: row i is photo i preprocessed as on the device, `edge_agent.preprocess(frame, spec)`.
        roomy: row i is photo i preprocessed to an enlarged size for augmentation; None if not requested.
        findings: facts that the user should know about the data, in the order they were found.
    """

    labels: tuple[str, ...]
    photos: tuple[Photo, ...]
    pixels: PixelRows
    roomy: PixelRows | None
    findings: tuple[Finding, ...]

    def indices(self, split: str) -> list[int]:
        """Return the indices of the images of one split."""
        return [i for i, photo in enumerate(self.photos) if photo.split == split]

    @property
    def fingerprint(self) -> str:
        """sha256 over the images' hashes, labels and splits, which does not depend on paths or the machine."""
        rows = sorted(f"{photo.sha256} {photo.label} {photo.split}\n" for photo in self.photos)
        return hashlib.sha256("".join(rows).encode()).hexdigest()


def load_dataset(
    root: Path,
    spec: PreprocessSpec,
    *,
    room: tuple[int, int] | None = None,
    cache: Path | None = None,
    max_unreadable: float = MAX_UNREADABLE,
    group_by: str | None = None,
    frozen: Mapping[str, str] | None = None,
    console: Console = _QUIET,
) -> Dataset:
    """Read, check and split a dataset.

    Args:
        root: a folder per class, train/val/test folders of those, or a CSV file; see `find_photos`.
        spec: preprocessing of the images.
        room: height and width of a second, enlarged version of the pixels for augmentation; None for no such version.
        cache: folder in which pixels are kept between runs; `default_cache()` when None.
        max_unreadable: maximum share of unreadable images, 0 to 1; they are left out.
        group_by: regular expression that finds an image's group in its path; see `group_by_name`.
        frozen: sha256 -> split from the split.csv of an earlier run. Its images keep their split, even if their folder
            names another one; the other images are split around them.
        console: console for the progress.

    Raises:
        DataError: nothing to train on (see `find_photos` and `check_classes`), too many unreadable images, the same
            image in two classes, classes that cannot be split by their groups, or no disk space for the pixels. All
            problems of one kind are named at once.
        ConfigError: ``group_by`` is not a regular expression, or the images already have groups.
    """
    listed = find_photos(root)
    if group_by is not None:
        listed = group_by_name(listed, group_by)
    check_classes(listed, root)
    frozen = _checked(frozen or {})

    roomy_spec = spec if room is None else PreprocessSpec(room, spec.fit, spec.channels)
    specs = list(dict.fromkeys([spec, roomy_spec]))
    with ExitStack() as held:
        caches = _open_caches(held, default_cache() if cache is None else cache, specs, console)
        read = ingest(data_root(root), listed, caches, console=console)
        notes = _without_unreadable(listed, read, max_unreadable)
        photos, places, more = _without_copies(listed, read)
        notes += more
        given = bool(photos[0].split)
        check_classes(photos, root)
        photos = [replace(photo, split=frozen.get(photo.sha256, photo.split)) for photo in photos]
        # Sorted by hash, so that names and folders do not influence borderline cases.
        by_hash = np.argsort(np.array([photo.sha256 for photo in photos]))
        with status(console, "Looking for near duplicates"):
            rows = read.rows[0, places][by_hash]
            found = near_duplicates(len(photos), lambda some: caches[0].thumbs(rows[some]))
        similar = np.empty_like(found)
        similar[by_hash] = by_hash[found]
        pixels = {
            one: kept.pixel_rows(read.rows[i, places]) for i, (one, kept) in enumerate(zip(specs, caches, strict=True))
        }

    covered = {(photo.label, photo.split) for photo in photos}
    settled = {label for label in _labels(photos) if all((label, split) in covered for split in SPLITS)}
    groups = find_groups(photos, similar, settled=settled)
    user_groups = same([photo.group or i for i, photo in enumerate(photos)])
    if not given:
        photos = split_photos(photos, groups.together, frozen=frozen)
    notes += about.leaks(photos, groups, user_groups)
    notes += about.near_duplicates(photos, groups, similar, given=given)
    notes += about.uneven_groups(photos, given=given or bool(frozen))
    notes += about.imbalance(photos)
    notes += about.small_images(photos, read.sides[places], spec.size)
    photos = with_group_names(photos, groups)
    check_classes(photos, root)
    return Dataset(_labels(photos), tuple(photos), pixels[spec], pixels[roomy_spec] if room else None, tuple(notes))


def _labels(photos: Sequence[Photo]) -> tuple[str, ...]:
    return tuple(sorted({photo.label for photo in photos}))


def _checked(frozen: Mapping[str, str]) -> Mapping[str, str]:
    wrong = sorted(set(frozen.values()) - set(SPLITS))
    if wrong:
        raise DataError(f"the earlier split names {in_short(wrong)}; expected only {', '.join(SPLITS)}")
    return frozen


def _open_caches(held: ExitStack, base: Path, specs: Sequence[PreprocessSpec], console: Console) -> list[PixelCache]:
    """Open the caches of these specs and return them in the same order."""
    caches = [
        PixelCache(base, spec, waiting=lambda _: console.print("Waiting for another edgeloop process to read images"))
        for spec in specs
    ]
    # Always in the same order, to avoid a deadlock of two processes.
    for one in sorted(caches, key=lambda cache: cache.folder):
        held.enter_context(one)
    return caches


def _without_unreadable(photos: Sequence[Photo], read: Ingested, limit: float) -> list[Finding]:
    reasons = {photos[place].path: reason for place, reason in read.unreadable.items()}
    if len(reasons) > limit * len(photos):
        raise DataError(
            f"{len(reasons)} of {len(photos)} images cannot be used, more than the {100 * limit:.0f} % allowed: "
            f"{in_short(list(reasons.values()), 3)}. Repair or delete them, or allow more with --max-unreadable"
        )
    return about.unreadable(reasons, len(photos))


def _without_copies(photos: Sequence[Photo], read: Ingested) -> tuple[list[Photo], list[int], list[Finding]]:
    """Return the distinct images, their indices in ``photos``, and findings about copies that were left out.

    Raises:
        DataError: the same image is in two classes.
    """
    places = [i for i in range(len(photos)) if i not in read.unreadable]
    whole = {i: replace(photos[i], sha256=read.sha256[i].tobytes().hex()) for i in places}
    copies = defaultdict(list)
    for i in places:
        copies[whole[i].sha256].append(i)
    kept, within, across, conflicts = [], [], [], []
    for same_bytes in copies.values():
        # Test before val before train, because test images must not be used for training.
        order = sorted(same_bytes, key=lambda i: -SPLITS.index(photos[i].split) if photos[i].split else 0)
        kept.append(order[0])
        if len({photos[i].label for i in order}) > 1:
            conflicts.append(" and ".join(sorted(photos[i].path for i in order[:3])))
            continue
        by_split = Counter(photos[i].split for i in order)
        if len(by_split) > 1:
            across.append([whole[i] for i in order])
        elif len(order) > 1:
            within.append([whole[i] for i in order])
    if conflicts:
        raise DataError(f"the same image is in two classes: {in_short(conflicts)}; keep it only in the right one")
    kept.sort()
    notes = about.copies_across_splits(across) + about.copies(within)
    return [whole[i] for i in kept], kept, notes
