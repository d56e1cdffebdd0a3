"""The device's own store of models: install, activate, roll back, and never be left without a good one.

    state/
      bundles/<name>-<version>-<digest12>/   unpacked bundles, each proved on this device
      current, previous                      links to two of them
      state.json                             what is installed, current, on probation, failed
      store.lock                             held for each change, never while a model is tried
      incoming/                              bundles that are being fetched

A power cut at any instant leaves a `current` that is a whole, proved bundle, or none if there never was one.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from ..bundle import Bundle, open_bundle
from ..bundle.signature import verify_bundle
from ..errors import StoreError
from .canary import CanaryLimits, run_canary
from .directory import CURRENT, StoreDirectory, UnwritableError
from .state import (
    Failure,
    Installed,
    State,
    StoreStatus,
    activated,
    added,
    changed,
    chosen,
    failing,
    listed,
    now,
    plain,
    pruned,
    refuge,
    refuse_failed,
    refuse_namesake,
    refuse_older,
    rolled_back,
)

__all__ = ["Failure", "Installed", "ModelStore", "StoreStatus"]

log = logging.getLogger(__name__)

MOST_STARTS = 3
"""Starts on probation: at the third without having become good, the model counts as what brings the agent down."""
_STALE_S = 3600.0


class ModelStore:
    """The store under one directory. Files alone: several processes and threads may use it at once.

    Args:
        state: the directory; made by the first install.
    """

    def __init__(self, state: Path) -> None:
        self._disk = StoreDirectory(state)

    # --- looking: without the lock, and changing nothing ---

    def current_link(self) -> str | None:
        """Name of the current bundle's directory, by one system call; None without one. Cheap enough to poll."""
        return self._disk.link(CURRENT)

    def current(self) -> Installed | None:
        """What runs, or is to run; None when nothing was installed."""
        return self.status().current

    def previous(self) -> Installed | None:
        """What a rollback leads to; None without one."""
        return self.status().previous

    def status(self) -> StoreStatus:
        """All there is.

        Raises:
            StoreError: the store's notes cannot be read.
        """
        state = self._disk.read()
        shown = {one.folder: self._shown(state, one) for one in state.newest()}
        current = shown.get(state.current or "")
        return StoreStatus(
            current=current,
            previous=shown.get(state.previous or ""),
            on_probation=current is not None and current.status == "probation",
            installed=tuple(shown.values()),
            failures=tuple(reversed(state.failures.values())),
        )

    def here(self, digest: str) -> Installed | None:
        """The bundle of this digest, where it is in the store and to the byte what was installed."""
        one = next((one for one in self.status().installed if one.digest == digest), None)
        return one if one is not None and self._disk.is_whole(one) else None

    # --- changing ---

    def install(
        self,
        bundle: Path,
        *,
        signers: Path | None,
        activate: bool = True,
        force: bool = False,
        allow_downgrade: bool = False,
        limits: CanaryLimits = CanaryLimits(),  # noqa: B008  frozen
        progress: Callable[[int, int], object] = lambda _done, _of: None,
    ) -> Installed:
        """Verify a bundle, unpack it, prove it on this device, and make it current. On an error nothing has changed.

        Args:
            bundle: file, or unpacked directory.
            signers: OpenSSH file of who may have signed it; None takes what nobody signed.
            activate: False leaves `current` as it is.
            force: also one that failed here before; and prove again one that is installed already.
            allow_downgrade: also one that is older than the current model of its name.
            limits: of the proof.
            progress: called with the number of canary images done, and of all.

        Raises:
            BundleError, SignatureError, ConfigError: it is not usable, or not signed by whom it must be.
            StoreError: it does not prove itself, failed here before, is older than what runs, or there is no room.
        """
        opened = open_bundle(bundle)
        signed = verify_bundle(opened, signers)
        new = Installed(
            name=opened.manifest.name,
            version=opened.manifest.version,
            digest=opened.digest,
            signer=None if signed is None else signed.signer,
            installed_at=now(),
        )
        with self._disk.changing(make=True) as state:
            refuse_namesake(state, new)
            if not allow_downgrade:
                refuse_older(state, new)
            if not force:
                refuse_failed(state, new)
                if self._has(state, new):
                    return self._commit(state, new, activate=activate)
            folder, handle = self._disk.new_folder(opened)
        try:
            new = self._proved(opened, folder, new, limits, progress)
            with self._disk.changing(make=True) as state:
                if not force:
                    refuse_failed(state, new)  # again: it may have failed meanwhile
                if not allow_downgrade:
                    refuse_older(state, new)
                refuse_namesake(state, new)
                if not self._has(state, new, proved=False):
                    self._disk.take_in(folder, handle, new)
                return self._commit(added(state, new), new, activate=activate)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)

    def activate(self, which: str, *, force: bool = False) -> Installed:
        """Make an installed bundle current: by name, name-version or the beginning of its digest.

        Raises:
            StoreError: none or several are called so, it is damaged, or it failed here before and ``force`` is not set.
        """
        with self._disk.changing() as state:
            one = chosen(state, which)
            if not force:
                refuse_failed(state, one)
            self._disk.check(one)
            return self._commit(state, one, activate=True)

    def rollback(self, *, reason: str) -> Installed:
        """Go back to the previous bundle. The one that was current counts as failed, for this reason.

        Raises:
            StoreError: there is no previous one, or it failed itself or is damaged.
        """
        with self._disk.changing() as state:
            current, back = state.running, state.bundles.get(state.previous or "")
            if back is None:
                raise StoreError(f"there is no model to roll {current} back to; installed: {listed(state)}")
            if back.digest in state.failures:
                failure = state.failures[back.digest]
                raise StoreError(
                    f"the previous model, {back}, failed itself: {failure.reason}; installed: {listed(state)}"
                )
            self._disk.check(back)
            return self._back(state, back, reason)

    # --- the agent's part ---

    def starting(self) -> Installed:
        """What to run. To be called before the model is loaded: at a start, and when `current` has changed.

        Counts starts on probation. At the third, and when the bundle is damaged, it is rolled back first. A store that
        cannot be written to is used as it is.

        Raises:
            StoreError: nothing is installed, or nothing that is left can be used.
        """
        self._clean_incoming()
        try:
            with self._disk.changing() as state:
                return self._started(state)
        except UnwritableError as error:
            log.warning("%s; starts are not counted meanwhile", error)
            state = self._disk.read()
            usable = [one for one in (state.running, *refuge(state)) if self._disk.is_whole(one)]
            if not usable:
                self._disk.check(state.running)
            return self._shown(state, usable[0])

    def good(self, digest: str | None = None) -> None:
        """End the probation of the current model: it has proved itself at work.

        Args:
            digest: of the model that did; nothing happens when another one has become current meanwhile.
        """
        with self._disk.changing() as state:
            current = state.running
            if current.status == "probation" and digest in (None, current.digest):
                self._disk.write(changed(state, current, status="good", starts=0, reason=None))

    def failed(self, reason: str, digest: str | None = None) -> Installed:
        """The current model does not work here: what ran before takes its place, where there is one.

        Args:
            reason: for people.
            digest: of the model that failed; where another one has become current meanwhile, that one stays.

        Returns:
            What to run from now on: the same one where there is nothing to go back to.
        """
        with self._disk.changing() as state:
            current = state.running
            if digest in (None, current.digest):
                return self._gone_back(state, reason)
            for late in [one for one in state.newest() if one.digest == digest]:
                self._disk.write(failing(state, late, reason))
            return self._shown(state, current)

    def ended(self) -> None:
        """The agent ends as it was asked to, or by no fault of the model: this start was no sign of a crash."""
        # Where the store cannot be written to the start was not counted either.
        with suppress(UnwritableError), self._disk.changing() as state:
            current = state.running
            if current.status == "probation" and current.starts > 0:
                self._disk.write(changed(state, current, starts=current.starts - 1))

    @property
    def incoming(self) -> Path:
        """Where bundles are fetched to before they are installed; made here. Old ones go at the agent's start."""
        path = self._disk.state / "incoming"
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnwritableError(f"{path}: cannot be made: {error.strerror or error}") from error
        return path

    # --- under the lock ---

    def _proved(
        self, opened: Bundle, folder: Path, new: Installed, limits: CanaryLimits, progress: Callable[[int, int], object]
    ) -> Installed:
        images = len(opened.canary())
        try:
            self._disk.unpack(opened, folder)
        except OSError as error:
            raise UnwritableError(
                f"{self._disk.state}: cannot be written to: {error.strerror or error}; nothing was changed"
            ) from error
        proof = run_canary(folder, limits, name=str(opened.path), progress=lambda done: progress(done, images))
        if not proof.passed:
            raise StoreError(f"{opened.path}: the model is refused: {'; '.join(proof.reasons)}")
        if proof.digest != opened.digest:
            raise StoreError(f"{folder}: changed while it was tried; install it again")
        return msgspec.structs.replace(new, proof=proof)

    def _has(self, state: State, new: Installed, *, proved: bool = True) -> bool:
        """Whether a bundle is installed and whole (and, if asked, its proof known)."""
        noted = state.bundles.get(new.folder)
        return (
            noted is not None
            and noted.digest == new.digest
            and (noted.proof is not None or not proved)
            and self._disk.is_whole(noted)
        )

    def _commit(self, state: State, one: Installed, *, activate: bool) -> Installed:
        state = self._disk.write(pruned(activated(state, one) if activate else state))
        return self._shown(state, state.bundles[one.folder])

    def _started(self, state: State) -> Installed:
        current = state.running
        try:
            self._disk.check(current)
        except StoreError as error:
            back = self._gone_back(state, str(error))
            if back.digest == current.digest:
                raise
            return self._started(self._disk.read())  # no endless turn: a failed one is never gone back to
        if current.status == "good":
            return self._shown(state, current)
        if current.starts + 1 >= MOST_STARTS:
            back = self._gone_back(state, f"started {MOST_STARTS} times without becoming good")
            return back if back.digest == current.digest else self._started(self._disk.read())
        state = self._disk.write(changed(state, current, status="probation", starts=current.starts + 1))
        return self._shown(state, state.running)

    def _gone_back(self, state: State, reason: str) -> Installed:
        """Back to what ran before; the same where nothing did."""
        back = next((one for one in refuge(state) if self._disk.is_whole(one)), None)
        if back is not None:
            return self._back(state, back, reason)
        log.error("%s fails, and there is nothing to go back to: %s", state.running, reason)
        state = self._disk.write(changed(state, state.running, reason=plain(reason)))
        return self._shown(state, state.running)

    def _back(self, state: State, back: Installed, reason: str) -> Installed:
        log.warning("%s is rolled back to %s: %s", state.running, back, reason)
        state = self._disk.write(rolled_back(state, back, reason))
        return self._shown(state, state.running)

    def _shown(self, state: State, one: Installed) -> Installed:
        """A bundle with where it is, and what it failed of."""
        failure = state.failures.get(one.digest)
        one = msgspec.structs.replace(one, path=str(self._disk.path(one)))
        return one if failure is None else msgspec.structs.replace(one, status="failed", reason=failure.reason)

    def _clean_incoming(self) -> None:
        with suppress(OSError):
            for path in (self._disk.state / "incoming").iterdir():
                if time.time() - path.lstat().st_mtime > _STALE_S:
                    path.unlink()
