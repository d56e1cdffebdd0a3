"""Transfer of captures to the desktop: list them, send them, and delete them after a confirmed copy."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from ..errors import CommandError
from .folder import read_capture

NAME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}/[0-9TZ]{1,30}-[A-Za-z0-9_-]{1,100}\Z")
"""Pattern of a capture's path in the folder, without the suffix."""
MAX_IMAGE_BYTES = 64 * 2**20


class StoredCapture(msgspec.Struct, frozen=True):
    """A capture on the device. ``name``: path without suffix. ``sha256``, ``size``: hash and bytes of the image."""

    name: str
    sha256: str
    size: int


def list_captures(folder: Path) -> Iterator[StoredCapture]:
    """List all complete captures, oldest first. JSON files that are damaged or have no image are skipped."""
    for file in sorted(folder.glob("*/*.json")):
        capture, image = read_capture(file), file.with_suffix(".jpg")
        name = image.relative_to(folder).with_suffix("").as_posix()
        try:
            size = image.stat().st_size
        except FileNotFoundError:
            continue
        if capture is not None and NAME.match(name):
            yield StoredCapture(name, capture.sha256, size)


def send(folder: Path, names: Iterable[str], to: BinaryIO) -> None:
    """Write the JSON file and the image of each capture as a tar stream. Captures that no longer exist are skipped.

    Raises:
        CommandError: A name is not the name of a capture.
    """
    with tarfile.open(fileobj=to, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
        for name in names:
            image = _image(folder, name)
            files = {f"{name}.json": image.with_suffix(".json"), f"{name}.jpg": image}
            try:
                contents = {member: _read(path) for member, path in files.items()}
            except FileNotFoundError:
                continue
            for member, data in contents.items():
                entry = tarfile.TarInfo(member)
                entry.size, entry.mode = len(data), 0o640
                tar.addfile(entry, io.BytesIO(data))


def remove(folder: Path, captures: Iterable[StoredCapture]) -> int:
    """Delete captures that have been copied, and return their number. A capture whose image has changed is kept.

    Raises:
        CommandError: A name is not the name of a capture.
    """
    deleted = 0
    for capture in captures:
        image = _image(folder, capture.name)
        try:
            if hashlib.sha256(_read(image)).hexdigest() != capture.sha256:
                continue
            # The JSON file is deleted last; one without its image is not a capture, and is deleted at the next start.
            image.unlink()
            image.with_suffix(".json").unlink(missing_ok=True)
        except FileNotFoundError:
            continue
        deleted += 1
        try:
            image.parent.rmdir()
        except OSError:
            continue
    return deleted


def _image(folder: Path, name: str) -> Path:
    if not NAME.match(name):
        raise CommandError(f"{name[:100]!r} is not a capture; expected DATE/TIME-CAMERA-NUMBER")
    return folder / f"{name}.jpg"


def _read(path: Path) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        return file.read(MAX_IMAGE_BYTES)
