"""Model store of the device: install, activate and roll back models.

    state/
      bundles/<name>-<version>-<digest12>/   unpacked bundles; each has passed its canary test on this device
      current, previous                      links to two of them
      state.json                             the state file: bundles that are installed, current, on probation, failed
      store.lock                             held during each change, but not during a canary test
      incoming/                              bundles that are being received

After a power cut at any moment, `current` is a complete bundle that passed its canary test, or is missing if no model
was installed before.
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
    fallbacks,
    listed,
    now,
    plain,
    pruned,
    refuse_digest_collision,
    refuse_failed,
    refuse_older,
    rolled_back,
    without_accepted,
)

__all__ = ["Failure", "Installed", "ModelStore", "StoreStatus"]

log = logging.getLogger(__name__)

MAX_STARTS = 3
"""A model on probation is rolled back at this start of the agent, because the model may be what stops the agent."""
_STALE_S = 3600.0


class ModelStore:
    """Store under one directory. It consists of files only, so several processes and threads may use it at once.

    Args:
        state: directory of the store; the first installation creates it.
    """

    def __init__(self, state: Path) -> None:
        self._disk = StoreDirectory(state)

    # --- reading, without the lock ---

    def current_link(self) -> str | None:
        """Return the name of the current bundle's directory; None if there is none. One system call, cheap to poll."""
        return self._disk.link(CURRENT)

    def current(self) -> Installed | None:
        """Return the current model, which the agent runs; None if no model is installed."""
        return self.status().current

    def previous(self) -> Installed | None:
        """Return the model that a rollback activates; None if there is none."""
        return self.status().previous

    def status(self) -> StoreStatus:
        """Return all bundles and failures.

        Raises:
            StoreError: the state file cannot be read.
        """
        state = self._disk.read()
        bundles = {one.folder: self._with_path(state, one) for one in state.newest()}
        current = bundles.get(state.current or "")
        return StoreStatus(
            current=current,
            previous=bundles.get(state.previous or ""),
            on_probation=current is not None and current.status == "probation",
            installed=tuple(bundles.values()),
            failures=tuple(reversed(state.failures.values())),
        )

    def find_whole(self, digest: str) -> Installed | None:
        """Return the bundle with this digest if it is in the store and undamaged, else None."""
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
        """Verify a bundle, unpack it, run its canary test and make it current. If any step fails, nothing is changed.

        Args:
            bundle: bundle file, or the directory it was unpacked into.
            signers: OpenSSH file of allowed signers; None accepts unsigned bundles.
            activate: make the bundle current; False keeps the current model.
            force: accept a bundle that failed on this device before, and repeat the canary test of one that is
                already installed.
            allow_downgrade: accept a bundle that is older than an accepted version of the same model.
            limits: resources that the canary test may use.
            progress: called with the number of canary images done and the total.

        Raises:
            BundleError, SignatureError, ConfigError: the bundle is not usable, or not signed by an allowed signer.
            StoreError: the bundle fails its canary test, failed on this device before or is older than the current
                model, or there is not enough disk space.
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
        with self._disk.changing(make=True) as before:
            refuse_digest_collision(before, new)
            state = _admitted(before, new, allow_downgrade=allow_downgrade, activate=activate)
            if not force:
                refuse_failed(state, new)
                if self._has(state, new):
                    return self._commit(state, new, activate=activate)
            folder, handle = self._disk.new_folder(opened)
        try:
            new = self._unpack_and_test(opened, folder, new, limits, progress)
            with self._disk.changing(make=True) as before:
                state = _admitted(before, new, allow_downgrade=allow_downgrade, activate=activate)
                if not force:
                    refuse_failed(state, new)  # again: it may have failed during the canary test
                refuse_digest_collision(state, new)
                if not self._has(state, new, tested=False):
                    self._disk.adopt(folder, handle, new)
                return self._commit(added(state, new), new, activate=activate)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)

    def activate(self, which: str, *, force: bool = False) -> Installed:
        """Make an installed bundle current, given its name, name-version or the first digits of its digest.

        Raises:
            StoreError: no bundle or more than one matches, the bundle is damaged, or it failed on this device before
                and ``force`` is not set.
        """
        with self._disk.changing() as state:
            one = chosen(state, which)
            if not force:
                refuse_failed(state, one)
            self._disk.check(one)
            return self._commit(state, one, activate=True)

    def rollback(self, *, reason: str) -> Installed:
        """Make the previous bundle current again. Record the one that was current as failed, with ``reason``.

        Raises:
            StoreError: there is no previous bundle, or the previous bundle has failed or is damaged.
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
            return self._roll_back_to(state, back, reason)

    # --- for the agent ---

    def starting(self) -> Installed:
        """Return the model to run. Call it before loading the model, at the start and when `current` has changed.

        The starts of a model on probation are counted. If the model is damaged, or this is its third start on
        probation, it is rolled back first. If the store cannot be written to, starts are not counted, and the first
        usable model is returned.

        Raises:
            StoreError: no model is installed, or none of the installed models can be used.
        """
        self.clean_incoming()
        try:
            with self._disk.changing() as state:
                return self._started(state)
        except UnwritableError as error:
            log.warning("%s; until that is fixed, starts are not counted", error)
            state = self._disk.read()
            usable = [one for one in (state.running, *fallbacks(state)) if self._disk.is_whole(one)]
            if not usable:
                self._disk.check(state.running)
            return self._with_path(state, usable[0])

    def good(self, digest: str | None = None) -> None:
        """End the probation of the current model and record it as good.

        Args:
            digest: digest of the model that is good; if another model has become current, nothing changes.
        """
        with self._disk.changing() as state:
            current = state.running
            if current.status == "probation" and digest in (None, current.digest):
                self._disk.write(changed(state, current, status="good", starts=0, reason=None))

    def failed(self, reason: str, digest: str | None = None) -> Installed:
        """Record that the current model failed, and roll back to the model before it, if there is one.

        Args:
            reason: reason to show to people.
            digest: digest of the model that failed; if another model has become current, it stays current.

        Returns:
            The model to run now; the same one if there is no other model to roll back to.
        """
        with self._disk.changing() as state:
            current = state.running
            if digest in (None, current.digest):
                return self._roll_back(state, reason)
            for failed in [one for one in state.newest() if one.digest == digest]:
                self._disk.write(failing(state, failed, reason))
            return self._with_path(state, current)

    def ended(self) -> None:
        """Do not count this start: the agent ended on request, or for a reason other than the model."""
        # If the store cannot be written to, the start was not counted either.
        with suppress(UnwritableError), self._disk.changing() as state:
            current = state.running
            if current.status == "probation" and current.starts > 0:
                self._disk.write(changed(state, current, starts=current.starts - 1))

    def clean_incoming(self) -> None:
        """Remove partial uploads that nobody has resumed for an hour."""
        with suppress(OSError):
            for path in (self._disk.state / "incoming").iterdir():
                if time.time() - path.lstat().st_mtime > _STALE_S:
                    path.unlink()

    @property
    def incoming(self) -> Path:
        """Directory for bundles that are being received; created here. The agent removes old files."""
        path = self._disk.state / "incoming"
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnwritableError(f"{path}: cannot be created: {error.strerror or error}") from error
        return path

    # --- with the lock held, except for the canary test ---

    def _unpack_and_test(
        self, opened: Bundle, folder: Path, new: Installed, limits: CanaryLimits, progress: Callable[[int, int], object]
    ) -> Installed:
        images = len(opened.canary())
        try:
            self._disk.unpack(opened, folder)
        except OSError as error:
            raise UnwritableError(
                f"{self._disk.state}: cannot be written to: {error.strerror or error}; nothing was changed"
            ) from error
        result = run_canary(folder, limits, name=str(opened.path), progress=lambda done: progress(done, images))
        if not result.passed:
            raise StoreError(f"{opened.path}: the model is refused: {'; '.join(result.reasons)}")
        if result.digest != opened.digest:
            raise StoreError(f"{folder}: changed during the canary test; install it again")
        return msgspec.structs.replace(new, canary=result)

    def _has(self, state: State, new: Installed, *, tested: bool = True) -> bool:
        """Return whether a bundle is installed and undamaged. If ``tested``, it must also have a canary result."""
        known = state.bundles.get(new.folder)
        return (
            known is not None
            and known.digest == new.digest
            and (known.canary is not None or not tested)
            and self._disk.is_whole(known)
        )

    def _commit(self, state: State, one: Installed, *, activate: bool) -> Installed:
        state = self._disk.write(pruned(activated(state, one) if activate else state))
        return self._with_path(state, state.bundles[one.folder])

    def _started(self, state: State) -> Installed:
        current = state.running
        try:
            self._disk.check(current)
        except StoreError as error:
            back = self._roll_back(state, str(error))
            if back.digest == current.digest:
                raise
            return self._started(self._disk.read())  # ends, because a failed bundle is never a fallback
        if current.status == "good":
            return self._with_path(state, current)
        if current.starts + 1 >= MAX_STARTS:
            back = self._roll_back(state, f"started {MAX_STARTS} times without becoming good")
            return back if back.digest == current.digest else self._started(self._disk.read())
        state = self._disk.write(changed(state, current, status="probation", starts=current.starts + 1))
        return self._with_path(state, state.running)

    def _roll_back(self, state: State, reason: str) -> Installed:
        """Roll back to the best undamaged fallback; keep the current bundle if there is none."""
        back = next((one for one in fallbacks(state) if self._disk.is_whole(one)), None)
        if back is not None:
            return self._roll_back_to(state, back, reason)
        log.error("%s failed, and there is no model to roll back to: %s", state.running, reason)
        state = self._disk.write(changed(state, state.running, reason=plain(reason)))
        return self._with_path(state, state.running)

    def _roll_back_to(self, state: State, back: Installed, reason: str) -> Installed:
        log.warning("%s is rolled back to %s: %s", state.running, back, reason)
        state = self._disk.write(rolled_back(state, back, reason))
        return self._with_path(state, state.running)

    def _with_path(self, state: State, one: Installed) -> Installed:
        """Return a bundle with its path and, if it failed, with the reason."""
        failure = state.failures.get(one.digest)
        one = msgspec.structs.replace(one, path=str(self._disk.path(one)))
        return one if failure is None else msgspec.structs.replace(one, status="failed", reason=failure.reason)


def _admitted(state: State, new: Installed, *, allow_downgrade: bool, activate: bool) -> State:
    """Refuse an older version; or, if a downgrade is allowed, forget which versions have been accepted."""
    if not allow_downgrade:
        refuse_older(state, new)
        return state
    return without_accepted(state, new.name) if activate else state
