"""Device side of a push: receive a bundle on standard input, resume broken transfers, follow the bundle's probation.

The device writes one `PushEvent` per line, as JSON. The first event, ``have``, says how many bytes of the bundle the
device already has from an earlier transfer. The sender waits for it and then sends exactly the missing bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from ..bundle.archive import MAX_BYTES
from ..errors import StoreError
from .model_store import ModelStore

SILENCE_S = 60.0
"""Seconds without any data after which the connection counts as lost; nothing else ends a half-open connection."""
_BLOCK = 256 * 1024
_POLL_S = 0.25
_SPARE_BYTES = 2**20

Emit = Callable[["PushEvent"], object]


class PushEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """Progress of a bundle on the device.

    Attributes:
        event: ``have``: ``done`` of ``of`` bytes have arrived, and the device waits for the rest. ``proving``: ``done``
            of ``of`` canary images are done. ``installed``: the bundle is in the store as ``model``. ``probation``: the
            model runs, but is not confirmed as good yet; sent every few seconds. ``good``, ``failed``: result of the
            probation. ``unheard``: no agent has started the model, or the probation takes too long. ``refused``: the
            bundle was refused and nothing was changed.
        done, of: progress in bytes or images.
        model: name, version and digest of the model.
        before: digest of the former current model, sent with ``have``.
        text: explanation to show to people.
    """

    event: Literal["have", "proving", "installed", "probation", "good", "failed", "unheard", "refused"]
    done: int = 0
    of: int = 0
    model: str = ""
    before: str = ""
    text: str = ""


class AnnouncedBundle(msgspec.Struct, frozen=True):
    """Bundle that the sender announces: ``digest`` of its manifest, ``sha256`` and ``size`` of the file in bytes."""

    digest: str
    sha256: str
    size: int


@contextmanager
def received(store: ModelStore, announced: AnnouncedBundle, source: BinaryIO, emit: Emit) -> Iterator[Path]:
    """Receive a bundle and yield the complete file. If the connection is lost, the partial file is kept for a retry.

    Args:
        store: store whose ``incoming`` directory holds the file.
        announced: the bundle to receive.
        source: standard input, buffered or unbuffered.
        emit: called with a `PushEvent` that says how many bytes have arrived.

    Raises:
        StoreError: the bundle is too large, there is not enough disk space, another push of the bundle is running, the
            connection was lost, or the checksum is wrong.
    """
    if announced.size > MAX_BYTES:
        raise StoreError(f"the bundle has {announced.size} bytes, at most {MAX_BYTES} are allowed")
    part = store.incoming / f"{announced.sha256}.part"
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    with os.fdopen(handle, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError("another push of this bundle is running; wait until it has finished") from None
        have = _resume(file, announced)
        _require_space(part.parent, 2 * announced.size - have)
        current = store.current()
        emit(PushEvent("have", have, announced.size, before="" if current is None else current.digest))
        _append(file, source, announced.size - have)
        file.seek(0)
        # The whole file is hashed: after a power cut, the part from an earlier transfer may be damaged.
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != announced.sha256:
            part.unlink()
            raise StoreError("checksum mismatch: the received file is not the announced one; push it again")
        yield part
        part.unlink(missing_ok=True)


def watch(
    store: ModelStore, digest: str, emit: Emit, *, timeout_s: float, clock: Callable[[], float] = time.monotonic
) -> bool:
    """Follow a bundle through its probation. Return whether it became good.

    Args:
        store: store that contains the bundle.
        digest: digest of the bundle, which was made current just before.
        emit: called every few seconds, and at the end.
        timeout_s: seconds to wait at most.
        clock: function that returns monotonic seconds.
    """
    deadline = clock() + timeout_s
    emitted_s = -1e9
    while True:
        status = store.status()
        one = next((one for one in status.installed if one.digest == digest), None)
        failure = next((failure for failure in status.failures if failure.digest == digest), None)
        reason = failure.reason if failure is not None else one.reason if one is not None else None
        if failure is not None or one is None or one != status.current:
            emit(PushEvent("failed", text=f"{reason or 'another model replaced it'}; now running: {status.current}"))
            return False
        if one.status == "good":
            emit(PushEvent("good", model=str(one)))
            return True
        if reason:
            emit(PushEvent("failed", text=f"{reason}; there was no model to roll back to"))
            return False
        if clock() > deadline:
            emit(PushEvent("unheard", text=_timeout_text(one.starts, timeout_s)))
            return False
        if clock() - emitted_s >= 2:
            emitted_s = clock()
            emit(PushEvent("probation", model=str(one)))
        time.sleep(_POLL_S)


def _timeout_text(starts: int, timeout_s: float) -> str:
    if starts == 0:
        return "no agent has started it; check that edgeloop.service is running with: edgeloop deploy logs"
    return f"still on probation after {timeout_s:g} s; check the result later with: edgeloop deploy status"


def _resume(file: BinaryIO, announced: AnnouncedBundle) -> int:
    have = os.fstat(file.fileno()).st_size
    if have > announced.size:
        file.truncate(0)
        return 0
    file.seek(0, os.SEEK_END)
    return have


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free - _SPARE_BYTES
    if free < needed:
        raise StoreError(
            f"{folder.parent}: the bundle needs {needed / 1e6:.1f} MB, {max(0, free) / 1e6:.1f} MB are free; "
            "make room on the disk"
        )


def _append(file: BinaryIO, source: BinaryIO, missing: int) -> None:
    handle = source.fileno()
    while missing > 0:
        if not select.select([handle], [], [], SILENCE_S)[0]:
            raise StoreError(
                f"no data for {SILENCE_S:g} s; the partial upload is kept, and another push will resume it"
            )
        block = os.read(handle, min(_BLOCK, missing))
        if not block:
            raise StoreError("the connection was closed; the partial upload is kept, and another push will resume it")
        try:
            file.write(block)
            file.flush()
        except OSError as error:
            raise StoreError(
                f"cannot write to the disk: {error.strerror or error}; the partial upload is kept, and another push "
                "will resume it"
            ) from error
        missing -= len(block)
