"""Pushes a bundle to one device: sends the bytes that are missing there, then follows the canary test and probation."""

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
from .ssh import Connection, Lines, LostError, as_agent, as_root, connected

_BLOCK = 64 * 1024
_MAX_LINE_BYTES = 64 * 1024
_MAX_TRIES = 5
"""Number of consecutive attempts without progress after which a push gives up."""
_MAX_CONNECT_TRIES = 2
"""Number of attempts for a device that never answered.

It is more than one because the login can time out in a busy network. It is small because most devices that do not
answer are switched off.
"""
_PAUSE_S = 1.0
_SILENCE_S = 180.0
"""Maximum time without an event from the device, in seconds. The canary test cannot take longer."""
_LONGEST_S = 1800.0
"""Maximum time in which a push must come to an end, in seconds, besides that of sending and of the probation."""
_START = "test ! -d /run/systemd/system || systemctl start --no-block edgeloop.service"


@dataclass(frozen=True)
class Package:
    """A bundle file to send.

    Attributes:
        path: path of the file.
        name: name and version of the bundle.
        digest: digest of the bundle.
        sha256: SHA-256 of the file.
        size: size of the file in bytes.
    """

    path: Path
    name: str
    digest: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Choices:
    """Options of a push.

    Attributes:
        force: send the bundle even if the device rolled it back before.
        allow_downgrade: send the bundle even if the device runs a newer version.
        activate: activate the bundle; otherwise only store it.
        watch_s: maximum time to wait for the end of the probation, in seconds; 0 to not wait.
        ssh_config: SSH configuration file that is used instead of the user's.
    """

    force: bool = False
    allow_downgrade: bool = False
    activate: bool = True
    watch_s: float = 300.0
    ssh_config: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """Result of a push to one device.

    The states are:

    - ``good``: the model runs and passed its probation.
    - ``active``: the model runs, and the push did not wait for its probation.
    - ``stored``: the bundle is stored on the device but was not activated.
    - ``refused``: the device rejected the bundle.
    - ``failed``: the device activated the model and then rolled it back.
    - ``unheard``: the model runs, but its probation did not end in time.
    - ``unreachable``: the device could not be reached, or the connection was lost.
    - ``rolled back``: the rollout rolled the device back together with its wave.
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
        """True if the push succeeded. Other states count as failures in a rollout."""
        return self.state in ("good", "active", "stored")


OnEvent = Callable[[str, PushEvent], Any]
"""Callback that takes the name of a device and an event from it. ``have`` events report the transfer's progress."""


def package(path: Path) -> Package:
    """Open and check a bundle file that will be sent.

    Raises:
        BundleError: the file is not a bundle or is damaged.
        ConfigError: the path is not a file.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected a bundle written by edgeloop convert")
    bundle = open_bundle(path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    name = f"{bundle.manifest.name} {bundle.manifest.version}"
    return Package(path, name, bundle.digest, digest, path.stat().st_size)


async def push(host: Host, what: Package, choices: Choices, on_event: OnEvent) -> Outcome:
    """Send a bundle to a device and follow its events there. Reconnect if the connection is lost.

    Returns:
        The outcome. Errors of the device or the connection are reported in it and not raised.
    """
    start, tries = time.monotonic(), 0
    attempt = _Attempt(host, what, choices, on_event)
    while True:
        before = attempt.moved_bytes
        try:
            async with connected(host, ssh_config=choices.ssh_config) as device:
                state, text = await attempt.run(device)
        except LostError as error:
            tries = 1 if attempt.moved_bytes > before else tries + 1
            if tries < (_MAX_TRIES if attempt.reached else _MAX_CONNECT_TRIES):
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
    """The state of a push across several connections."""

    def __init__(self, host: Host, what: Package, choices: Choices, on_event: OnEvent) -> None:
        self.host, self.what, self.choices, self.on_event = host, what, choices, on_event
        self.moved_bytes = 0
        self.moving_s = 0.0
        self.reached = self.sending = False
        self.before: str | None = None

    async def run(self, device: Connection) -> tuple[Any, str]:
        self.reached, self.sending = True, False
        last: PushEvent | None = None
        async with device.process(as_agent(self._arguments())) as process:
            lines = Lines(process.stdout, self.host, max_bytes=_MAX_LINE_BYTES, silence_s=_SILENCE_S)
            deadline = time.monotonic() + _LONGEST_S + self.choices.watch_s
            async for line in lines:
                if time.monotonic() > deadline:
                    raise DeviceError(f"{self.host.name}: the push does not come to an end")
                last = _event(self.host, line)
                self.on_event(self.host.name, last)
                if last.event == "have":
                    await self._begin(process, last)
                    deadline = time.monotonic() + _LONGEST_S + self.choices.watch_s
                elif last.event == "installed" and self.choices.activate:
                    await device.run(as_root(["sh", "-c", _START]))
            errors = await process.stderr.read(_MAX_LINE_BYTES)
            await process.wait_closed()
            code = -1 if process.exit_status is None else process.exit_status
        if last is None or last.event in ("have", "proving", "probation"):
            raise device.failure(code, errors.decode(errors="replace"))
        if last.event == "installed":
            return ("active" if self.choices.activate else "stored"), last.model
        return last.event, last.text or last.model

    async def _begin(self, process: Any, said: PushEvent) -> None:
        """Send what the device does not have yet. It may ask only once in a connection."""
        if self.sending:
            raise DeviceError(f"{self.host.name}: asks for the bundle twice; is it an edgeloop device?")
        self.sending = True
        if self.before is None:
            self.before = said.before
        await self._send(process, said.done)

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
                f"{self.host.name}: reports {have} of {self.what.size} bytes received; is it an edgeloop device?"
            )
        start = time.monotonic()
        with open(self.what.path, "rb") as file:  # noqa: ASYNC230  blocks of 64 KB from the page cache
            file.seek(have)
            while block := file.read(_BLOCK):
                try:
                    process.stdin.write(block)
                    await process.stdin.drain()
                except (BrokenPipeError, ConnectionError):
                    break  # the device reports the reason itself if it can
                have += len(block)
                self.moved_bytes += len(block)
                self.moving_s += time.monotonic() - start
                start = time.monotonic()
                self.on_event(self.host.name, PushEvent("have", have, self.what.size))
        process.stdin.write_eof()


class _Model(msgspec.Struct):
    name: str
    version: str


def _event(host: Host, line: bytes) -> PushEvent:
    try:
        return msgspec.json.decode(line, type=PushEvent)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise DeviceError(
            f"{host.name}: expected the output of edgeloop, got {line[:100]!r}; does the login shell print something?"
        ) from None


async def roll_back(host: Host, reason: str, *, ssh_config: Path | None = None) -> str:
    """Roll back a device to its previous model and return the name and version of that model.

    Raises:
        DeviceError: the device cannot be reached or has no previous model.
    """
    async with connected(host, ssh_config=ssh_config) as device:
        now = await device.ask(_Model, "rollback", "--reason", reason, "--json")
    return f"{now.name} {now.version}"


def rolled_back(outcome: Outcome, text: str) -> Outcome:
    """Return the outcome of a device whose wave was rolled back."""
    return replace(outcome, state="rolled back", text=text)
