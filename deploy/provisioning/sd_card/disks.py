"""Cards in this machine: which ones may be written to, and writing them so that what was written is there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.errors import ConfigError, DeviceError

BLOCK = 4 * 2**20
_COLUMNS = "PATH,SIZE,TYPE,RM,HOTPLUG,RO,VENDOR,MODEL,MOUNTPOINTS"
_GONE = (errno.EIO, errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM)


@dataclass(frozen=True)
class Disk:
    """A whole disk.

    Attributes:
        path: its device.
        size: bytes.
        removable: cards, sticks, disks on USB.
        read_only: its switch is at lock.
        used: what it is used for just now: mount points, or what is built upon it.
        name: of its maker.
    """

    path: str
    size: int
    removable: bool
    read_only: bool
    used: tuple[str, ...]
    name: str

    def __str__(self) -> str:
        named = f"{self.name}, " if self.name else ""
        return f"{self.path} ({named}{self.size / 1e9:.1f} GB)"


def disks() -> list[Disk]:
    """All there are, as lsblk(8) of util-linux tells.

    Raises:
        ConfigError: it cannot tell.
    """
    command = ["lsblk", "--json", "--bytes", "--paths", "--output", _COLUMNS]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"lsblk of util-linux 2.37 or later is needed to find cards: {error}") from error
    if done.returncode != 0:
        raise ConfigError(f"lsblk of util-linux 2.37 or later is needed to find cards: {done.stderr.strip()}")
    return parsed(done.stdout)


def parsed(listing: str) -> list[Disk]:
    """The whole disks of lsblk's JSON."""
    found = []
    for entry in json.loads(listing)["blockdevices"]:
        if entry["type"] != "disk" or not entry["size"]:
            continue
        found.append(
            Disk(
                entry["path"],
                int(entry["size"]),
                bool(entry["rm"] or entry["hotplug"]),
                bool(entry["ro"]),
                tuple(dict.fromkeys(_uses(entry))),
                " ".join(word.strip() for word in (entry["vendor"], entry["model"]) if word),
            )
        )
    return found


def _uses(entry: dict[str, Any]) -> Iterable[str]:
    yield from (str(point) for point in entry.get("mountpoints") or [] if point)
    for child in entry.get("children") or []:
        # Encrypted volumes, LVM, RAID: in use, whatever is mounted of it.
        if child["type"] != "part":
            yield f"{child['type']} {child['path']}"
        yield from _uses(child)


def choose(device: str, found: list[Disk]) -> Disk:
    """The disk somebody named, where it may be written to.

    Args:
        device: path of its device, or a link to it.
        found: all disks.

    Raises:
        ConfigError: there is none such, or it must not be overwritten; with those that may.
    """
    real = os.path.realpath(device)
    disk = next((disk for disk in found if disk.path == real), None)
    if disk is None:
        problem = f"{device} is no whole disk"
    elif not disk.removable:
        problem = f"{disk} is not removable: it is part of this machine"
    elif disk.used:
        problem = f"{disk} is in use, as {', '.join(disk.used)}: unmount it first"
    elif disk.read_only:
        problem = f"{disk} is read-only: move the card's switch"
    else:
        return disk
    raise ConfigError(f"{problem}; {listed(found)}")


def listed(found: list[Disk]) -> str:
    """Those that may be written to, in a line."""
    free = [str(disk) for disk in found if disk.removable and not disk.used and not disk.read_only]
    return f"to be written to there is {', '.join(free)}" if free else "no card is there to be written to: put one in"


def write(
    path: Path,
    blocks: Iterable[bytes],
    *,
    needed: int,
    verifying: Callable[[int, int], object] = lambda _done, _of: None,
) -> int:
    """Write a card, or a file; then read it all again.

    Args:
        path: device, or file that is made anew, for its owner alone.
        blocks: what to write.
        needed: bytes it must have room for.
        verifying: told how many bytes were read again, and of how many.

    Returns:
        Bytes written.

    Raises:
        ConfigError: it may not be written to.
        DeviceError: it is too small, went away, or holds something else afterwards.
    """
    is_device = path.is_block_device()
    # O_EXCL: of a device that nobody else has it, not even mounted; of a file that there was none.
    flags = os.O_RDWR | os.O_EXCL | os.O_CLOEXEC | (0 if is_device else os.O_CREAT)
    try:
        handle = os.open(path, flags, 0o600)
    except OSError as error:
        raise ConfigError(f"{path}: {_hindrance(error)}") from error
    with os.fdopen(handle, "r+b", buffering=0) as file:
        if is_device and (size := os.lseek(handle, 0, os.SEEK_END)) < needed:
            raise DeviceError(f"{path}: too small: {size / 1e9:.2f} GB, and {needed / 1e9:.2f} GB are needed")
        try:
            os.lseek(handle, 0, os.SEEK_SET)
            digest, count = hashlib.sha256(), 0
            for block in blocks:
                left = memoryview(block)
                while left:
                    left = left[file.write(left) :]
                digest.update(block)
                count += len(block)
            os.fsync(handle)
            # The kernel forgets what it holds, so that what is read comes from the card.
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            if _digest(handle, count, verifying) != digest.digest():
                raise DeviceError(f"{path}: what is there is not what was written; the card is worn out: take another")
        except OSError as error:
            raise DeviceError(f"{path}: {_failure(error, is_device=is_device)}") from error
    return count


def _digest(handle: int, count: int, verifying: Callable[[int, int], object]) -> bytes:
    os.lseek(handle, 0, os.SEEK_SET)
    digest, done = hashlib.sha256(), 0
    while done < count:
        block = os.read(handle, min(BLOCK, count - done))
        if not block:
            break
        digest.update(block)
        done += len(block)
        verifying(done, count)
    return digest.digest()


def _hindrance(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "you may not write there; run the command with sudo"
    if error.errno == errno.EBUSY:
        return "it is in use; unmount it first"
    if error.errno == errno.EEXIST:
        return "it is there already; name another file, or remove it"
    return f"{error.strerror or error}"


def _failure(error: OSError, *, is_device: bool) -> str:
    if error.errno in _GONE:
        return "it went away or failed while it was written, and is of no use now; put it in and run the command again"
    if error.errno == errno.ENOSPC:
        return "too small for the image" if is_device else "the disk is full; make room"
    return f"{error.strerror or error}; what is there now is of no use"
