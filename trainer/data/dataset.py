"""Loads a dataset: labelled, split and preprocessed images from files on disk. The main function is `load_dataset`."""

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
        photos: the images, sorted by path within each class. Copies and unreadable images are left out.
        pixels: pixels of the images. Row i is ``photos[i]``, preprocessed by `edge_agent.preprocess` as on the device.
        roomy: the same images, preprocessed to an enlarged size for augmentation; None if not requested.
        findings: facts about the data that the user should know, in the order in which they were found.
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
        """SHA-256, in hexadecimal, of the hashes, labels and splits of all images.

        It does not depend on the paths or on the machine.
        """
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
        root: folder that contains one folder per class; folder that contains train, val and test folders with one
            folder per class in each; or CSV file. See `find_photos`.
        spec: preprocessing of the images.
        room: height and width of the enlarged images for augmentation, pixels; None if they are not needed.
        cache: folder in which pixels are kept between runs; `default_cache()` if None.
        max_unreadable: maximum share of unreadable images, 0 to 1. Unreadable images are left out of the dataset.
        group_by: regular expression that finds an image's group in its path; see `group_by_name`.
        frozen: dict from SHA-256 to split, from the split.csv of an earlier run. These images keep their split, even if
            they are now in the folder of another split.
        console: console for the progress.

    Raises:
        DataError: the images are not suitable for training (see `find_photos` and `check_classes`), too many images are
            unreadable, the same image is in two classes, a class cannot be split without dividing groups, or the pixels
            cannot be stored. The message covers all problems of the same kind.
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
        # The images are sorted by hash, so that names and folders do not influence borderline cases.
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
    """Open one cache per spec. Return the caches in the order of ``specs``."""
    caches = [
        PixelCache(base, spec, waiting=lambda _: console.print("Waiting for another edgeloop process to read images"))
        for spec in specs
    ]
    # All processes lock the caches in the same order, so that they cannot deadlock.
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
    """Leave out unreadable images and copies.

    Return the remaining images, their indices in ``photos``, and findings about the copies.

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
        # Keep the copy in test, or else the one in val, because test images must not be used for training.
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
