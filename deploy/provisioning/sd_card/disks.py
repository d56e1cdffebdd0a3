"""Finds SD cards that can be overwritten, writes them, and verifies the written data."""

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
        path: path of its block device.
        size: size in bytes.
        removable: True for cards, USB sticks and USB disks.
        read_only: True if the card's lock switch is on.
        used: what the disk is currently used for: its mount points, and volumes on it, such as LVM or RAID.
        name: vendor and model.
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
    """Return all disks that lsblk(8) of util-linux lists.

    Raises:
        ConfigError: lsblk is missing or fails.
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
    """Return the whole disks (not partitions) from the JSON output of lsblk."""
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
        # Encrypted volumes, LVM and RAID count as in use even if nothing of them is mounted.
        if child["type"] != "part":
            yield f"{child['type']} {child['path']}"
        yield from _uses(child)


def choose(device: str, found: list[Disk]) -> Disk:
    """Return the disk with the given path if it can be overwritten.

    Args:
        device: path of the block device of the disk, or of a link to it.
        found: all disks.

    Raises:
        ConfigError: the disk does not exist or must not be overwritten; the message lists the disks that can
            be overwritten.
    """
    real = os.path.realpath(device)
    disk = next((disk for disk in found if disk.path == real), None)
    if disk is None:
        problem = f"{device} is not a whole disk"
    elif not disk.removable:
        problem = f"{disk} is not removable: it is part of this machine"
    elif disk.used:
        problem = f"{disk} is in use as {', '.join(disk.used)}; unmount it first"
    elif disk.read_only:
        problem = f"{disk} is read-only; move the card's lock switch"
    else:
        return disk
    raise ConfigError(f"{problem}; {listed(found)}")


def listed(found: list[Disk]) -> str:
    """Return one line of text that lists the disks that can be overwritten."""
    free = [str(disk) for disk in found if disk.removable and not disk.used and not disk.read_only]
    return f"available cards: {', '.join(free)}" if free else "no card is available; insert one"


def write(
    path: Path,
    blocks: Iterable[bytes],
    *,
    needed: int,
    verifying: Callable[[int, int], object] = lambda _done, _of: None,
) -> int:
    """Write a card or a file and verify it by reading it again.

    Args:
        path: block device, or file to create; only the owner of the file can access it.
        blocks: data to write.
        needed: required capacity in bytes.
        verifying: called with the number of verified bytes and the total number of bytes.

    Returns:
        Number of bytes written.

    Raises:
        ConfigError: the path cannot be written to.
        DeviceError: the card is too small, was removed, or does not return the written data.
    """
    is_device = path.is_block_device()
    # O_EXCL fails if a device is in use or mounted, or if a file already exists.
    flags = os.O_RDWR | os.O_EXCL | os.O_CLOEXEC | (0 if is_device else os.O_CREAT)
    try:
        handle = os.open(path, flags, 0o600)
    except OSError as error:
        raise ConfigError(f"{path}: {_open_failure(error)}") from error
    with os.fdopen(handle, "r+b", buffering=0) as file:
        if is_device and (size := os.lseek(handle, 0, os.SEEK_END)) < needed:
            raise DeviceError(f"{path}: too small: {size / 1e9:.2f} GB, {needed / 1e9:.2f} GB are needed")
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
            # Drop the kernel's cache, so that the data is read from the card.
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            if _digest(handle, count, verifying) != digest.digest():
                raise DeviceError(f"{path}: verification failed, the card is probably worn out; use another one")
        except OSError as error:
            raise DeviceError(f"{path}: {_write_failure(error, is_device=is_device)}") from error
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


def _open_failure(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "no permission to write; run the command with sudo"
    if error.errno == errno.EBUSY:
        return "it is in use; unmount it first"
    if error.errno == errno.EEXIST:
        return "already exists; give another file or delete it"
    return f"{error.strerror or error}"


def _write_failure(error: OSError, *, is_device: bool) -> str:
    if error.errno in _GONE:
        return "the card was removed or failed during writing and is incomplete; insert it and run the command again"
    if error.errno == errno.ENOSPC:
        return "too small for the image" if is_device else "the disk is full; free some space"
    return f"{error.strerror or error}; the written data is incomplete"
