"""The store's directory: its lock, its notes, its links, and what a power cut may leave of them.

`state.json` is what counts: it is replaced in one step, and links and directories follow it. Whoever takes the lock
finishes first what was left half done.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from ..atomic_files import replacing, sync_folder
from ..bundle import Bundle, open_bundle
from ..bundle.archive import EXPECTED, MANIFEST, SIGNATURE
from ..errors import BundleError, StoreError
from .state import VERSION, Installed, State, added

log = logging.getLogger(__name__)

STATE, LOCK, BUNDLES, CURRENT, PREVIOUS = "state.json", "store.lock", "bundles", "current", "previous"
_FOLDER = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}-[0-9.]{1,40}-[0-9a-f]{12}\Z")
_NEW = ".new-"
_STATE_LIMIT = 2**20
_LOCK_S = 30.0
_SPARE_BYTES = 2**20


class UnwritableError(StoreError):
    """The disk is full, read-only or somebody else's."""


class StoreDirectory:
    """The files of one store. Several processes and threads may each have one.

    Args:
        state: the directory.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self.bundles = state / BUNDLES

    @contextmanager
    def changing(self, *, make: bool = False) -> Iterator[State]:
        """The state, for this process and thread alone until the block ends, with all before it finished.

        Args:
            make: the directory, if it is not there.

        Raises:
            UnwritableError: the disk does not take it, in here or in the block.
            StoreError: nothing is there, or somebody else is at it for long.
        """
        try:
            if make:
                self.bundles.mkdir(parents=True, exist_ok=True)
            elif not self.state.is_dir():
                raise StoreError(f"{self.state}: no model is installed; install one with: edgeloop install BUNDLE")
            handle = os.open(self.state / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                self._hand_over(handle)
                self._wait_for(handle)
                if self.bundles.is_symlink():
                    raise StoreError(f"{self.bundles}: expected a directory, found a link; remove it")
                state = self.read(mend=True)
                self._follow(state)
                try:
                    yield state
                except OSError:
                    with suppress(OSError, StoreError):
                        self._follow(self.read())  # what was begun goes at once: the disk may be full
                    raise
            finally:
                os.close(handle)
        except OSError as error:
            raise UnwritableError(
                f"{self.state}: cannot be written to: {error.strerror or error}; nothing was changed"
            ) from error

    def write(self, state: State) -> State:
        """Make this the state, in one step; then links and directories follow. Under the lock only."""
        # The links' own room on the disk comes first: nothing after the one step may want any.
        for name, folder in ((CURRENT, state.current), (PREVIOUS, state.previous)):
            if folder is not None and self.link(name) != folder:
                self._link(f".{name}.part", folder)
        with replacing(self.state / STATE) as file:
            file.write(msgspec.json.format(msgspec.json.encode(state), indent=2))
            self._hand_over(file.fileno())
        self._follow(state)
        return state

    def read(self, *, mend: bool = False) -> State:
        """The state as it is written, or as links and directories tell it where that is lost.

        Args:
            mend: set damaged notes aside.

        Raises:
            StoreError: it cannot be read, or a newer edgeloop wrote it.
        """
        path = self.state / STATE
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(handle, "rb") as file:
                data = file.read(_STATE_LIMIT + 1)
        except FileNotFoundError:
            return self._found()
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from error
        try:
            version = msgspec.json.decode(data, type=_VersionOnly).v
            if version > VERSION:
                raise StoreError(f"{path}: a newer edgeloop wrote it (format {version}, not {VERSION}); update it here")
            return _sound(msgspec.json.decode(data, type=State))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if mend:
                log.error("%s is damaged (%s); it is made again from what is there", path, error)  # noqa: TRY400
                os.replace(path, self.state / "state.damaged")
            return self._found()

    def link(self, name: str) -> str | None:
        """Where `current` or `previous` leads, by one system call: the name of a directory; None without one."""
        try:
            return os.path.basename(os.readlink(self.state / name))  # noqa: PTH119, PTH115  polled: not a needless object
        except OSError:
            return None

    def path(self, one: Installed) -> Path:
        """Where a bundle is."""
        return self.bundles / one.folder

    def check(self, one: Installed) -> None:
        """See whether a bundle is still, to the byte, what was installed.

        Raises:
            StoreError: it is not.
        """
        path = self.path(one)
        if path.is_symlink():
            raise StoreError(f"{path}: expected a directory, found a link; install the bundle again")
        try:
            digest = open_bundle(path).digest
        except BundleError as error:
            raise StoreError(f"{error}; install it again") from error
        if digest != one.digest:
            raise StoreError(f"{path}: another bundle than the one installed there; install it again")

    def is_whole(self, one: Installed) -> bool:
        """Whether `check` finds nothing."""
        try:
            self.check(one)
        except StoreError:
            return False
        return True

    def unpack(self, bundle: Bundle, folder: Path) -> None:
        """Write a bundle's files, checked once more, down to the disk."""
        (folder / EXPECTED).parent.mkdir()
        signature = {} if bundle.signature is None else {SIGNATURE: bundle.signature}
        for name, data in ({MANIFEST: bundle.raw} | signature).items():
            _write_new(folder / name, data)
        for name in bundle.manifest.files:
            _write_new(folder / name, bundle.read(name))
        sync_folder((folder / EXPECTED).parent)
        sync_folder(folder)
        self._hand_over(folder, *folder.rglob("*"))

    def new_folder(self, bundle: Bundle) -> tuple[Path, int]:
        """A directory to unpack into, and a handle that is locked while somebody does: others are leftovers."""
        self._hand_over(self.bundles)
        wanted = sum(entry.size for entry in bundle.manifest.files.values()) + _SPARE_BYTES
        free = shutil.disk_usage(self.bundles).free
        if free < wanted:
            raise StoreError(
                f"{self.state}: {bundle.path.name} needs {wanted / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; "
                "make room for it"
            )
        folder = Path(tempfile.mkdtemp(prefix=_NEW, dir=self.bundles))
        folder.chmod(0o755)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(handle, fcntl.LOCK_EX)
        return folder, handle

    def take_in(self, folder: Path, handle: int, one: Installed) -> None:
        """Give an unpacked directory its final name. What has that name already is damaged, and goes."""
        final = self.path(one)
        if final.is_symlink() or not final.is_dir():
            final.unlink(missing_ok=True)
        else:
            shutil.rmtree(final)
        folder.rename(final)
        sync_folder(self.bundles)
        fcntl.flock(handle, fcntl.LOCK_UN)  # from here on it goes if it is not noted

    def _wait_for(self, lock: int) -> None:
        deadline = time.monotonic() + _LOCK_S
        while not _flocked(lock):
            if time.monotonic() > deadline:
                raise StoreError(f"{self.state}: another edgeloop has been changing it for {_LOCK_S:g} s")
            time.sleep(0.01)

    def _follow(self, state: State) -> None:
        """Make links and directories what the state says. A second time does nothing."""
        moved = False
        for name, folder in ((PREVIOUS, state.previous), (CURRENT, state.current)):
            part = self.state / f".{name}.part"
            if self.link(name) != folder:
                moved = True
                if folder is None:
                    (self.state / name).unlink(missing_ok=True)
                    continue
                if self.link(part.name) != folder:
                    self._link(part.name, folder)
                os.replace(part, self.state / name)
            elif part.is_symlink():
                part.unlink()
        if moved:
            sync_folder(self.state)
        for part in self.state.glob(f".{STATE}.*.part"):
            part.unlink(missing_ok=True)
        with suppress(FileNotFoundError), os.scandir(self.bundles) as entries:
            for name in [entry.name for entry in entries if entry.name not in state.bundles]:
                _clean(self.bundles / name)

    def _link(self, name: str, folder: str) -> None:
        path = self.state / name
        path.unlink(missing_ok=True)
        path.symlink_to(f"{BUNDLES}/{folder}")

    def _found(self) -> State:
        """The state from the links alone: no proofs, and nothing on probation.

        What no link leads to may have been on its way in, or out, and counts for nothing.
        """
        state = State()
        for name in (PREVIOUS, CURRENT):
            folder = self.link(name)
            if folder is None or not _FOLDER.match(folder) or (self.bundles / folder).is_symlink():
                continue
            with suppress(BundleError):
                bundle = open_bundle(self.bundles / folder)
                manifest = bundle.manifest
                one = Installed(name=manifest.name, version=manifest.version, digest=bundle.digest, status="good")
                if one.folder == folder:
                    state = msgspec.structs.replace(added(state, one), **{name: folder})
        return state

    def _hand_over(self, *places: int | Path) -> None:
        """What root puts into the store of the agent's user becomes that user's, who must be able to remove it."""
        owner = self.state.stat()
        if os.geteuid() != 0 or owner.st_uid == 0:
            return
        for place in places:
            if isinstance(place, int):
                os.fchown(place, owner.st_uid, owner.st_gid)
            else:
                os.chown(place, owner.st_uid, owner.st_gid, follow_symlinks=False)


class _VersionOnly(msgspec.Struct):
    v: int


def _sound(state: State) -> State:
    """Refuse notes that contradict themselves, or name what lies elsewhere."""
    for folder, one in state.bundles.items():
        if folder != one.folder or not _FOLDER.match(folder):
            raise msgspec.ValidationError(f"{folder[:80]!r} is no directory of a bundle")
    for linked in (state.current, state.previous):
        if linked is not None and linked not in state.bundles:
            raise msgspec.ValidationError(f"it has no bundle {linked[:80]!r}")
    return state


def _write_new(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _clean(path: Path) -> None:
    """Remove a leftover, or a bundle nobody noted; never what somebody is unpacking, and never what is not ours."""
    if not (_FOLDER.match(path.name) or path.name.startswith(_NEW)):
        return
    with suppress(OSError):
        if not stat.S_ISDIR(path.lstat().st_mode):
            path.unlink()
            return
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if _flocked(handle):
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(handle)


def _flocked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
