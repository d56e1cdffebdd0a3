"""What lies in a folder of captures: images, and the line of JSON that the device wrote beside each."""

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
    """One captured frame, known by its image's content.

    Attributes:
        path: relative to the folder, with forward slashes.
        sha256: of the image's file, in hexadecimal.
        device, camera: who took it; empty where no line says so.
        captured_at: when, RFC 3339 in UTC; empty where no line says so.
        scores: the device's, by label; empty where no line says so.
        model: name and version of the model that gave them.
        reason: why the device kept it.
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
        """What the device's model took it for; empty where no line says so."""
        return max(self.scores, key=lambda pair: pair[1], default=("", 0.0))[0]


@dataclass(frozen=True)
class Found:
    """The frames by time, each content once, and what was wrong with the rest of the folder, a line each."""

    frames: tuple[CapturedFrame, ...]
    problems: tuple[str, ...]


def images_of(folder: Path) -> list[str]:
    """All images of a folder, to any depth, relative to it, in order.

    Raises:
        DataError: no such folder, or no images in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name one that `edgeloop deploy pull` filled, or any of images")
    names = sorted(path.relative_to(folder).as_posix() for path in images_below(folder))
    if not names:
        raise DataError(f"{folder}: no images; name a folder that `edgeloop deploy pull` filled, or any of images")
    return names


def find_frames(folder: Path) -> Found:
    """Look through a folder, to any depth.

    An image whose line is missing or damaged is a frame all the same, of which nothing is known. Only such images
    are read here: a line holds the hash of its image.

    Raises:
        DataError: no such folder, or no images in it that can be read.
    """
    names = images_of(folder)
    frames: dict[str, CapturedFrame] = {}
    problems: list[str] = []
    lines: set[Path] = set()
    for name in names:
        path = folder / name
        line = path.with_suffix(".json")
        lines.add(line)
        try:
            frame = frame_at(path, line, name, problems)
        except ImageError as error:
            problems.append(str(error))
            continue
        frames.setdefault(frame.sha256, frame)
    orphans = sorted(_lines_below(folder) - lines)
    problems += [f"{line}: its image is missing; pull it again, or remove this file" for line in orphans]
    if not frames:
        raise DataError(f"{folder}: none of the {len(names)} images can be read, first: {problems[0]}")
    by_time = sorted(frames.values(), key=lambda frame: (frame.captured_at, frame.path))
    return Found(tuple(by_time), tuple(problems))


def frame_at(path: Path, line: Path, name: str, problems: list[str]) -> CapturedFrame:
    """The frame of an image and the line beside it, which may be missing; a damaged one is told in ``problems``.

    Raises:
        ImageError: there is no such line, and the image cannot be read.
    """
    if line.exists():
        capture = read_capture(line)
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
        problems.append(f"{line}: damaged; its image is shown without what the device knew of it")
    return CapturedFrame(name, hashlib.sha256(read_bytes(path)).hexdigest())


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(path.stat().st_mode)


def _lines_below(folder: Path) -> set[Path]:
    def lines() -> Iterator[Path]:
        for path in folder.rglob("*.json"):
            if not any(part.startswith(".") for part in path.relative_to(folder).parts):
                yield path

    return set(lines())
