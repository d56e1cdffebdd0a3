"""Captures handed to the desktop: what there is, their files, and their end once they are safe there."""

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
"""A capture's path in its folder, without the ending."""
MOST_IMAGE_BYTES = 64 * 2**20


class StoredCapture(msgspec.Struct, frozen=True):
    """A capture on the device: ``name`` is its path without the ending, ``sha256`` and ``size`` the image's."""

    name: str
    sha256: str
    size: int


def held(folder: Path) -> Iterator[StoredCapture]:
    """Every whole capture, oldest first. A damaged line, and an image that is gone or half written, count for none."""
    for line in sorted(folder.glob("*/*.json")):
        capture, image = read_capture(line), line.with_suffix(".jpg")
        name = image.relative_to(folder).with_suffix("").as_posix()
        try:
            size = image.stat().st_size
        except FileNotFoundError:
            continue
        if capture is not None and NAME.match(name):
            yield StoredCapture(name, capture.sha256, size)


def send(folder: Path, names: Iterable[str], to: BinaryIO) -> None:
    """Write captures as a stream of tar, line and image of each. One that is gone meanwhile is left out.

    Raises:
        CommandError: a name that is none.
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
    """Remove captures that are safe elsewhere; how many. One whose image is another than was fetched stays.

    Raises:
        CommandError: a name that is none.
    """
    gone = 0
    for capture in captures:
        image = _image(folder, capture.name)
        try:
            if hashlib.sha256(_read(image)).hexdigest() != capture.sha256:
                continue
            # The line last: a line without its image is no capture, and is swept.
            image.unlink()
            image.with_suffix(".json").unlink(missing_ok=True)
        except FileNotFoundError:
            continue
        gone += 1
        try:
            image.parent.rmdir()
        except OSError:
            continue
    return gone


def _image(folder: Path, name: str) -> Path:
    if not NAME.match(name):
        raise CommandError(f"{name[:100]!r} is no capture; expected DATE/TIME-CAMERA-NUMBER")
    return folder / f"{name}.jpg"


def _read(path: Path) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        return file.read(MOST_IMAGE_BYTES)
