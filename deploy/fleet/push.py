"""A bundle to one device: only the bytes it lacks, then its proof and its probation as the device tells them."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge_agent.bundle import open_bundle
from edge_agent.errors import ConfigError, DeviceError
from edge_agent.store.receive import PushEvent

from .inventory import Host
from .ssh import Connection, LostError, as_agent, as_root, connected

_BLOCK = 64 * 1024
_MOST_LINE_BYTES = 64 * 1024
_MOST_TRIES = 5
"""Tries in a row that bring nothing before giving up."""
_MOST_UNREACHED = 2
"""Of a device that never answered: a busy network may take longer than one login's patience, and most are just off."""
_PAUSE_S = 1.0
_PROOF_S = 180.0
"""Seconds without a word from the device, more than its canary may take."""
_START = "test ! -d /run/systemd/system || systemctl start --no-block edgeloop.service"


@dataclass(frozen=True)
class Package:
    """A bundle's file as it is to arrive."""

    path: Path
    name: str
    digest: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Choices:
    """What `edgeloop deploy push` was told.

    Attributes:
        force: also where it was rolled back before.
        allow_downgrade: also where a newer one runs.
        activate: make it current; otherwise only store it.
        watch_s: seconds to follow its probation; 0 does not.
        ssh_config: instead of the user's.
    """

    force: bool = False
    allow_downgrade: bool = False
    activate: bool = True
    watch_s: float = 300.0
    ssh_config: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """How it went on one device.

    ``good``: it runs and has proved itself. ``active``: it runs; nobody waited for that. ``stored``: it was only to be
    stored. ``refused``: the device did not take it. ``failed``: it ran and was rolled back. ``unheard``: it runs, and
    nobody knows how well. ``unreachable``: nothing is known. ``rolled back``: by us, with its wave.
    """

    host: str
    state: Literal["good", "active", "stored", "refused", "failed", "unheard", "unreachable", "rolled back"]
    text: str = ""
    moved_bytes: int = 0
    moving_s: float = 0.0
    took_s: float = 0.0
    replaced: bool = False

    @property
    def healthy(self) -> bool:
        """Whether a roll-out may go on."""
        return self.state in ("good", "active", "stored")


Tell = Callable[[str, PushEvent], Any]
"""Told of each host's events; ``have`` also while bytes move."""


def package(path: Path) -> Package:
    """A bundle as it is to be sent.

    Raises:
        BundleError: it is none, or damaged.
        ConfigError: it is not a file.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected a bundle, as edgeloop convert writes it")
    bundle = open_bundle(path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    name = f"{bundle.manifest.name} {bundle.manifest.version}"
    return Package(path, name, bundle.digest, digest, path.stat().st_size)


async def push(host: Host, what: Package, choices: Choices, tell: Tell) -> Outcome:
    """Send a bundle to a device and see how it does there. A broken connection is taken up again; never raises."""
    start, tries = time.monotonic(), 0
    attempt = _Attempt(host, what, choices, tell)
    while True:
        before = attempt.moved_bytes
        try:
            async with connected(host, ssh_config=choices.ssh_config) as device:
                state, text = await attempt.run(device)
        except LostError as error:
            tries = 1 if attempt.moved_bytes > before else tries + 1
            if tries < (_MOST_TRIES if attempt.reached else _MOST_UNREACHED):
                await asyncio.sleep(_PAUSE_S * 2 ** (tries - 1))
                continue
            state, text = "unreachable", str(error)
        except DeviceError as error:
            state, text = "refused", str(error)
        return Outcome(
            host.name,
            state,
            text.removeprefix(f"{host.name}: "),
            attempt.moved_bytes,
            attempt.moving_s,
            time.monotonic() - start,
            attempt.before != what.digest,
        )


class _Attempt:
    """A push over as many connections as it takes."""

    def __init__(self, host: Host, what: Package, choices: Choices, tell: Tell) -> None:
        self.host, self.what, self.choices, self.tell = host, what, choices, tell
        self.moved_bytes = 0
        self.moving_s = 0.0
        self.reached = False
        self.before: str | None = None

    async def run(self, device: Connection) -> tuple[Any, str]:
        self.reached = True
        last: PushEvent | None = None
        async with device.process(as_agent(self._arguments())) as process:
            while True:
                try:
                    line = await asyncio.wait_for(process.stdout.readuntil(b"\n"), _PROOF_S)
                except asyncio.IncompleteReadError:
                    break
                except TimeoutError:
                    raise LostError(f"{self.host.name}: silent for {_PROOF_S:g} s") from None
                last = _event(self.host, line)
                self.tell(self.host.name, last)
                if last.event == "have":
                    if self.before is None:
                        self.before = last.before
                    await self._send(process, last.done)
                elif last.event == "installed" and self.choices.activate:
                    await device.run(as_root(["sh", "-c", _START]))
            said = await process.stderr.read(_MOST_LINE_BYTES)
            await process.wait_closed()
            code = -1 if process.exit_status is None else process.exit_status
        if last is None or last.event in ("have", "proving", "probation"):
            raise device.failure(code, said.decode(errors="replace"))
        if last.event == "installed":
            return ("active" if self.choices.activate else "stored"), last.model
        return last.event, last.text or last.model

    def _arguments(self) -> list[str]:
        what, choices = self.what, self.choices
        flags = {
            "--force": choices.force,
            "--allow-downgrade": choices.allow_downgrade,
            "--no-activate": not choices.activate,
        }
        return [
            *("receive", "--digest", what.digest, "--sha256", what.sha256, "--size", str(what.size)),
            *("--watch-s", f"{choices.watch_s:g}"),
            *(flag for flag, given in flags.items() if given),
        ]

    async def _send(self, process: Any, have: int) -> None:
        if not 0 <= have <= self.what.size:
            raise DeviceError(
                f"{self.host.name}: says it has {have} of {self.what.size} bytes; is it an edgeloop device?"
            )
        start = time.monotonic()
        with open(self.what.path, "rb") as file:  # noqa: ASYNC230  blocks of 64 KB from the page cache
            file.seek(have)
            while block := file.read(_BLOCK):
                try:
                    process.stdin.write(block)
                    await process.stdin.drain()
                except (BrokenPipeError, ConnectionError):
                    break  # it says why itself, if it still can
                have += len(block)
                self.moved_bytes += len(block)
                self.moving_s += time.monotonic() - start
                start = time.monotonic()
                self.tell(self.host.name, PushEvent("have", have, self.what.size))
        process.stdin.write_eof()


def _event(host: Host, line: bytes) -> PushEvent:
    try:
        return msgspec.json.decode(line[:_MOST_LINE_BYTES], type=PushEvent)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise DeviceError(
            f"{host.name}: answered what edgeloop does not: {line[:100]!r}; does its login shell print something?"
        ) from None


async def roll_back(host: Host, reason: str, *, ssh_config: Path | None = None) -> str:
    """Make the previous model current again on a device; what runs there now.

    Raises:
        DeviceError: it cannot be reached, or has no previous model.
    """
    async with connected(host, ssh_config=ssh_config) as device:
        answer = await device.edgeloop("rollback", "--reason", reason, "--json")
    now = msgspec.json.decode(answer)
    return f"{now['name']} {now['version']}"


def rolled_back(outcome: Outcome, text: str) -> Outcome:
    """The outcome of a device whose wave was taken back."""
    return replace(outcome, state="rolled back", text=text)
