"""Reads SD card images from beginning to end in one pass. They may be plain or compressed as .xz or .gz."""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from edge_agent.errors import ConfigError

SECTOR = 512
_FAT = (0x06, 0x0B, 0x0C, 0x0E)
_MAX_BOOT_BYTES = 4 * 2**30
_XZ, _GZIP, _ZIP = b"\xfd7zXZ\x00", b"\x1f\x8b", b"PK\x03\x04"
_BLOCK = 2**20


@dataclass(frozen=True)
class Layout:
    """Offsets on a card, in bytes: start and end of the boot partition, and end of the last partition."""

    boot_start: int
    boot_end: int
    end: int


class _Reads(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Image:
    """An open image.

    Attributes:
        size: size of the file in bytes, before decompression.
    """

    def __init__(self, path: Path, file: BinaryIO, unpacked: _Reads) -> None:
        self._path, self._file, self._unpacked = path, file, unpacked
        self.size = path.stat().st_size

    @property
    def done(self) -> int:
        """Number of bytes of the file that have been read, before decompression."""
        return self._file.tell()

    def read(self, count: int) -> bytes:
        """Read and decompress the next ``count`` bytes. Return fewer bytes only at the end of the image.

        Raises:
            ConfigError: the image is damaged.
        """
        parts = []
        while count > 0:
            try:
                part = self._unpacked.read(min(count, _BLOCK))
            except (OSError, EOFError, lzma.LZMAError) as error:
                raise ConfigError(f"{self._path}: damaged or incomplete: {error}; download it again") from error
            if not part:
                break
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


@contextmanager
def opened(path: Path) -> Iterator[Image]:
    """Open an image for reading.

    Raises:
        ConfigError: the file cannot be opened or is a zip archive.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115  closed below
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; expected an image of Raspberry Pi OS") from error
    with file:
        magic = file.read(len(_XZ))
        file.seek(0)
        if magic.startswith(_ZIP):
            raise ConfigError(f"{path}: a zip archive; unpack it and give the .img file in it")
        if magic == _XZ:
            with lzma.open(file) as unpacked:
                yield Image(path, file, unpacked)
        elif magic.startswith(_GZIP):
            with gzip.open(file) as unpacked:
                yield Image(path, file, unpacked)
        else:
            yield Image(path, file, file)


def layout(first_sector: bytes, path: Path) -> Layout:
    """Read the layout of a card from the master boot record, which is its first 512 bytes.

    Raises:
        ConfigError: the card does not begin with a boot partition like that of Raspberry Pi OS.
    """
    if len(first_sector) < SECTOR or first_sector[510:512] != b"\x55\xaa":
        raise ConfigError(
            f"{path}: not an SD card image; expected one of Raspberry Pi OS (.img or .img.xz), or the folder where a "
            "card's boot partition is mounted"
        )
    # Four entries: status, 3 unused bytes, type, 3 unused bytes, first sector, number of sectors.
    entries = [struct.unpack_from("<4xB3xII", first_sector, 446 + 16 * number) for number in range(4)]
    used = [(kind, start * SECTOR, (start + count) * SECTOR) for kind, start, count in entries if kind and count]
    if not used or used[0][0] not in _FAT or used[0][1] == 0 or used[0][2] > _MAX_BOOT_BYTES:
        raise ConfigError(f"{path}: it does not begin with a FAT boot partition; use an image of Raspberry Pi OS")
    return Layout(used[0][1], used[0][2], max(end for _, _, end in used))
