"""Captures from a device to a folder here; removed there only once they are safe here."""

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
from edge_agent.captures.transfer import MOST_IMAGE_BYTES, NAME, StoredCapture
from edge_agent.errors import DeviceError

from .inventory import Host
from .ssh import Connection, as_agent, connected

_BATCH = 200
"""Captures at a time: what a broken connection costs at most."""
_MOST_LINE_BYTES = 256 * 1024
_MOST_LIST_BYTES = 512 * 2**20
_BLOCK = 256 * 1024
_SILENCE_S = 60.0


@dataclass(frozen=True)
class Pulled:
    """``fetched``: new here. ``had``: were here before. ``removed``: of both. ``damaged``: left there."""

    host: str
    folder: Path
    fetched: int
    had: int
    removed: int
    damaged: tuple[str, ...]


async def pull(
    host: Host, out: Path, *, keep: bool, ssh_config: Path | None, tell: Callable[[str, int, int], Any]
) -> Pulled:
    """Fetch a device's captures into ``out/<host>/<date>/``, verified, and remove them there.

    Args:
        host: which.
        out: folder; made when it is not there.
        keep: leave them on the device.
        ssh_config: instead of the user's.
        tell: told how many of how many captures are done.

    Raises:
        DeviceError: it cannot be reached, or sends what nobody asked for.
        OSError: they cannot be written here; the device keeps what is not.
    """
    folder = out / host.name.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    async with connected(host, ssh_config=ssh_config) as device:
        listed = await device.edgeloop("captures", "list", timeout_s=600)
        captures = _listed(device, listed)
        fetched = had = removed = 0
        damaged: list[str] = []
        for start in range(0, len(captures), _BATCH):
            batch = captures[start : start + _BATCH]
            safe = [capture for capture in batch if _is_safe(folder, capture)]
            had += len(safe)
            wanted = {capture.name: capture for capture in batch if capture not in safe}
            if wanted:
                got = await _fetch(device, folder, wanted)
                fetched += len(got)
                safe += got
                damaged += sorted(set(wanted) - {capture.name for capture in got})
            if safe and not keep:
                given = b"".join(msgspec.json.encode(capture) + b"\n" for capture in safe)
                removed += int(await device.edgeloop("captures", "remove", given=given, timeout_s=600))
            tell(host.name, start + len(batch), len(captures))
    return Pulled(host.name, folder, fetched, had, removed, tuple(damaged))


def _listed(device: Connection, listed: bytes) -> list[StoredCapture]:
    try:
        captures = [msgspec.json.decode(line, type=StoredCapture) for line in listed[:_MOST_LIST_BYTES].splitlines()]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DeviceError(f"{device.host.name}: its list of captures is none: {error}") from error
    # Names become paths here.
    bad = next((capture.name for capture in captures if not NAME.match(capture.name)), None)
    if bad is not None:
        raise DeviceError(f"{device.host.name}: {bad[:100]!r} is no name of a capture")
    return captures


async def _fetch(device: Connection, folder: Path, wanted: dict[str, StoredCapture]) -> list[StoredCapture]:
    """Fetch a batch; those that arrived whole, and are on the disk here."""
    most = sum(capture.size + _MOST_LINE_BYTES + 4096 for capture in wanted.values()) + 2**20
    with tempfile.TemporaryFile(dir=folder) as file:
        async with device.process(as_agent(["captures", "send"])) as process:
            process.stdin.write("".join(f"{name}\n" for name in wanted).encode())
            process.stdin.write_eof()
            while block := await asyncio.wait_for(process.stdout.read(_BLOCK), _SILENCE_S):
                if file.tell() + len(block) > most:
                    raise DeviceError(f"{device.host.name}: sends more than was asked for")
                file.write(block)
            said = await process.stderr.read(4096)
            await process.wait_closed()
            if process.exit_status != 0:
                code = -1 if process.exit_status is None else process.exit_status
                raise device.failure(code, said.decode(errors="replace"))
        file.seek(0)
        return await asyncio.to_thread(_unpack, device.host.name, file, folder, wanted)


def _unpack(host: str, file: IO[bytes], folder: Path, wanted: dict[str, StoredCapture]) -> list[StoredCapture]:
    got: list[StoredCapture] = []
    lines: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for entry in tar:
                name, _, kind = entry.name.rpartition(".")
                capture = wanted.get(name)
                content = tar.extractfile(entry) if entry.isreg() else None
                if capture is None or content is None or kind not in ("json", "jpg"):
                    raise DeviceError(f"{host}: sends {entry.name[:100]!r}, which nobody asked for")
                if kind == "json":
                    lines[name] = content.read(_MOST_LINE_BYTES)
                elif name in lines and _keep(folder, capture, lines[name], content.read(MOST_IMAGE_BYTES)):
                    got.append(capture)
    except tarfile.TarError as error:
        raise DeviceError(f"{host}: sends what is no tar: {error}") from error
    return got


def _keep(folder: Path, capture: StoredCapture, line: bytes, image: bytes) -> bool:
    """Write one, image first, as the device does; whether it is what it says it is."""
    try:
        noted = msgspec.json.decode(line, type=Capture)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    if not noted.sha256 == capture.sha256 == hashlib.sha256(image).hexdigest():
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
