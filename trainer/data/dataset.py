"""Photographs in folders to labelled, split and preprocessed pictures.

`DATA` is a folder per class, or `train`, `val` and `test` folders of those. Every picture is read
once: hashed, decoded and preprocessed by the device's own code into one memory-mapped array.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edge_agent.bundle import problems_of_labels
from edge_agent.errors import DataError, PictureError
from edge_agent.pictures import SUFFIXES, decode_picture, read_bytes
from edge_agent.preprocess import Pixels, PreprocessSpec, preprocess

SPLITS = ("train", "val", "test")
SHARES = {"val": 0.15, "test": 0.15}
MIN_PER_CLASS = 5
"""Pictures: one each for validation and test, three to learn from. Fewer cannot be split at all."""


@dataclass(frozen=True, slots=True)
class Photo:
    """One picture of the data set. ``path`` is relative to the data folder, with forward slashes."""

    path: str
    label: str
    split: str
    sha256: str = ""
    group: str = ""


@dataclass(frozen=True)
class Dataset:
    """Pictures with their labels and splits, pixels ready for the network.

    Attributes:
        labels: class names, sorted.
        photos: one entry a picture, duplicates left out.
        pixels: (photos, height, width, 3) uint8, memory-mapped, in the spec's channel order.
        skipped: pictures that could not be read, with the reason.
        duplicates: how many byte-identical copies were left out.
    """

    labels: tuple[str, ...]
    photos: tuple[Photo, ...]
    pixels: Pixels
    skipped: tuple[str, ...]
    duplicates: int

    def indices(self, split: str) -> list[int]:
        """Places of the pictures of one split."""
        return [i for i, photo in enumerate(self.photos) if photo.split == split]

    @property
    def fingerprint(self) -> str:
        """sha256 over the pictures' hashes, labels and splits; the same data gives the same one anywhere."""
        rows = sorted(f"{photo.sha256} {photo.label} {photo.split}\n" for photo in self.photos)
        return hashlib.sha256("".join(rows).encode()).hexdigest()


def load_dataset(
    root: Path,
    spec: PreprocessSpec,
    *,
    skip_unreadable: bool = False,
    progress: Callable[[Iterable[Photo], int], Iterable[Photo]] = lambda photos, _: photos,
) -> Dataset:
    """Read a data folder whole.

    Args:
        root: the data folder.
        spec: how pictures become pixels.
        skip_unreadable: leave out pictures that cannot be read; refuse them otherwise.
        progress: wraps the iteration over the pictures, given their number.

    Raises:
        DataError: no classes, one class, too few pictures in a class, unreadable pictures, the same
            picture in two classes or two splits. All of a kind are named at once.
    """
    found = find_photos(root)
    _check_classes(found, root)
    cache = _pixel_cache(len(found), spec)

    def ingest(place: int) -> tuple[str, str]:
        """Hash of picture ``place``, and why it cannot be read or nothing."""
        try:
            data = read_bytes(root / found[place].path)
            preprocess(decode_picture(data, root / found[place].path), spec, cache[place])
        except PictureError as error:
            return "", str(error)
        return hashlib.sha256(data).hexdigest(), ""

    # Decoding releases the GIL, and each picture goes to its own place: nothing piles up.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = [
            result for _, result in zip(progress(found, len(found)), pool.map(ingest, range(len(found))), strict=True)
        ]

    unreadable = tuple(reason for _, reason in results if reason)
    if unreadable and not skip_unreadable:
        more = f"; and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
        raise DataError(
            f"{len(unreadable)} of {len(found)} pictures cannot be used: {'; '.join(unreadable[:3])}{more}. "
            "Repair or remove them, or leave them out with --skip-unreadable"
        )
    places = [i for i, (_, reason) in enumerate(results) if not reason]
    readable = [replace(found[i], sha256=results[i][0]) for i in places]
    kept = _without_duplicates(readable)
    photos = [readable[i] for i in kept]
    _check_classes(photos, root)
    if not photos[0].split:
        photos = split_photos(photos)
    pixels = cache if len(kept) == len(found) else cache[[places[i] for i in kept]]
    labels = tuple(sorted({photo.label for photo in photos}))
    return Dataset(labels, tuple(photos), pixels, unreadable, len(readable) - len(kept))


