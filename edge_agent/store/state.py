"""State of the store as immutable values, with functions that return the next state."""

from __future__ import annotations

import time
from typing import Literal

import msgspec

from ..bundle.manifest import version_key
from ..errors import StoreError
from .canary import CanaryResult

VERSION = 1
KEPT = 2
"""Bundles kept in addition to the current and the previous one; about 4 MB each."""
_MOST_FAILURES = 100
_MOST_REASON = 1000
_MOST_NAMES = 99

Status = Literal["installed", "probation", "good", "failed"]


class Installed(msgspec.Struct, frozen=True, kw_only=True, rename={"canary": "proof"}):
    """A bundle in the store.

    Attributes:
        name: name of the model.
        version: version of the model.
        digest: SHA-256 of the manifest.
        path: directory of the bundle.
        status: ``installed`` if the model has not run on this device yet, ``probation`` if it has run but is not
            confirmed as good yet, ``good``, or ``failed`` if it was rolled back.
        reason: why the model failed; also set if it stays in use because there is no other model to roll back to.
        starts: number of agent starts during the probation.
        signer: signer of the bundle; None if it is not signed or no signers were configured.
        installed_at: time of the installation, RFC 3339 in UTC.
        order: sequence number of the installation.
        canary: result of the canary test; None if the state file was lost.
    """

    name: str
    version: str
    digest: str
    path: str = ""
    status: Status = "installed"
    reason: str | None = None
    starts: int = 0
    signer: str | None = None
    installed_at: str = ""
    order: int = 0
    canary: CanaryResult | None = None

    @property
    def canary_p50_ms(self) -> float | None:
        """Median time of invoke in the canary test, milliseconds."""
        return None if self.canary is None else self.canary.p50_ms

    @property
    def folder(self) -> str:
        """Name of the bundle's directory."""
        return f"{self.name}-{self.version}-{self.digest[:12]}"

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.digest[:12]})"


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that was rolled back, with the reason. The record is kept after the bundle has been removed."""

    name: str
    version: str
    digest: str
    reason: str
    at: str


class StoreStatus(msgspec.Struct, frozen=True):
    """Contents of the store: ``installed`` with the newest first, ``failures`` with the latest first."""

    current: Installed | None
    previous: Installed | None
    on_probation: bool
    installed: tuple[Installed, ...]
    failures: tuple[Failure, ...]


class State(msgspec.Struct, frozen=True):
    """Contents of the state file, `state.json`.

    Attributes:
        v: version of the format.
        current, previous: names of bundle directories.
        order: sequence number of the last installation.
        bundles: bundles by the name of their directory.
        failures: failures by digest, oldest first.
        accepted: newest version that was activated, by name of the model; not one that was rolled back.
    """

    v: int = VERSION
    current: str | None = None
    previous: str | None = None
    order: int = 0
    bundles: dict[str, Installed] = {}
    failures: dict[str, Failure] = {}
    accepted: dict[str, str] = {}

    @property
    def running(self) -> Installed:
        """The current bundle.

        Raises:
            StoreError: no model is installed.
        """
        current = self.bundles.get(self.current or "")
        if current is None:
            raise StoreError("no model is installed; install one with: edgeloop install BUNDLE")
        return current

    def newest(self) -> list[Installed]:
        """All bundles, the most recently installed first."""
        return sorted(self.bundles.values(), key=lambda one: -one.order)


def changed(state: State, one: Installed, **fields: object) -> State:
    """Return the state with changed fields of one bundle; a bundle that is not in the state yet is added."""
    known = state.bundles.get(one.folder, one)
    return msgspec.structs.replace(
        state, bundles={**state.bundles, one.folder: msgspec.structs.replace(known, **fields)}
    )


def added(state: State, new: Installed) -> State:
    """Return the state with a newly installed bundle."""
    order = state.order + 1
    return changed(msgspec.structs.replace(state, order=order), new, order=order, canary=new.canary, signer=new.signer)


def activated(state: State, one: Installed) -> State:
    """Return the state in which this bundle is current, and the one that was current is the previous one.

    The bundle is on probation unless it was good on this device before.
    """
    one = state.bundles[one.folder]
    failures = {digest: failure for digest, failure in state.failures.items() if digest != one.digest}
    if one.status != "good":
        state = changed(state, one, status="probation", starts=0, reason=None)
    if one.folder != state.current:
        state = msgspec.structs.replace(state, current=one.folder, previous=state.current)
    newest = max(state.accepted.get(one.name, one.version), one.version, key=version_key)
    others = without_accepted(state, one.name).accepted
    accepted = dict(list(others.items())[-_MOST_NAMES:]) | {one.name: newest}
    return msgspec.structs.replace(state, failures=failures, accepted=accepted)


def failing(state: State, one: Installed, reason: str) -> State:
    """Return the state in which this bundle is recorded as failed. It need not be the current one."""
    failures = {digest: failure for digest, failure in state.failures.items() if digest != one.digest}
    failures[one.digest] = Failure(
        name=one.name, version=one.version, digest=one.digest, reason=plain(reason), at=now()
    )
    state = changed(state, one, status="probation", starts=0)
    return msgspec.structs.replace(state, failures=dict(list(failures.items())[-_MOST_FAILURES:]))


def rolled_back(state: State, back: Installed, reason: str) -> State:
    """Return the state in which the current bundle has failed and ``back`` is current in its place."""
    failed = state.running
    state = changed(failing(state, failed, reason), back, starts=0)
    accepted = without_accepted(state, failed.name).accepted
    others = [
        one.version
        for one in state.bundles.values()
        if one.name == failed.name and one.digest not in state.failures and one.status != "installed"
    ]
    if others:
        accepted = {**accepted, failed.name: max(others, key=version_key)}
    return msgspec.structs.replace(state, current=back.folder, previous=failed.folder, accepted=accepted)


def fallbacks(state: State) -> list[Installed]:
    """Return the bundles to roll back to from the current one, best first.

    The previous bundle comes first, then the others that have run, newest first. Failed bundles are left out.
    """
    ran = [
        one
        for one in state.newest()
        if one.folder != state.current and one.digest not in state.failures and one.status != "installed"
    ]
    return sorted(ran, key=lambda one: one.folder != state.previous)


def pruned(state: State) -> State:
    """Return the state without old bundles: it keeps the current one, the previous one and the `KEPT` newest others."""
    fixed = {state.current, state.previous}
    others = [one.folder for one in state.newest() if one.folder not in fixed]
    kept = fixed.union(others[:KEPT])
    return msgspec.structs.replace(state, bundles={name: one for name, one in state.bundles.items() if name in kept})


def chosen(state: State, which: str) -> Installed:
    """Find a bundle by name, name-version, directory name or the first digits of its digest.

    Raises:
        StoreError: no bundle matches, or more than one.
    """
    found = [
        one
        for one in state.bundles.values()
        if which in (one.name, f"{one.name}-{one.version}", one.folder)
        or (len(which) >= 4 and one.digest.startswith(which))
    ]
    if len(found) == 1:
        return found[0]
    matches = "no installed model matches" if not found else f"{len(found)} installed models match"
    raise StoreError(f"{matches} {which[:80]!r}; installed: {listed(state)}")


def refuse_failed(state: State, one: Installed) -> None:
    """Refuse a bundle that was rolled back on this device.

    Raises:
        StoreError: the bundle was rolled back on this device.
    """
    failure = state.failures.get(one.digest)
    if failure is not None:
        raise StoreError(
            f"{one} failed on this device on {failure.at}: {failure.reason}; use --force to accept it anyway"
        )


def refuse_digest_collision(state: State, new: Installed) -> None:
    """Refuse a bundle that would replace the directory of another one.

    Two digests with the same first 12 digits do not occur by chance; such a bundle was made on purpose.

    Raises:
        StoreError: another bundle with the same name and version shares the first 12 digits of the digest.
    """
    known = state.bundles.get(new.folder)
    if known is not None and known.digest != new.digest:
        raise StoreError(
            f"digest prefix collision: {new.digest} and {known.digest} share their first 12 digits; "
            "pack the bundle again"
        )


def refuse_older(state: State, new: Installed) -> None:
    """Refuse a bundle that is older than a version of the same model that this device has accepted.

    Signatures do not expire, so an old bundle with a valid signature could otherwise be installed again, also after
    another model has been the current one.

    Raises:
        StoreError: the bundle is older.
    """
    current = state.bundles.get(state.current or "")
    known = [state.accepted[new.name]] if new.name in state.accepted else []
    if current is not None and current.name == new.name:
        known.append(current.version)
    newest = max(known, key=version_key, default=new.version)
    if version_key(new.version) < version_key(newest):
        raise StoreError(
            f"{new} is older than {new.name} {newest}, which this device has accepted; use --allow-downgrade to accept "
            "it anyway"
        )


def without_accepted(state: State, name: str) -> State:
    """Return the state that remembers no accepted version of this model, so that an older one can be installed."""
    return msgspec.structs.replace(
        state, accepted={known: version for known, version in state.accepted.items() if known != name}
    )


def listed(state: State) -> str:
    """Format all bundles in one line."""
    return ", ".join(f"{one.name}-{one.version} ({one.digest[:12]})" for one in state.newest()) or "nothing"


def plain(reason: str) -> str:
    """Return a reason as one line of limited length without control characters, which could control a terminal."""
    return "".join(char if char.isprintable() else " " for char in reason[:_MOST_REASON])


def now() -> str:
    """Return the current time, RFC 3339 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
