"""Lists the images of a dataset without opening them.

A dataset is given as a folder that contains one folder per class, as a folder that contains train, val and test folders
with one folder per class in each, or as a CSV file.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from edge_agent.bundle.archive import problems_of_labels
from edge_agent.errors import DataError
from edge_agent.images import SUFFIXES

from .photo import SPLITS, Photo, in_short

MIN_PER_CLASS = 5
"""Minimum number of images per class: one each for validation and testing, three for training."""


def data_root(data: Path) -> Path:
    """Return the folder to which the paths of the images are relative: ``data`` itself, or the folder of a CSV file."""
    return data if data.is_dir() else data.parent


def find_photos(data: Path) -> list[Photo]:
    """List the images of a dataset, sorted by path within each class, without opening them.

    Args:
        data: folder that contains one folder per class; folder that contains ``train``, ``val`` and ``test`` folders
            with one folder per class in each; or CSV file, see `trainer.data.csv_listing`. All levels of subfolders of
            a class folder are searched. Symbolic links to folders are not followed, because they could form cycles.
            Hidden files and folders are skipped.

    Raises:
        DataError: ``data`` does not exist, a folder cannot be read, there are no class folders, there is a symbolic
            link in place of a class folder, a class has no images, or the CSV file is not valid.
    """
    try:
        mode = data.stat().st_mode
    except OSError as error:
        raise DataError(
            f"{data}: {(error.strerror or 'cannot be read').lower()}; expected a folder of class folders, "
            f"such as {data}/robin/1.jpg, or a CSV file"
        ) from error
    if stat.S_ISREG(mode):
        from .csv_listing import read_listing

        return read_listing(data)
    if not stat.S_ISDIR(mode):
        raise DataError(f"{data}: neither a folder nor a CSV file; expected a folder of class folders or a CSV file")
    return _in_folders(data)


def check_classes(photos: Sequence[Photo], data: Path) -> None:
    """Check that a classifier can be trained on these classes.

    Raises:
        DataError: there is only one class, a bundle cannot store the name of a class, a class has too few images or,
            if the splits are given, a class has no images in one of the splits. The message covers all problems.
    """
    labels = tuple(sorted({photo.label for photo in photos}))
    if len(labels) == 1:
        raise DataError(
            f"{data}: only one class, {labels[0]!r}; a classifier needs two, for example one with everything else"
        )
    problems = problems_of_labels(labels)
    counts = Counter((photo.label, photo.split) for photo in photos)
    for label in labels:
        if photos[0].split:
            missing = [split for split in SPLITS if not counts[label, split]]
            problems += [f"class {label!r} has no images in {split}" for split in missing]
        elif counts[label, ""] < MIN_PER_CLASS:
            problems.append(
                f"class {label!r} has {counts[label, '']} images, at least {MIN_PER_CLASS} different ones are needed"
            )
    if problems:
        raise DataError(f"{data}: {in_short(problems)}")


def _in_folders(root: Path) -> list[Photo]:
    folders = _folders(root)
    splits = [folder for folder in folders if folder.name in SPLITS]
    given = bool(splits) and len(splits) == len(folders)
    if given and len(splits) < len(SPLITS):
        raise DataError(
            f"{root}: has {' and '.join(f.name for f in splits)} folders only; all of {', '.join(SPLITS)} are needed"
        )
    if len(splits) > 1 and not given:
        others = in_short([f.name for f in folders if f not in splits])
        raise DataError(
            f"{root}: has {' and '.join(f.name for f in splits)} folders next to {others}; expected either only the "
            f"folders {', '.join(SPLITS)}, or class folders"
        )
    photos: list[Photo] = []
    for split_folder in splits if given else [root]:
        for folder in _folders(split_folder):
            paths = sorted(path.relative_to(root).as_posix() for path in images_below(folder))
            if not paths:
                raise DataError(
                    f"{folder}: no images in this class; add some ({', '.join(sorted(SUFFIXES))}) or remove it"
                )
            photos += [Photo(path, folder.name, split_folder.name if given else "") for path in paths]
    if not photos:
        raise DataError(
            f"{root}: no class folders with images; expected a folder per class, such as {root}/robin/1.jpg"
        )
    return photos


def _folders(path: Path) -> list[Path]:
    """Return the folders that are directly in ``path`` and not hidden, sorted by name."""
    entries = [entry for entry in _entries(path) if not entry.name.startswith(".")]
    links = [entry.path for entry in entries if entry.is_symlink() and os.path.isdir(entry.path)]  # noqa: PTH112  no Path made for every entry
    if links:
        # Links in a class folder are skipped. Here, skipping a link would silently drop a class.
        raise DataError(
            f"{in_short(links)}: a link to a folder, which is not followed, because it could form a cycle; "
            "put the folder itself there, or list its images in a CSV file"
        )
    return sorted(path / entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


def images_below(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and all its subfolders that have an image suffix. Skip hidden files and folders."""
    # This loop is not recursive, because folders can be nested deeper than Python's recursion limit.
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        for entry in _entries(here):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(here / entry.name)
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and not os.path.isdir(entry.path):  # noqa: PTH112, PTH122  no Path made for every entry
                yield here / entry.name


def _entries(path: Path) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(
            f"{path}: this folder cannot be read: {error.strerror}; make it readable, or move it away"
        ) from error
