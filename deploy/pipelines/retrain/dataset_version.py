"""A new version of a run's data set: its images as they were, and the labelled frames beside them.

A folder of its own, whole whatever becomes of its sources: files are hard links to them where the disk allows it, and
copies elsewhere. `images.csv` is what the trainer reads; `sources.csv` says where each image came from.
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
from rich.progress import track

from edge_agent.atomic_files import link_or_copy
from edge_agent.errors import DataError, ImageError
from edge_agent.images import read_bytes
from trainer.active_learning.annotations import Annotation, Annotations
from trainer.active_learning.captured_frames import CapturedFrame, find_frames
from trainer.data import Photo
from trainer.run_writer import read_photos
from trainer.threads import in_order

LIST, SOURCES = "pictures.csv", "sources.csv"
BURST_S = 60.0
"""Frames of one camera closer than this are one event, and never lie in different splits."""
FEWEST = 5
"""Images of a class nobody knew yet: one each to validate and to test, three to learn from."""
NAMED = 3


@dataclass(frozen=True)
class Version:
    """The data set made.

    Attributes:
        folder: where it lies.
        added: labelled frames in it, by class.
        new_classes: of them, those the run did not know.
        notes: what was left out and why, a line each.
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
    """Gather a run's images and the labelled frames.

    Args:
        run: the run directory, whose images must all be there: its test split stays what it was.
        captures: the folder that was reviewed.
        folder: to be made.
        none_class: class for the frames that show none of the classes; they are left out when None.
        console: for the progress bar.

    Raises:
        DataError: ``folder`` exists, nothing is labelled, or an image of the run is gone or changed.
    """
    if folder.exists():
        raise DataError(f"{folder}: exists already; name another directory or remove it")
    root, photos = read_photos(run)
    old = [_Source(photo, root / photo.path, "run") for photo in photos]
    new, notes = _labelled(captures, photos, none_class)
    added = Counter(source.photo.label for source in new)
    known = {photo.label for photo in photos}
    few = {label for label, count in added.items() if label not in known and count < FEWEST}
    if few:
        named = ", ".join(f"{label!r} {added[label]}" for label in sorted(few))
        notes.append(f"too few frames of a new class, {FEWEST} are needed, left out: {named}")
        new = [source for source in new if source.photo.label not in few]
    if not new:
        why = f": {notes[0]}" if notes else ""
        raise DataError(f"{captures}: no labelled frames to learn from{why}; label some with `edgeloop review`")
    folder.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        _gather(half, old, new, notes, console)
        half.chmod(0o755)
        half.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}; nothing was left there") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
    added = Counter(source.photo.label for source in new)
    return Version(folder, dict(sorted(added.items())), tuple(sorted(set(added) - known)), tuple(notes))


def _labelled(captures: Path, photos: Sequence[Photo], none_class: str | None) -> tuple[list[_Source], list[str]]:
    """The labelled frames that are not images of the run, and what was left out."""
    found, decisions = find_frames(captures), Annotations(captures)
    notes = [*found.problems, *decisions.problems]
    trained = {photo.sha256: photo.label for photo in photos}
    there = {frame.sha256 for frame in found.frames}
    bursts = _bursts(found.frames)
    sources, otherwise, nones = [], [], 0
    for frame in found.frames:
        decision = decisions.latest.get(frame.sha256)
        label = _label_of(decision, none_class)
        nones += decision is not None and decision.verdict == "none" and none_class is None
        if decision is None or label is None:
            continue
        if frame.sha256 in trained:
            if trained[frame.sha256] != label:
                otherwise.append(f"{frame.path} is {trained[frame.sha256]!r} in the run and {label!r} here")
            continue
        photo = Photo("", label, "", frame.sha256, bursts[frame.sha256])
        sources.append(_Source(photo, captures / frame.path, frame.path, decision.by, decision.at))
    if otherwise:
        notes.append(
            f"{len(otherwise)} frames are images of the run under another class, which stands: "
            f"{'; '.join(otherwise[:NAMED])}"
        )
    if nones:
        notes.append(f"{nones} frames show none of the classes and are left out; --none-class makes them a class")
    gone = sum(one.verdict == "label" for sha256, one in decisions.latest.items() if sha256 not in there)
    if gone:
        notes.append(f"{gone} labels are of frames that are not in {captures} any more")
    return sources, notes


def _label_of(decision: Annotation | None, none_class: str | None) -> str | None:
    if decision is None:
        return None
    return decision.label if decision.verdict == "label" else none_class if decision.verdict == "none" else None


def _bursts(frames: Sequence[CapturedFrame]) -> dict[str, str]:
    """A name for each frame's event: frames of one camera that follow one another closely."""
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
        """Name of the file made, or None where the source is gone or another."""
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
            f"{len(of_run)} of {len(old)} images of the run are gone or changed, first {of_run[0]}; bring them back: "
            "without them nobody can say whether the next model is better"
        )
    if lost:
        notes.append(f"{len(lost)} labelled frames are gone or damaged and left out, first {lost[0].path}")
    _write(folder / LIST, ("path", "label", "group"), rows)
    _write(folder / SOURCES, ("sha256", "path", "label", "source", "original", "by", "at"), sources)


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
