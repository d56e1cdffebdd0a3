"""Prepares an image or a mounted boot partition so that the device is provisioned at its first boot."""

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
"""Space on the boot partition that must stay free, in bytes.

It is needed for files that the system writes there, and for clusters that are only partly filled.
"""
_KEPT = ("cmdline.txt", "firstrun.sh", "user-data", "network-config")

OnProgress = Callable[[Literal["packages", "writing", "verifying"], int, int], Any]
"""Callback that takes the current step, the amount done and the total amount.

The amounts are packages, bytes of the image file, or bytes of the card, in the order of the steps.
"""


@dataclass(frozen=True)
class Prepared:
    """Result of preparing a card.

    Attributes:
        codename: codename of the system.
        kit_bytes: size of the provisioning payload on the boot partition, in bytes.
        written: number of bytes written; None for a mounted partition.
    """

    codename: Codename
    kit_bytes: int
    written: int | None = None


def prepare_mounted(
    folder: Path, spec: DeviceSpec, system: System, codename: Codename | None, on_progress: OnProgress
) -> Prepared:
    """Prepare the mounted boot partition of a card.

    Args:
        folder: mount point of the partition.
        spec: specification of the device.
        system: settings of the operating system.
        codename: release of the system; None detects it.
        on_progress: called with the progress.

    Raises:
        ConfigError: the folder is not a boot partition, has too little space, or the card was removed.
    """
    return _put(Mounted(folder), str(folder), spec, system, codename, on_progress)


def prepare_image(
    image: Path, out: Path, spec: DeviceSpec, system: System, codename: Codename | None, on_progress: OnProgress
) -> Prepared:
    """Write a prepared copy of an image to a card or file and verify it. The image is not changed.

    Args:
        image: image of Raspberry Pi OS; plain, .xz or .gz.
        out: block device of a card, or file to create.
        spec: specification of the device.
        system: settings of the operating system.
        codename: release of the system; None detects it.
        on_progress: called with the progress.

    Raises:
        ConfigError: the image cannot be used or the card cannot be written to.
    """
    if out.exists() and not out.is_block_device():
        raise ConfigError(f"{out}: already exists; give another file or delete it")
    with opened(image) as source, tempfile.NamedTemporaryFile(prefix="edgeloop-card-") as head:
        places = _read_head(source, image, head)
        prepared = _put(InImage(Path(head.name), places.boot_start), str(image), spec, system, codename, on_progress)
        with _complete(out) as target:
            written = write(
                target,
                _blocks(Path(head.name), source, on_progress),
                needed=places.end,
                verifying=lambda done, of: on_progress("verifying", done, of),
            )
            if written < places.end:
                raise ConfigError(f"{image}: truncated, ends before its last partition; download it again")
    return replace(prepared, written=written)


def _read_head(source: Image, path: Path, head: IO[bytes]) -> Layout:
    """Copy the beginning of an image, up to the end of the boot partition, to the file ``head``. Return the layout."""
    sector = source.read(SECTOR)
    places = layout(sector, path)
    place, free = tempfile.gettempdir(), shutil.disk_usage(tempfile.gettempdir()).free
    if free < places.boot_end:
        raise ConfigError(
            f"{place}: {places.boot_end / 1e6:.0f} MB are needed for temporary files, {free / 1e6:.0f} MB are free; "
            "set TMPDIR to another folder"
        )
    head.write(sector)
    while (missing := places.boot_end - head.tell()) > 0:
        block = source.read(min(BLOCK, missing))
        if not block:
            raise ConfigError(f"{path}: truncated, ends within its boot partition; download it again")
        head.write(block)
    head.flush()
    return places


def _blocks(head: Path, source: Image, on_progress: OnProgress) -> Iterator[bytes]:
    with open(head, "rb") as file:
        while block := file.read(BLOCK):
            yield block
    while block := source.read(BLOCK):
        on_progress("writing", source.done, source.size)
        yield block


@contextmanager
def _complete(out: Path) -> Iterator[Path]:
    """Yield the path to write to.

    This is ``out`` itself if it is a block device, otherwise a temporary file that is renamed to ``out`` at the end.
    """
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


def _put(
    boot: Boot, place: str, spec: DeviceSpec, system: System, codename: Codename | None, on_progress: OnProgress
) -> Prepared:
    """Write the provisioning payload to a boot partition, then the files that start it."""
    system.check()
    names = boot.names()
    found = detect(names, boot.read("issue.txt"), place)
    codename = codename or found
    python = PYTHONS[codename]
    on_progress("packages", 0, 0)
    gathered = wheels(python, MACHINE, dashboard=spec.dashboard)
    on_progress("packages", len(gathered), len(gathered))
    kit = make_kit(
        spec.config,
        {f"{python[0]}.{python[1]}-{MACHINE}": gathered},
        device=system.hostname or "raspberrypi",
        trust=spec.trust,
        bundle=spec.bundle,
        card=True,
    )
    existing = {name: boot.read(name) if name in names else None for name in _KEPT}
    starting = first_boot_files(system, codename, existing)
    files: dict[str, bytes | Path] = {f"{KIT}/{name}": data for name, data in kit.files.items()}
    files |= {f"{KIT}/{name}": path for name, path in kit.wheel_paths().items()}
    boot.remove_tree(KIT)
    size, free = _size(files), boot.free()
    needed = size + _SPARE_BYTES
    if free < needed:
        raise ConfigError(
            f"{place}: {needed / 1e6:.0f} MB are needed on its boot partition, {free / 1e6:.0f} MB are free; use an "
            "unmodified image, or provision the device over SSH"
        )
    boot.write(files)
    boot.write(starting)
    return Prepared(codename, size)


def _size(files: Mapping[str, bytes | Path]) -> int:
    return sum(len(data) if isinstance(data, bytes) else data.stat().st_size for data in files.values())
