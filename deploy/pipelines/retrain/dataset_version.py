"""Creates a new version of a run's data set, which consists of the unchanged images of the run and the labelled frames.

The version is a folder. It remains usable if the original files are deleted: its files are hard links to them where the
file system allows it, and copies elsewhere. The trainer reads the list of images in `pictures.csv`. `sources.csv`
records the origin of each image.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console

from edge_agent.atomic_files import link_or_copy
from edge_agent.csv_cells import escaped
from edge_agent.errors import DataError, ImageError
from edge_agent.images import read_bytes
from trainer.active_learning.annotations import Annotation, Annotations
from trainer.active_learning.captured_frames import CapturedFrame, find_frames
from trainer.data import Photo
from trainer.progress import track
from trainer.run_writer import read_photos
from trainer.threads import in_order

LIST, SOURCES = "pictures.csv", "sources.csv"
BURST_S = 60.0
"""Maximum time between two consecutive frames of the same event, in seconds.

An event is a series of frames of one camera. All frames of an event are always in the same split.
"""
MIN_NEW_CLASS_IMAGES = 5
"""Minimum number of frames that a new class needs: three for training, one for validation and one for testing."""
MAX_EXAMPLES = 3
"""Maximum number of examples that a message lists."""


@dataclass(frozen=True)
class Version:
    """A version of the data set.

    Attributes:
        folder: folder of the version.
        added: numbers of added labelled frames, by class.
        new_classes: classes that the run does not have.
        notes: messages about frames that were left out, one line each.
    """

    folder: Path
    added: dict[str, int]
    new_classes: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    photo: Photo
    path: Path
    came_from: str
    by: str = ""
    at: str = ""


def make_version(
    run: Path, captures: Path, folder: Path, *, none_class: str | None = None, console: Console
) -> Version:
    """Create a new folder with the images of a run and the labelled frames.

    Args:
        run: the run directory. All its images must exist, so that its test split stays the same.
        captures: folder of reviewed captures.
        folder: folder to create.
        none_class: name of a class for the frames that show none of the classes; if None, such frames are left out.
        console: console that shows the progress.

    Raises:
        DataError: ``folder`` exists, there are no labelled frames, or an image of the run is missing or has changed.
    """
    if folder.exists():
        raise DataError(f"{folder}: already exists; give another directory or delete it")
    root, photos = read_photos(run)
    old = [_Source(photo, root / photo.path, "run") for photo in photos]
    new, notes = _labelled(captures, photos, none_class)
    added = Counter(source.photo.label for source in new)
    known = {photo.label for photo in photos}
    few = {label for label, count in added.items() if label not in known and count < MIN_NEW_CLASS_IMAGES}
    if few:
        named = ", ".join(f"{label!r} {added[label]}" for label in sorted(few))
        notes.append(f"new classes with fewer than {MIN_NEW_CLASS_IMAGES} frames were left out: {named}")
        new = [source for source in new if source.photo.label not in few]
    if not new:
        why = f": {notes[0]}" if notes else ""
        raise DataError(f"{captures}: no labelled frames to train with{why}; label some with `edgeloop review`")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        _gather(unfinished, old, new, notes, console)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}; nothing was written") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    added = Counter(source.photo.label for source in new)
    return Version(folder, dict(sorted(added.items())), tuple(sorted(set(added) - known)), tuple(notes))


def _labelled(captures: Path, photos: Sequence[Photo], none_class: str | None) -> tuple[list[_Source], list[str]]:
    """Return the labelled frames that are not images of the run, and messages about frames that were left out."""
    found, annotations = find_frames(captures), Annotations(captures)
    notes = [*found.problems, *annotations.problems]
    trained = {photo.sha256: photo.label for photo in photos}
    existing = {frame.sha256 for frame in found.frames}
    bursts = _bursts(found.frames)
    sources, conflicts, nones = [], [], 0
    for frame in found.frames:
        annotation = annotations.latest.get(frame.sha256)
        label = _label_of(annotation, none_class)
        nones += annotation is not None and annotation.verdict == "none" and none_class is None
        if annotation is None or label is None:
            continue
        if frame.sha256 in trained:
            if trained[frame.sha256] != label:
                conflicts.append(f"{frame.path} is {trained[frame.sha256]!r} in the run and {label!r} here")
            continue
        photo = Photo("", label, "", frame.sha256, bursts[frame.sha256])
        sources.append(_Source(photo, captures / frame.path, frame.path, annotation.by, annotation.at))
    if conflicts:
        notes.append(
            f"{len(conflicts)} frames are images of the run with another label; the run's label is kept: "
            f"{'; '.join(conflicts[:MAX_EXAMPLES])}"
        )
    if nones:
        notes.append(f"{nones} frames show none of the classes and were left out; --none-class makes them a class")
    gone = sum(one.verdict == "label" for sha256, one in annotations.latest.items() if sha256 not in existing)
    if gone:
        notes.append(f"{gone} labels belong to frames that are no longer in {captures}")
    return sources, notes


def _label_of(annotation: Annotation | None, none_class: str | None) -> str | None:
    if annotation is None:
        return None
    return annotation.label if annotation.verdict == "label" else none_class if annotation.verdict == "none" else None


def _bursts(frames: Sequence[CapturedFrame]) -> dict[str, str]:
    """Return the name of each frame's event, by the SHA-256 of the frame.

    Consecutive frames of one camera belong to the same event if they are at most `BURST_S` apart. The name is "" for a
    frame whose time is unknown.
    """
    last: dict[tuple[str, str], tuple[datetime, int]] = {}
    names = {}
    for frame in frames:
        camera = frame.device, frame.camera
        at = _moment(frame.captured_at)
        if at is None:
            names[frame.sha256] = ""
            continue
        before, number = last.get(camera, (None, 0))
        if before is None or abs((at - before).total_seconds()) > BURST_S:
            number += 1
        last[camera] = at, number
        names[frame.sha256] = f"{frame.device} {frame.camera} {number}"
    return names


def _moment(text: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.tzinfo is not None else None


def _gather(folder: Path, old: Sequence[_Source], new: Sequence[_Source], notes: list[str], console: Console) -> None:
    (folder / "pictures").mkdir()
    rows, sources = [], []

    def take(source: _Source) -> str | None:
        """Link or copy a file into the dataset version.

        Return the name of the new file, or None if the source is missing or has changed.
        """
        name = f"pictures/{source.photo.sha256}{source.path.suffix.lower()}"
        try:
            if hashlib.sha256(read_bytes(source.path)).hexdigest() != source.photo.sha256:
                return None
        except ImageError:
            return None
        link_or_copy(source.path, folder / name)
        return name

    lost = []
    everything = [*old, *new]
    with closing(in_order(take, everything, ahead=32)) as taking:
        for source, name in track(taking, "Gathering images", total=len(everything), console=console):
            if name is None:
                lost.append(source)
                continue
            photo = source.photo
            rows.append((name, photo.label, photo.group))
            sources.append((photo.sha256, name, photo.label, source.came_from, source.path, source.by, source.at))
    of_run = [str(source.path) for source in lost if source.came_from == "run"]
    if of_run:
        raise DataError(
            f"{len(of_run)} of {len(old)} images of the run are missing or have changed, first {of_run[0]}; restore "
            "them: the comparison with the next model needs them"
        )
    if lost:
        notes.append(f"{len(lost)} labelled frames are missing or damaged and were left out, first {lost[0].path}")
    _write(folder / LIST, ("path", "label", "group"), rows)
    _write(folder / SOURCES, ("sha256", "path", "label", "source", "original", "by", "at"), sources)


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(map(escaped, rows))
        file.flush()
        os.fsync(file.fileno())
