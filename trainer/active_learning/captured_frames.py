"""Captured frames of a folder: images, each with the JSON metadata that the device wrote."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_agent.captures.folder import read_capture
from edge_agent.errors import DataError, ImageError
from edge_agent.images import read_bytes

from ..data import images_below

_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class CapturedFrame:
    """One captured frame, identified by the content of its image.

    Attributes:
        path: path of the image relative to the folder, with forward slashes.
        sha256: SHA-256 of the image file, in hexadecimal.
        device, camera: source of the frame; empty without metadata.
        captured_at: capture time, RFC 3339 in UTC; empty without metadata.
        scores: (label, score) pairs of the device's model; empty without metadata.
        model: name and version of that model.
        reason: why the device kept the frame.
    """

    path: str
    sha256: str
    device: str = ""
    camera: str = ""
    captured_at: str = ""
    scores: tuple[tuple[str, float], ...] = ()
    model: str = ""
    reason: str = ""

    @property
    def guess(self) -> str:
        """The class predicted by the device's model; empty without metadata."""
        return max(self.scores, key=lambda pair: pair[1], default=("", 0.0))[0]


@dataclass(frozen=True)
class Found:
    """Frames of a folder.

    Attributes:
        frames: sorted by time, without copies.
        problems: one message for each file that cannot be used.
    """

    frames: tuple[CapturedFrame, ...]
    problems: tuple[str, ...]


def images_of(folder: Path) -> list[str]:
    """Return the sorted paths of all images in a folder and its subfolders, relative to the folder.

    Raises:
        DataError: the folder does not exist or has no images.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name one filled by `edgeloop deploy pull`, or any folder of images")
    names = sorted(path.relative_to(folder).as_posix() for path in images_below(folder))
    if not names:
        raise DataError(f"{folder}: no images; name a folder filled by `edgeloop deploy pull`, or any folder of images")
    return names


def find_frames(folder: Path) -> Found:
    """Find the frames in a folder and its subfolders.

    An image with missing or damaged metadata is included, with empty metadata. Only such images are read here, because
    the metadata contains the hash of the image.

    Raises:
        DataError: the folder does not exist, or none of its images can be read.
    """
    names = images_of(folder)
    frames: dict[str, CapturedFrame] = {}
    problems: list[str] = []
    metadata_files: set[Path] = set()
    for name in names:
        path = folder / name
        metadata = path.with_suffix(".json")
        metadata_files.add(metadata)
        try:
            frame = frame_at(path, metadata, name, problems)
        except ImageError as error:
            problems.append(str(error))
            continue
        frames.setdefault(frame.sha256, frame)
    orphans = sorted(_metadata_below(folder) - metadata_files)
    problems += [f"{file}: its image is missing; pull it again, or remove this file" for file in orphans]
    if not frames:
        raise DataError(f"{folder}: none of the {len(names)} images can be read, first: {problems[0]}")
    by_time = sorted(frames.values(), key=lambda frame: (frame.captured_at, frame.path))
    return Found(tuple(by_time), tuple(problems))


def frame_at(path: Path, metadata: Path, name: str, problems: list[str]) -> CapturedFrame:
    """Read one frame.

    Args:
        path: the image.
        metadata: JSON file of the image; may be missing.
        name: path of the image relative to the folder.
        problems: list to which a message is added if the metadata is damaged.

    Raises:
        ImageError: there is no usable metadata, and the image cannot be read.
    """
    if metadata.exists():
        capture = read_capture(metadata)
        if capture is not None and _HASH.fullmatch(capture.sha256) and _is_file(path):
            return CapturedFrame(
                name,
                capture.sha256,
                capture.device,
                capture.camera,
                capture.captured_at,
                tuple(capture.scores.items()),
                f"{capture.model.name} {capture.model.version}",
                capture.reason,
            )
        problems.append(f"{metadata}: damaged; its image is shown without the device's metadata")
    return CapturedFrame(name, hashlib.sha256(read_bytes(path)).hexdigest())


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(path.stat().st_mode)


def _metadata_below(folder: Path) -> set[Path]:
    def files() -> Iterator[Path]:
        for path in folder.rglob("*.json"):
            if not any(part.startswith(".") for part in path.relative_to(folder).parts):
                yield path

    return set(files())