def find_photos(root: Path) -> list[Photo]:
    """List the pictures of a data folder in sorted order, by folder name, without opening any.

    Symbolic links to folders are not followed: they could lead in circles.

    Raises:
        DataError: no such folder, or no class folders in it.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected a folder of class folders, such as {root}/robin/1.jpg")
    folders = _folders(root)
    splits = [folder for folder in folders if folder.name in SPLITS]
    given = bool(splits) and len(splits) == len(folders)
    if given and {folder.name for folder in splits} != set(SPLITS):
        raise DataError(
            f"{root}: has {' and '.join(f.name for f in splits)} folders only; all of {', '.join(SPLITS)} are needed"
        )
    photos: list[Photo] = []
    for split_folder in splits if given else [root]:
        for folder in _folders(split_folder):
            before = len(photos)
            for inside, subfolders, names in os.walk(folder):
                subfolders.sort()
                for name in sorted(names):
                    if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                        path = (Path(inside) / name).relative_to(root).as_posix()
                        photos.append(Photo(path, folder.name, split_folder.name if given else ""))
            if len(photos) == before:
                raise DataError(
                    f"{folder}: no pictures in this class; add some ({', '.join(sorted(SUFFIXES))}) or remove it"
                )
    if not photos:
        raise DataError(
            f"{root}: no class folders with pictures; expected a folder a class, such as {root}/robin/1.jpg"
        )
    return photos


def split_photos(photos: Sequence[Photo]) -> list[Photo]:
    """Assign splits, 15 % of each class to test and to validation, at least one picture each.

    Which pictures: those with the smallest content hashes. So the split depends on nothing but the
    pictures themselves, not on names, order or a seed.
    """
    by_class = defaultdict(list)
    for photo in photos:
        by_class[photo.label].append(photo)
    split = {}
    for members in by_class.values():
        members.sort(key=lambda photo: photo.sha256)
        tests = max(1, round(len(members) * SHARES["test"]))
        vals = max(1, round(len(members) * SHARES["val"]))
        for i, photo in enumerate(members):
            split[photo.sha256] = "test" if i < tests else "val" if i < tests + vals else "train"
    return [replace(photo, split=split[photo.sha256]) for photo in photos]


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _check_classes(photos: Sequence[Photo], root: Path) -> None:
    labels = tuple(sorted({photo.label for photo in photos}))
    if len(labels) == 1:
        raise DataError(
            f"{root}: only one class, {labels[0]!r}; a classifier needs two, if only a second folder of everything else"
        )
    problems = problems_of_labels(labels)
    splits = Counter((photo.label, photo.split) for photo in photos)
    for label in labels:
        if photos[0].split:
            missing = [split for split in SPLITS if not splits[label, split]]
            problems += [f"class {label!r} has no pictures in {split}/" for split in missing]
        elif splits[label, ""] < MIN_PER_CLASS:
            problems.append(
                f"class {label!r} has {splits[label, '']} pictures, at least {MIN_PER_CLASS} different ones are needed"
            )
    if problems:
        raise DataError(f"{root}: {'; '.join(problems)}")


def _without_duplicates(photos: Sequence[Photo]) -> list[int]:
    """Places of the first copy of every picture.

    Raises:
        DataError: copies of one picture carry two labels or lie in two splits.
    """
    first: dict[str, int] = {}
    conflicts = []
    for i, photo in enumerate(photos):
        other = photos[first.setdefault(photo.sha256, i)]
        if (other.label, other.split) != (photo.label, photo.split):
            conflicts.append(f"{other.path} and {photo.path}")
    if conflicts:
        raise DataError(
            f"the same picture lies in two classes or two splits: {'; '.join(conflicts[:5])}; keep one of each"
        )
    return sorted(first.values())


def _pixel_cache(count: int, spec: PreprocessSpec) -> Pixels:
    """Room for ``count`` preprocessed pictures on disk; gone when the last reference is."""
    try:
        with tempfile.TemporaryFile(prefix="edgeloop-pixels-") as file:
            # Taken up front: a full disk is an error here, and a bus error in the middle of a memory map.
            _reserve(file.fileno(), count * int(np.prod(spec.shape)))
            # The map keeps the file alive when this handle is closed.
            return np.memmap(file, np.uint8, "r+", shape=(count, *spec.shape))
    except OSError as error:
        raise DataError(
            f"no room in {tempfile.gettempdir()} for {count} pictures: {error.strerror}; free some or set TMPDIR"
        ) from error


def _reserve(handle: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:  # macOS
        os.ftruncate(handle, size)
