"""Reads and writes the run directory: the model and the record of its training.

docs/reference/run.md describes the files. The directory is either created with all its files or not created at all.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.csv_cells import escaped, unescaped
from edge_agent.errors import DataError
from edge_agent.preprocessing import PreprocessSpec

from .data import SPLITS, Dataset, Photo

FORMAT = 1
FIELDS = ("sha256", "path", "label", "group", "split")
"""Columns of `split.csv`."""


def refuse_existing(out: Path) -> None:
    """Raise `DataError` if ``out`` exists. This is also called before the training starts, to fail early."""
    if out.exists():
        raise DataError(f"{out}: already exists; give another directory or delete it")


@contextmanager
def new_run(out: Path) -> Iterator[Path]:
    """Yield a temporary directory.

    It is renamed to ``out`` when the block ends, or removed if the block raises an error.

    Raises:
        DataError: ``out`` already exists; a run is never overwritten.
    """
    refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    try:
        yield folder
        for file in folder.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        folder.chmod(0o755)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_inputs(folder: Path, dataset: Dataset, spec: PreprocessSpec) -> None:
    """Write `labels.txt`, `preprocess.json` and `split.csv`."""
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in dataset.labels), encoding="utf-8")
    (folder / "preprocess.json").write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n")
    with (folder / "split.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        writer.writerows(escaped(getattr(photo, field) for field in FIELDS) for photo in dataset.photos)


def write_history(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write `history.csv`, one row per epoch. A value is left empty if the phase of the epoch does not record it."""
    fields = ("epoch", "phase", "loss", "val_loss", "val_accuracy", "learning_rate")
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        for epoch, row in enumerate(history, start=1):
            shown = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
            writer.writerow({"epoch": epoch, **shown})


def read_split(run: Path) -> dict[str, str]:
    """Return the split of an earlier run: a dict from the SHA-256 of each image to ``train``, ``val`` or ``test``.

    Raises:
        DataError: the split is missing or damaged.
    """
    return {photo.sha256: photo.split for photo in read_photos(run)[1]}


def read_photos(run: Path) -> tuple[Path, list[Photo]]:
    """Return the folder to which the image paths of a run are relative, and the images with their splits.

    Raises:
        DataError: the list of images is missing or damaged.
    """
    path = run / "split.csv"
    try:
        root = Path(json.loads((run / "run.json").read_bytes())["data"]["root"])
        with path.open(newline="", encoding="utf-8") as file:
            photos = [Photo(**{field: unescaped(row[field]) for field in FIELDS}) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, ValueError, csv.Error, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not the split of a run ({error}); give a directory that `edgeloop train` created"
        ) from error
    if not {photo.split for photo in photos} <= set(SPLITS):
        raise DataError(f"{path}: has splits other than {', '.join(SPLITS)}; the file was changed")
    return root, photos


def write_json(folder: Path, name: str, value: Mapping[str, Any]) -> None:
    """Write ``value`` to the file ``name``, which is `metrics.json` or `run.json`."""
    (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
