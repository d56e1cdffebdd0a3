"""Pulls captures from a device into a local folder, verifies the copies, and deletes the captures on the device."""

from __future__ import annotations

import asyncio
import hashlib
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from edge_agent.atomic_files import replacing
from edge_agent.captures.folder import Capture
from edge_agent.captures.transfer import MAX_IMAGE_BYTES, NAME, StoredCapture
from edge_agent.errors import DeviceError

from .inventory import Host
from .ssh import Connection, LostError, as_agent, connected, feed

_BATCH = 200
"""Number of captures per transfer. After a lost connection, at most this many have to be copied again."""
_MAX_LINE_BYTES = 256 * 1024
_MAX_LIST_BYTES = 64 * 2**20
_BLOCK = 256 * 1024
_SILENCE_S = 60.0


@dataclass(frozen=True)
class Pulled:
    """Result of a pull.

    Attributes:
        host: name of the device.
        folder: local folder with the device's captures.
        fetched: number of captures that were copied.
        had: number of captures that were already in the folder.
        removed: number of captures that were deleted on the device.
        damaged: names of captures that did not arrive undamaged; they stay on the device.
    """

    host: str
    folder: Path
    fetched: int
    had: int
    removed: int
    damaged: tuple[str, ...]


async def pull(
    host: Host, out: Path, *, keep: bool, ssh_config: Path | None, on_progress: Callable[[str, int, int], Any]
) -> Pulled:
    """Copy a device's captures to ``out/<host>/<date>/``, verify them, and delete them on the device.

    Args:
        host: the device.
        out: local folder; created if missing.
        keep: True to keep the captures on the device.
        ssh_config: SSH configuration file that is used instead of the user's.
        on_progress: called with the device's name, the number of captures done and the total number of captures.

    Raises:
        DeviceError: the device cannot be reached, or sends data that was not requested.
        OSError: captures cannot be written. Captures that were not copied stay on the device.
    """
    folder = out / host.name.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    async with connected(host, ssh_config=ssh_config) as device:
        listed = await device.edgeloop("captures", "list", timeout_s=600, max_bytes=_MAX_LIST_BYTES)
        captures = _listed(device, listed)
        fetched = had = removed = 0
        damaged: list[str] = []
        for start in range(0, len(captures), _BATCH):
            batch = captures[start : start + _BATCH]
            safe = [capture for capture in batch if _is_safe(folder, capture)]
            had += len(safe)
            requested = {capture.name: capture for capture in batch if capture not in safe}
            if requested:
                received = await _fetch(device, folder, requested)
                fetched += len(received)
                safe += received
                damaged += sorted(set(requested) - {capture.name for capture in received})
            if safe and not keep:
                lines = b"".join(msgspec.json.encode(capture) + b"\n" for capture in safe)
                removed += _count(host, await device.edgeloop("captures", "remove", stdin=lines, timeout_s=600))
            on_progress(host.name, start + len(batch), len(captures))
    return Pulled(host.name, folder, fetched, had, removed, tuple(damaged))


def _listed(device: Connection, listed: bytes) -> list[StoredCapture]:
    try:
        captures = [msgspec.json.decode(line, type=StoredCapture) for line in listed.splitlines()]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DeviceError(f"{device.host.name}: its list of captures cannot be read: {error}") from error
    # Names are used as local paths.
    bad = next((capture.name for capture in captures if not NAME.match(capture.name)), None)
    if bad is not None:
        raise DeviceError(f"{device.host.name}: {bad[:100]!r} is not the name of a capture")
    large = next((capture for capture in captures if not 0 <= capture.size <= MAX_IMAGE_BYTES), None)
    if large is not None:
        raise DeviceError(
            f"{device.host.name}: the image {large.name} has {large.size} bytes, more than {MAX_IMAGE_BYTES}"
        )
    return captures


def _count(host: Host, answer: bytes) -> int:
    try:
        return int(answer[:20])
    except ValueError:
        raise DeviceError(f"{host.name}: expected the number of removed captures, got {answer[:100]!r}") from None


async def _fetch(device: Connection, folder: Path, requested: dict[str, StoredCapture]) -> list[StoredCapture]:
    """Fetch a batch and return the captures that were received completely and are stored on disk."""
    limit = sum(capture.size + _MAX_LINE_BYTES + 4096 for capture in requested.values()) + 2**20
    with tempfile.TemporaryFile(dir=folder) as file:
        async with device.process(as_agent(["captures", "send"])) as process:
            feed(process, "".join(f"{name}\n" for name in requested).encode())
            while block := await _next_block(device, process):
                if file.tell() + len(block) > limit:
                    raise DeviceError(f"{device.host.name}: sends more data than was requested")
                file.write(block)
            errors = await process.stderr.read(4096)
            await process.wait_closed()
            if process.exit_status != 0:
                code = -1 if process.exit_status is None else process.exit_status
                raise device.failure(code, errors.decode(errors="replace"))
        file.seek(0)
        return await asyncio.to_thread(_unpack, device.host.name, file, folder, requested)


async def _next_block(device: Connection, process: Any) -> bytes:
    try:
        block: bytes = await asyncio.wait_for(process.stdout.read(_BLOCK), _SILENCE_S)
    except TimeoutError:
        raise LostError(f"{device.host.name}: no data for {_SILENCE_S:g} s") from None
    return block


def _unpack(host: str, file: IO[bytes], folder: Path, requested: dict[str, StoredCapture]) -> list[StoredCapture]:
    received: list[StoredCapture] = []
    lines: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for entry in tar:
                name, _, kind = entry.name.rpartition(".")
                capture = requested.get(name)
                content = tar.extractfile(entry) if entry.isreg() else None
                if capture is None or content is None or kind not in ("json", "jpg"):
                    raise DeviceError(f"{host}: sends {entry.name[:100]!r}, which was not requested")
                if kind == "json":
                    lines[name] = content.read(_MAX_LINE_BYTES)
                elif name in lines and _store(folder, capture, lines[name], content.read(MAX_IMAGE_BYTES)):
                    received.append(capture)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise DeviceError(f"{host}: sends an invalid tar archive: {error}") from error
    return received


def _store(folder: Path, capture: StoredCapture, line: bytes, image: bytes) -> bool:
    """Write a capture, image first, as the device does. Return False if it is damaged; then nothing is written."""
    try:
        record = msgspec.json.decode(line, type=Capture)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    if not record.sha256 == capture.sha256 == hashlib.sha256(image).hexdigest():
        return False
    path = folder / f"{capture.name}.jpg"
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:
        file.write(image)
    with replacing(path.with_suffix(".json")) as file:
        file.write(line)
    return True


def _is_safe(folder: Path, capture: StoredCapture) -> bool:
    image = folder / f"{capture.name}.jpg"
    try:
        with open(image, "rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == capture.sha256
        return same and image.with_suffix(".json").is_file()
    except OSError:
        return False
