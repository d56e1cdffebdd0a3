"""Reads a list of images from a CSV file with the columns ``path,label[,group][,split]``.

The header is required; the columns may be in any order. The file is UTF-8, with or without a byte order mark. Paths
are relative to the folder of the CSV file and must not lead out of it, not even through symbolic links. Either every
row has a ``split`` (train, val or test) or no row has one. ``group`` may be empty.
"""

from __future__ import annotations

import csv
import difflib
import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_agent.csv_cells import unescaped
from edge_agent.errors import DataError

from .photo import SPLITS, Photo, in_short

COLUMNS = ("path", "label", "group", "split")
REQUIRED = ("path", "label")
MAX_BYTES = 256 * 2**20
PROBLEMS_SHOWN = 10


def read_listing(path: Path) -> list[Photo]:
    """Read the list without opening the images.

    Returns:
        The listed images, sorted by path.

    Raises:
        DataError: the file is not a valid list. The message names up to ten problems with their line numbers, and the
            number of further problems.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES // 2**20} MiB; expected a list of images")
        photos, problems = _read(path)
    except (UnicodeDecodeError, csv.Error) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise DataError(f"{path}: not a CSV file of images: {reason}; save it as 'CSV UTF-8'") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if problems:
        raise DataError(f"{path}: {in_short(problems, PROBLEMS_SHOWN)}")
    if not photos:
        raise DataError(f"{path}: no images are listed; expected rows of {','.join(REQUIRED)} below the header")
    return sorted(photos, key=lambda photo: photo.path)


def _read(path: Path) -> tuple[list[Photo], list[str]]:
    """Return the images of the valid rows, and descriptions of the problems in the invalid rows."""
    photos: dict[str, Photo] = {}
    lines: dict[str, int] = {}
    problems = []
    inside = _Folder(path.parent)
    for line, cells in _rows(path):
        problem = cells if isinstance(cells, str) else _problem_of_row(cells) or inside.problem_of(cells["path"])
        if problem or isinstance(cells, str):
            problems.append(f"line {line}: {problem}")
            continue
        photo = _photo(cells)
        if photo.path in photos:
            problems.append(f"line {line}: {photo.path!r} is already in line {lines[photo.path]}")
        else:
            photos[photo.path], lines[photo.path] = photo, line
    unsplit = [name for name, photo in photos.items() if not photo.split]
    if 0 < len(unsplit) < len(photos):
        problems.append(
            f"line {lines[unsplit[0]]}: no split, but {len(photos) - len(unsplit)} rows have one; fill in all or none"
        )
    return list(photos.values()), problems


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield the line number of each row, and a dict from column to cell.

    If a row has the wrong number of cells, yield a description of the problem instead of the dict. Skip blank lines.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        # Strict mode: otherwise, an unclosed quotation mark would turn the rest of the file into one cell.
        rows = csv.reader(file, strict=True)
        columns = _columns(path, next(rows, []))
        for row in rows:
            if len(row) == len(columns):
                yield rows.line_num, dict(zip(columns, map(unescaped, row), strict=True))
            elif row:
                yield rows.line_num, f"{len(row)} cells, the header has {len(columns)}"


def _photo(cells: dict[str, str]) -> Photo:
    return Photo(
        posixpath.normpath(cells["path"]),
        cells["label"].strip(),
        cells.get("split", "").strip(),
        group=cells.get("group", "").strip(),
    )


def _columns(path: Path, header: Sequence[str]) -> list[str]:
    columns = [name.strip() for name in header]
    problems = []
    if len(columns) == 1 and ";" in columns[0]:
        problems.append("its cells are separated by semicolons; save it with commas")
    else:
        for name in columns:
            if name not in COLUMNS:
                close = difflib.get_close_matches(name.lower(), COLUMNS, 1)
                problems.append(f"unknown column {name[:40]!r}" + (f", did you mean {close[0]!r}?" if close else ""))
        problems += [f"column {name!r} is missing" for name in REQUIRED if name not in columns]
        problems += [f"column {name!r} is there twice" for name in COLUMNS if columns.count(name) > 1]
    if problems:
        raise DataError(
            f"{path}: line 1: {in_short(problems, PROBLEMS_SHOWN)}; the header must be {','.join(REQUIRED)}, "
            "and may have group and split"
        )
    return columns


def _problem_of_row(cells: dict[str, str]) -> str:
    """Return a description of the problem in the cells of a row, or "" if there is none."""
    if not cells["path"].strip():
        return "the path is empty"
    if not cells["label"].strip():
        return "the label is empty"
    split = cells.get("split", "").strip()
    if split and split not in SPLITS:
        close = difflib.get_close_matches(split.lower(), (*SPLITS, "validation"), 1)
        hint = f", did you mean {'val' if close[0] == 'validation' else close[0]!r}?" if close else ""
        return f"split {split[:40]!r} is not one of {', '.join(SPLITS)}{hint}"
    return ""


class _Folder:
    """Checks that paths do not lead out of a folder. Each directory is resolved only once, because lists are long."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.fspath(folder)
        self._real = os.path.realpath(folder)
        self._parents: dict[str, str] = {}

    def problem_of(self, path: str) -> str:
        """Return a description of the problem of the path, or "" if there is none."""
        if "\0" in path:
            return "the path contains a zero byte"
        if path.startswith("/"):
            return f"{path[:200]!r} is absolute; paths must be relative to the list's folder"
        if ".." in path.split("/"):
            return f"{path[:200]!r} leads out of the list's folder"
        full = os.path.join(self._folder, path)  # noqa: PTH118  a Path for each of 300,000 rows takes seconds
        parent, name = os.path.split(full)
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        real = os.path.realpath(full) if os.path.islink(full) else os.path.join(self._parents[parent], name)  # noqa: PTH114, PTH118  as above
        if not real.startswith(self._real.rstrip("/") + "/"):
            return f"{path[:200]!r} leads out of the list's folder through a link"
        return ""
