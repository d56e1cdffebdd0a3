"""A bundle over standard input, taken up again where it broke off, and how it then does: the device's end of a push.

Messages go out as lines of JSON, one `PushEvent` each; bytes come in only when, and as
many as, ``have`` says are missing.
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
"""Seconds without a byte after which the sender counts as gone: a half-open connection ends by nothing else."""
_BLOCK = 256 * 1024
_POLL_S = 0.25
_SPARE_BYTES = 2**20

Emit = Callable[["PushEvent"], object]


class PushEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """What happens to a bundle on the device.

    ``have``: ``done`` of its ``of`` bytes are here; the rest is awaited. ``proving``: ``done`` of ``of`` canary
    images. ``installed``: it is in the store, ``model`` says which. ``probation``: it runs, and has not proved itself
    yet; sent every few seconds. ``good``, ``failed``, ``unheard``: how probation ended; the last where no agent took it
    up or it took too long. ``refused``: nothing was changed. ``before``: digest of what was current, sent with
    ``have``. ``text``: for people.
    """

    event: Literal["have", "proving", "installed", "probation", "good", "failed", "unheard", "refused"]
    done: int = 0
    of: int = 0
    model: str = ""
    before: str = ""
    text: str = ""


class AnnouncedBundle(msgspec.Struct, frozen=True):
    """The bundle that is to come: ``digest`` of its manifest, ``sha256`` and ``size`` of the file."""

    digest: str
    sha256: str
    size: int


@contextmanager
def received(store: ModelStore, wanted: AnnouncedBundle, source: BinaryIO, emit: Emit) -> Iterator[Path]:
    """The bundle's file, whole; what has come stays for the next try when the sender goes away.

    Args:
        store: whose ``incoming`` it goes through.
        wanted: the bundle.
        source: standard input, unbuffered or not.
        emit: told how much is here.

    Raises:
        StoreError: it is too large, there is no room, somebody else is at it, the sender went away, or other bytes came
            than were announced.
    """
    if wanted.size > MAX_BYTES:
        raise StoreError(f"it has {wanted.size} bytes, over the {MAX_BYTES} a bundle may have")
    part = store.incoming / f"{wanted.sha256}.part"
    handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    with os.fdopen(handle, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError("another push of this bundle is under way; wait for it to end") from None
        # What came before is hashed again: after a power cut it need not be what was written.
        have = _resume(file, wanted)
        _need_room(part.parent, 2 * wanted.size - have)
        current = store.current()
        emit(PushEvent("have", have, wanted.size, before="" if current is None else current.digest))
        _append(file, source, wanted.size - have)
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wanted.sha256:
            part.unlink()
            raise StoreError("other bytes came than were announced; push it again")
        yield part
        part.unlink(missing_ok=True)


def watch(
    store: ModelStore, digest: str, emit: Emit, *, timeout_s: float, clock: Callable[[], float] = time.monotonic
) -> bool:
    """Follow a bundle through its probation; whether it became good.

    Args:
        store: that holds it.
        digest: of the bundle, which was current a moment ago.
        emit: told now and then, and at the end.
        timeout_s: seconds to wait at most.
        clock: monotonic seconds.
    """
    deadline = clock() + timeout_s
    told = -1e9
    while True:
        status = store.status()
        one = next((one for one in status.installed if one.digest == digest), None)
        failure = next((failure for failure in status.failures if failure.digest == digest), None)
        reason = failure.reason if failure is not None else one.reason if one is not None else None
        if failure is not None or one is None or one != status.current:
            emit(PushEvent("failed", text=f"{reason or 'another model took its place'}; {status.current} runs"))
            return False
        if one.status == "good":
            emit(PushEvent("good", model=str(one)))
            return True
        if reason:
            emit(PushEvent("failed", text=f"{reason}; there was no model to go back to"))
            return False
        if clock() > deadline:
            emit(PushEvent("unheard", text=_unheard(one.starts, timeout_s)))
            return False
        if clock() - told >= 2:
            told = clock()
            emit(PushEvent("probation", model=str(one)))
        time.sleep(_POLL_S)


def _unheard(starts: int, timeout_s: float) -> str:
    if starts == 0:
        return "no agent has taken it up; is edgeloop.service running? edgeloop deploy logs tells"
    return f"still on probation after {timeout_s:g} s; edgeloop deploy status tells how it ends"


def _resume(file: BinaryIO, wanted: AnnouncedBundle) -> int:
    have = os.fstat(file.fileno()).st_size
    if have > wanted.size:
        file.truncate(0)
        return 0
    file.seek(0, os.SEEK_END)
    return have


def _need_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free - _SPARE_BYTES
    if free < needed:
        raise StoreError(
            f"{folder.parent}: {needed / 1e6:.1f} MB are needed to take it in, {max(0, free) / 1e6:.1f} MB are free; "
            "make room for it"
        )


def _append(file: BinaryIO, source: BinaryIO, missing: int) -> None:
    handle = source.fileno()
    while missing > 0:
        if not select.select([handle], [], [], SILENCE_S)[0]:
            raise StoreError(f"nothing came for {SILENCE_S:g} s; what has come is kept")
        block = os.read(handle, min(_BLOCK, missing))
        if not block:
            raise StoreError("the sender went away; what has come is kept")
        try:
            file.write(block)
            file.flush()
        except OSError as error:
            raise StoreError(f"the disk does not take it: {error.strerror or error}; what has come is kept") from error
        missing -= len(block)
