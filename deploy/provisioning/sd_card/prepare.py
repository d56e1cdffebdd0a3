"""An image, or a mounted boot partition, to a card that makes itself a device at its first boot."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from edge_agent.errors import ConfigError

from ...on_device.first_boot import KIT
from ..over_ssh import DeviceSpec
from ..payload import make_kit
from ..wheels import wheels
from .boot_partition import Boot, InImage, Mounted
from .disks import BLOCK, write
from .first_boot_config import PYTHONS, Codename, System, detect, first_boot_files
from .image import SECTOR, Image, Layout, layout, opened

MACHINE = "aarch64"
_SPARE_BYTES = 8 * 2**20
"""For what the system writes there itself, and the clusters that files do not fill."""
_KEPT = ("cmdline.txt", "firstrun.sh", "user-data", "network-config")

Tell = Callable[[Literal["packages", "writing", "verifying"], int, int], Any]
"""What is being done, and how much of how much: packages, bytes of the image's file, bytes of the card."""


@dataclass(frozen=True)
class Prepared:
    """What was done.

    Attributes:
        codename: of the system.
        kit_bytes: what lies on the boot partition until the first boot.
        written: bytes; None for a mounted partition.
    """

    codename: Codename
    kit_bytes: int
    written: int | None = None


def prepare_mounted(
    folder: Path, wanted: DeviceSpec, system: System, codename: Codename | None, tell: Tell
) -> Prepared:
    """Prepare a card's boot partition where it is mounted.

    Args:
        folder: where.
        wanted: what the device is to become.
        system: what is wanted of its system.
        codename: which system it is; None finds out.
        tell: told how far it is.

    Raises:
        ConfigError: it is none, has no room, or went away.
    """
    return _put(Mounted(folder), str(folder), wanted, system, codename, tell)


def prepare_image(
    image: Path, out: Path, wanted: DeviceSpec, system: System, codename: Codename | None, tell: Tell
) -> Prepared:
    """Write a prepared copy of an image to a card or file, and read it again. The image is not changed.

    Args:
        image: of Raspberry Pi OS; plain, .xz or .gz.
        out: device of a card, or file to make.
        wanted: what the device is to become.
        system: what is wanted of its system.
        codename: which system it is; None finds out.
        tell: told how far it is.

    Raises:
        ConfigError: the image is none, or the card cannot take it.
    """
    if out.exists() and not out.is_block_device():
        raise ConfigError(f"{out}: it is there already; name another file, or remove it")
    with opened(image) as source, tempfile.NamedTemporaryFile(prefix="edgeloop-card-") as head:
        places = _read_head(source, image, head)
        prepared = _put(InImage(Path(head.name), places.boot_start), str(image), wanted, system, codename, tell)
        with _whole(out) as target:
            written = write(
                target,
                _blocks(Path(head.name), source, tell),
                needed=places.end,
                verifying=lambda done, of: tell("verifying", done, of),
            )
            if written < places.end:
                raise ConfigError(f"{image}: it ends before its last partition does; download it again")
    return replace(prepared, written=written)


def _read_head(source: Image, path: Path, head: IO[bytes]) -> Layout:
    """The beginning of an image, boot partition included, into a file of its own."""
    sector = source.read(SECTOR)
    places = layout(sector, path)
    place, free = tempfile.gettempdir(), shutil.disk_usage(tempfile.gettempdir()).free
    if free < places.boot_end:
        raise ConfigError(
            f"{place}: {places.boot_end / 1e6:.0f} MB are needed there meanwhile, {free / 1e6:.0f} MB are free; TMPDIR "
            "names another place"
        )
    head.write(sector)
    while (missing := places.boot_end - head.tell()) > 0:
        block = source.read(min(BLOCK, missing))
        if not block:
            raise ConfigError(f"{path}: it ends in its boot partition; download it again")
        head.write(block)
    head.flush()
    return places


def _blocks(head: Path, source: Image, tell: Tell) -> Iterator[bytes]:
    with open(head, "rb") as file:
        while block := file.read(BLOCK):
            yield block
    while block := source.read(BLOCK):
        tell("writing", source.done, source.size)
        yield block


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """Where to write: a device as it is; a file beside the one it becomes once it is whole."""
    if out.is_block_device():
        yield out
        return
    part = out.with_name(f"{out.name}.part")
    part.unlink(missing_ok=True)
    try:
        yield part
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


def _put(boot: Boot, place: str, wanted: DeviceSpec, system: System, codename: Codename | None, tell: Tell) -> Prepared:
    """The kit onto a boot partition, and then what leads to it."""
    system.check()
    names = boot.names()
    found = detect(names, boot.read("issue.txt"), place)
    codename = codename or found
    python = PYTHONS[codename]
    tell("packages", 0, 0)
    gathered = wheels(python, MACHINE, dashboard=wanted.dashboard)
    tell("packages", len(gathered), len(gathered))
    kit = make_kit(
        wanted.config,
        {f"{python[0]}.{python[1]}-{MACHINE}": gathered},
        device=system.hostname or "raspberrypi",
        trust=wanted.trust,
        bundle=wanted.bundle,
        card=True,
    )
    there = {name: boot.read(name) if name in names else None for name in _KEPT}
    leading = first_boot_files(system, codename, there)
    files: dict[str, bytes | Path] = {f"{KIT}/{name}": data for name, data in kit.files.items()}
    files |= {f"{KIT}/{name}": path for name, path in kit.wheel_paths().items()}
    boot.remove_tree(KIT)
    size, free = _size(files), boot.free()
    needed = size + _SPARE_BYTES
    if free < needed:
        raise ConfigError(
            f"{place}: {needed / 1e6:.0f} MB are needed on its boot partition, {free / 1e6:.0f} MB are free; take the "
            "image as it is downloaded, or provision the device over SSH"
        )
    boot.write(files)
    boot.write(leading)
    return Prepared(codename, size)


def _size(files: Mapping[str, bytes | Path]) -> int:
    return sum(len(data) if isinstance(data, bytes) else data.stat().st_size for data in files.values())
