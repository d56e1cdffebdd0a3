"""Reads and checks the run directories that the trainer writes; docs/reference/run.md describes them."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_agent.bundle.archive import problems_of_labels
from edge_agent.csv_cells import unescaped
from edge_agent.errors import DataError, ImageError
from edge_agent.images import decode_image, read_bytes
from edge_agent.preprocessing import Pixels, PreprocessSpec

FORMAT = 1
_FILES = ("labels.txt", "preprocess.json", "split.csv", "run.json")
SAVED_MODEL = "saved_model"
"""Folder that a run contains instead of `model.keras` if its backbone is a SavedModel.

A `.keras` file would not contain such a backbone but only refer to it.
"""
_COLUMNS = {"sha256", "path", "label", "group", "split"}


class _Data(msgspec.Struct):
    root: str
    fingerprint: str


class _Record(msgspec.Struct):
    """The fields of `run.json` that conversion needs."""

    format: int
    id: str
    created: str
    backbone: str
    data: _Data


@dataclass(frozen=True, slots=True)
class RunImage:
    """One row of `split.csv`."""

    path: str
    label: str
    split: str
    sha256: str


@dataclass(frozen=True)
class Run:
    """A run directory and the folder that holds its images."""

    path: Path
    data: Path
    id: str
    created: str
    backbone: str
    fingerprint: str
    labels: tuple[str, ...]
    spec: PreprocessSpec
    photos: tuple[RunImage, ...]

    def split(self, name: str) -> list[RunImage]:
        """Return the images of one split."""
        return [photo for photo in self.photos if photo.split == name]

    def read(self, photos: Iterable[RunImage]) -> Iterator[tuple[Pixels, RunImage]]:
        """Check that each image has not changed since the training, and decode it.

        Yields:
            The pixels of each image, (H, W, 3) uint8 BGR, and its row of split.csv.

        Raises:
            DataError: an image is missing, unreadable or has changed.
        """
        for photo in photos:
            try:
                data = read_bytes(self.data / photo.path)
            except ImageError as error:
                raise DataError(f"{error}. If the images were moved, give their folder with --data") from error
            if hashlib.sha256(data).hexdigest() != photo.sha256:
                raise DataError(
                    f"{self.data / photo.path}: changed since {self.path} was trained; restore it or train again"
                )
            yield decode_image(data, self.data / photo.path), photo


def open_run(path: Path, *, data: Path | None = None) -> Run:
    """Read and check a run directory.

    Args:
        path: the run directory.
        data: folder of the run's images, if they were moved after training.

    Raises:
        DataError: the path is not a run directory, or its files are damaged or contradict each other. The message lists
            all contradictions.
    """
    missing = [name for name in _FILES if not (path / name).is_file()]
    if not (path / "model.keras").is_file() and not (path / SAVED_MODEL).is_dir():
        missing.insert(0, "model.keras")
    if missing:
        raise DataError(
            f"{path}: not a run directory: {', '.join(missing)} missing; give one that `edgeloop train` wrote"
        )
    try:
        record = msgspec.json.decode((path / "run.json").read_bytes(), type=_Record)
        spec = msgspec.json.decode((path / "preprocess.json").read_bytes(), type=PreprocessSpec)
        labels = tuple((path / "labels.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n"))
        photos = _read_split(path / "split.csv")
    except (msgspec.DecodeError, UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"{path}: the run is damaged: {error}; train again") from error
    problems = [f"labels.txt: {problem}" for problem in problems_of_labels(labels)]
    if record.format != FORMAT:
        problems.append(f"run.json: format {record.format}, this version of edgeloop reads {FORMAT}")
    unknown = sorted({photo.label for photo in photos} - set(labels))
    if unknown:
        problems.append(f"split.csv: classes missing from labels.txt: {', '.join(unknown)}")
    problems += [
        f"split.csv: no {split} images" for split in ("train", "test") if not any(p.split == split for p in photos)
    ]
    if problems:
        raise DataError(f"{path}: {'; '.join(problems)}")
    return Run(
        path,
        data or Path(record.data.root),
        record.id,
        record.created,
        record.backbone,
        record.data.fingerprint,
        labels,
        spec,
        photos,
    )


def _read_split(path: Path) -> tuple[RunImage, ...]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if not set(rows.fieldnames or ()) >= _COLUMNS:
            raise csv.Error(f"split.csv has the columns {rows.fieldnames}; {', '.join(sorted(_COLUMNS))} are needed")
        cells = ([unescaped(row[name]) for name in ("path", "label", "split", "sha256")] for row in rows)
        return tuple(RunImage(*row) for row in cells)
