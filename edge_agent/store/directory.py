"""Files of the store: lock, state file, links and bundle directories, with recovery after a power cut.

`state.json` is authoritative: it is replaced atomically, and links and directories are updated to match it. Each
process that takes the lock first completes any change that was interrupted.
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
    """The disk is full or read-only, or the directory belongs to another user."""


class StoreDirectory:
    """Files of one store. Several processes and threads may each have an instance.

    Args:
        state: directory of the store.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self.bundles = state / BUNDLES

    @contextmanager
    def changing(self, *, make: bool = False) -> Iterator[State]:
        """Hold the store's lock for the block and yield the state, after any interrupted change has been completed.

        Args:
            make: create the directory if it does not exist.

        Raises:
            UnwritableError: the store cannot be written to, here or in the block.
            StoreError: the store does not exist, or another process held the lock for more than 30 s.
        """
        try:
            if make:
                self.bundles.mkdir(parents=True, exist_ok=True)
            elif not self.state.is_dir():
                raise StoreError(f"{self.state}: no model is installed; install one with: edgeloop install BUNDLE")
            handle = os.open(self.state / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                self._give_to_owner(handle)
                self._acquire(handle)
                if self.bundles.is_symlink():
                    raise StoreError(f"{self.bundles}: expected a directory, found a link; remove it")
                state = self.read(repair=True)
                self._apply(state)
                try:
                    yield state
                except OSError:
                    with suppress(OSError, StoreError):
                        self._apply(self.read())  # remove the unfinished change at once: the disk may be full
                    raise
            finally:
                os.close(handle)
        except OSError as error:
            raise UnwritableError(
                f"{self.state}: cannot be written to: {error.strerror or error}; nothing was changed"
            ) from error

    def write(self, state: State) -> State:
        """Replace the state file atomically, then update links and directories. Call it only with the lock held."""
        # Create the links first: after the state file is replaced, nothing may need disk space any more.
        for name, folder in ((CURRENT, state.current), (PREVIOUS, state.previous)):
            if folder is not None and self.link(name) != folder:
                self._link(f".{name}.part", folder)
        with replacing(self.state / STATE) as file:
            file.write(msgspec.json.format(msgspec.json.encode(state), indent=2))
            self._give_to_owner(file.fileno())
        self._apply(state)
        return state

    def read(self, *, repair: bool = False) -> State:
        """Read the state file. If it is missing or damaged, rebuild the state from links and directories.

        Args:
            repair: move a damaged state file aside.

        Raises:
            StoreError: the state file cannot be read, or a newer edgeloop wrote it.
        """
        path = self.state / STATE
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(handle, "rb") as file:
                data = file.read(_STATE_LIMIT + 1)
        except FileNotFoundError:
            return self._rebuilt()
        except PermissionError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from error
        except OSError as error:
            # A directory, or a bad sector of the disk: the device goes on with the models that it has.
            return self._replaced(path, error.strerror or str(error), repair=repair)
        try:
            version = msgspec.json.decode(data, type=_VersionOnly).v
            if version > VERSION:
                raise StoreError(
                    f"{path}: a newer edgeloop wrote it (format {version}, expected {VERSION}); update edgeloop"
                )
            return _checked(msgspec.json.decode(data, type=State))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return self._replaced(path, str(error), repair=repair)

    def _replaced(self, path: Path, problem: str, *, repair: bool) -> State:
        if repair:
            log.error("%s is damaged (%s); rebuilding it from the links", path, problem)
            os.replace(path, self.state / "state.damaged")
        return self._rebuilt()

    def link(self, name: str) -> str | None:
        """Return the directory that the link `current` or `previous` points to, by one system call; None if unset."""
        try:
            return os.path.basename(os.readlink(self.state / name))  # noqa: PTH119, PTH115  polled, so no Path object
        except OSError:
            return None

    def path(self, one: Installed) -> Path:
        """Return the directory of a bundle."""
        return self.bundles / one.folder

    def check(self, one: Installed) -> None:
        """Check that a bundle is still identical to the one that was installed.

        Raises:
            StoreError: the bundle is missing or damaged, or another bundle is in its place.
        """
        path = self.path(one)
        if path.is_symlink():
            raise StoreError(f"{path}: expected a directory, found a link; install the bundle again")
        try:
            digest = open_bundle(path).digest
        except BundleError as error:
            raise StoreError(f"{error}; install it again") from error
        if digest != one.digest:
            raise StoreError(f"{path}: not the bundle that was installed there; install it again")

    def is_whole(self, one: Installed) -> bool:
        """Return whether `check` finds no problem."""
        try:
            self.check(one)
        except StoreError:
            return False
        return True

    def unpack(self, bundle: Bundle, folder: Path) -> None:
        """Verify a bundle's files again, write them to ``folder`` and flush them to the disk."""
        (folder / EXPECTED).parent.mkdir()
        signature = {} if bundle.signature is None else {SIGNATURE: bundle.signature}
        for name, data in ({MANIFEST: bundle.raw} | signature).items():
            _write_new(folder / name, data)
        for name in bundle.manifest.files:
            _write_new(folder / name, bundle.read(name))
        sync_folder((folder / EXPECTED).parent)
        sync_folder(folder)
        self._give_to_owner(folder, *folder.rglob("*"))

    def new_folder(self, bundle: Bundle) -> tuple[Path, int]:
        """Create a directory to unpack into, and return it with a locked handle.

        The lock marks the directory as in use; directories of this kind without a lock are leftovers.
        """
        self._give_to_owner(self.bundles)
        needed = sum(entry.size for entry in bundle.manifest.files.values()) + _SPARE_BYTES
        free = shutil.disk_usage(self.bundles).free
        if free < needed:
            raise StoreError(
                f"{self.state}: {bundle.path.name} needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; "
                "make room on the disk"
            )
        folder = Path(tempfile.mkdtemp(prefix=_NEW, dir=self.bundles))
        folder.chmod(0o755)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(handle, fcntl.LOCK_EX)
        return folder, handle

    def adopt(self, folder: Path, handle: int, one: Installed) -> None:
        """Give an unpacked directory its final name. A directory that has this name already is damaged; remove it."""
        final = self.path(one)
        if final.is_symlink() or not final.is_dir():
            final.unlink(missing_ok=True)
        else:
            shutil.rmtree(final)
        folder.rename(final)
        sync_folder(self.bundles)
        fcntl.flock(handle, fcntl.LOCK_UN)  # from now on it is removed unless the state contains it

    def _acquire(self, lock: int) -> None:
        deadline = time.monotonic() + _LOCK_S
        while not _flocked(lock):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{self.state}: another edgeloop process has held the lock for {_LOCK_S:g} s; try again later"
                )
            time.sleep(0.01)

    def _apply(self, state: State) -> None:
        """Update links and directories to match the state. Applying the same state again does nothing."""
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

    def _rebuilt(self) -> State:
        """Rebuild the state from the links alone, without canary results and without a bundle on probation.

        Directories without a link are ignored: they may be half installed or half removed.
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

    def _give_to_owner(self, *files: int | Path) -> None:
        """Give files that root created to the store's owner, the agent's user, who must be able to remove them."""
        owner = self.state.stat()
        if os.geteuid() != 0 or owner.st_uid == 0:
            return
        for file in files:
            if isinstance(file, int):
                os.fchown(file, owner.st_uid, owner.st_gid)
            else:
                os.chown(file, owner.st_uid, owner.st_gid, follow_symlinks=False)


class _VersionOnly(msgspec.Struct):
    v: int


def _checked(state: State) -> State:
    """Return the state, or raise ValidationError if it is inconsistent or names a directory outside the store."""
    for folder, one in state.bundles.items():
        if folder != one.folder or not _FOLDER.match(folder):
            raise msgspec.ValidationError(f"{folder[:80]!r} is not the directory of a bundle")
    for linked in (state.current, state.previous):
        if linked is not None and linked not in state.bundles:
            raise msgspec.ValidationError(f"its link `current` names a bundle that is not there: {linked[:80]!r}")
    return state


def _write_new(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _clean(path: Path) -> None:
    """Remove a leftover directory or a bundle that is not in the state.

    Keeps directories that another process is unpacking into, and files that are not part of the store.
    """
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
