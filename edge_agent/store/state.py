"""What the store knows of its bundles, and how that changes: values, and functions from one to the next."""

from __future__ import annotations

import time
from typing import Literal

import msgspec

from ..bundle.manifest import version_key
from ..errors import StoreError
from .canary import CanaryResult

VERSION = 1
KEPT = 2
"""Bundles kept beside the current and the previous one; some 4 MB each."""
_MOST_FAILURES = 100
_MOST_REASON = 1000

Status = Literal["installed", "probation", "good", "failed"]


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle in the store.

    ``path``: its directory. ``status``: ``installed`` has not run here yet, ``probation`` runs or ran without having
    become good, ``failed`` was rolled back. ``reason``: why it failed, or what it fails of while there is nothing to go
    back to. ``starts``: of the agent on probation. ``proof``: how it did on its canary images; None where the store's
    notes were lost. ``order`` grows from install to install.
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
    proof: CanaryResult | None = None

    @property
    def canary_p50_ms(self) -> float | None:
        """Median time of invoke when it was installed, milliseconds."""
        return None if self.proof is None else self.proof.p50_ms

    @property
    def folder(self) -> str:
        """Name of its directory."""
        return f"{self.name}-{self.version}-{self.digest[:12]}"

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.digest[:12]})"


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that was rolled back, and why. It is remembered when the bundle itself has gone."""

    name: str
    version: str
    digest: str
    reason: str
    at: str


class StoreStatus(msgspec.Struct, frozen=True):
    """All of the store: ``installed`` newest first, ``failures`` latest first."""

    current: Installed | None
    previous: Installed | None
    on_probation: bool
    installed: tuple[Installed, ...]
    failures: tuple[Failure, ...]


class State(msgspec.Struct, frozen=True):
    """`state.json`. ``current`` and ``previous`` are names of directories, and so are the keys of ``bundles``.

    ``failures`` by digest, oldest first. ``order``: of the last install.
    """

    v: int = VERSION
    current: str | None = None
    previous: str | None = None
    order: int = 0
    bundles: dict[str, Installed] = {}
    failures: dict[str, Failure] = {}

    @property
    def running(self) -> Installed:
        """The current bundle.

        Raises:
            StoreError: there is none.
        """
        current = self.bundles.get(self.current or "")
        if current is None:
            raise StoreError("no model is installed; install one with: edgeloop install BUNDLE")
        return current

    def newest(self) -> list[Installed]:
        """All bundles, the one installed last first."""
        return sorted(self.bundles.values(), key=lambda one: -one.order)


def changed(state: State, one: Installed, **fields: object) -> State:
    """The same with other fields of one bundle, which is noted if it was not."""
    noted = state.bundles.get(one.folder, one)
    return msgspec.structs.replace(
        state, bundles={**state.bundles, one.folder: msgspec.structs.replace(noted, **fields)}
    )


def added(state: State, new: Installed) -> State:
    """With a bundle that was installed just now."""
    order = state.order + 1
    return changed(msgspec.structs.replace(state, order=order), new, order=order, proof=new.proof, signer=new.signer)


def activated(state: State, one: Installed) -> State:
    """With this one current, and the one that was, previous. It is on probation unless it was good here before."""
    one = state.bundles[one.folder]
    failures = {digest: failure for digest, failure in state.failures.items() if digest != one.digest}
    if one.status != "good":
        state = changed(state, one, status="probation", starts=0, reason=None)
    if one.folder != state.current:
        state = msgspec.structs.replace(state, current=one.folder, previous=state.current)
    return msgspec.structs.replace(state, failures=failures)


def failing(state: State, one: Installed, reason: str) -> State:
    """With one that failed, whether it is current or not."""
    failures = {digest: failure for digest, failure in state.failures.items() if digest != one.digest}
    failures[one.digest] = Failure(
        name=one.name, version=one.version, digest=one.digest, reason=plain(reason), at=now()
    )
    state = changed(state, one, status="probation", starts=0)
    return msgspec.structs.replace(state, failures=dict(list(failures.items())[-_MOST_FAILURES:]))


def rolled_back(state: State, back: Installed, reason: str) -> State:
    """With the current one failed, and another one current in its place."""
    failed = state.running
    state = changed(failing(state, failed, reason), back, starts=0)
    return msgspec.structs.replace(state, current=back.folder, previous=failed.folder)


def refuge(state: State) -> list[Installed]:
    """What can be gone back to from the current bundle, best first: the previous one, then the newest that has run."""
    ran = [
        one
        for one in state.newest()
        if one.folder != state.current and one.digest not in state.failures and one.status != "installed"
    ]
    return sorted(ran, key=lambda one: one.folder != state.previous)


def pruned(state: State) -> State:
    """Without the bundles that are neither current nor previous nor among the newest others."""
    fixed = {state.current, state.previous}
    others = [one.folder for one in state.newest() if one.folder not in fixed]
    kept = fixed.union(others[:KEPT])
    return msgspec.structs.replace(state, bundles={name: one for name, one in state.bundles.items() if name in kept})


def chosen(state: State, which: str) -> Installed:
    """The bundle of this name, name-version, directory, or beginning of a digest.

    Raises:
        StoreError: there is none, or several.
    """
    found = [
        one
        for one in state.bundles.values()
        if which in (one.name, f"{one.name}-{one.version}", one.folder)
        or (len(which) >= 4 and one.digest.startswith(which))
    ]
    if len(found) == 1:
        return found[0]
    what = "no installed model is" if not found else f"{len(found)} installed models are"
    raise StoreError(f"{what} called {which[:80]!r}; installed: {listed(state)}")


def refuse_failed(state: State, one: Installed) -> None:
    """Refuse a bundle that was rolled back on this device.

    Raises:
        StoreError: it was.
    """
    failure = state.failures.get(one.digest)
    if failure is not None:
        raise StoreError(
            f"{one} failed on this device on {failure.at}: {failure.reason}; --force takes it nevertheless"
        )


def refuse_namesake(state: State, new: Installed) -> None:
    """Refuse a bundle that would take the directory of another one: so much alike digests are made, not met.

    Raises:
        StoreError: it would.
    """
    noted = state.bundles.get(new.folder)
    if noted is not None and noted.digest != new.digest:
        raise StoreError(f"{new} begins like another bundle, {noted.digest}, and is not: {new.digest}; pack it again")


def refuse_older(state: State, new: Installed) -> None:
    """Refuse a bundle that is older than the current model of the same name: a signature never goes out of date.

    Raises:
        StoreError: it is.
    """
    current = state.bundles.get(state.current or "")
    if current is not None and current.name == new.name and version_key(new.version) < version_key(current.version):
        raise StoreError(f"{new} is older than {current}, which runs here; --allow-downgrade takes it nevertheless")


def listed(state: State) -> str:
    """All bundles in a line."""
    return ", ".join(f"{one.name}-{one.version} ({one.digest[:12]})" for one in state.newest()) or "nothing"


def plain(reason: str) -> str:
    """A reason as it is kept: not too long, and one line that cannot steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in reason[:_MOST_REASON])


def now() -> str:
    """RFC 3339, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
