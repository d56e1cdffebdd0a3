"""SSH to a device: the user's own configuration, keys, agent and known hosts, by asyncssh."""

from __future__ import annotations

import asyncio
import shlex
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from edge_agent.errors import DeviceError

from ..on_device.setup import COMMAND, USER
from .inventory import Host

CONNECT_S = 20.0
_ALIVE_EVERY_S = 10
"""Three such silences, and the connection counts as gone."""
_SAID_BYTES = 2000


class LostError(DeviceError):
    """The connection broke; what was begun may be tried again."""


@dataclass(frozen=True)
class Done:
    """What a command gave."""

    exit_code: int
    stdout: bytes
    stderr: str


@asynccontextmanager
async def connected(host: Host, *, ssh_config: Path | None = None) -> AsyncIterator[Connection]:
    """A connection to a device, closed when the block ends.

    Args:
        host: which.
        ssh_config: instead of the user's and the system's.

    Raises:
        DeviceError: it cannot be reached, is not the one that is known, or does not let us in.
        LostError: the connection broke.
    """
    files = _configurations() if ssh_config is None else [ssh_config]
    given: dict[str, Any] = {"port": host.port, "username": host.user}
    try:
        line = await asyncio.wait_for(
            asyncssh.connect(
                host.host,
                config=[str(file) for file in files],
                keepalive_interval=_ALIVE_EVERY_S,
                **{key: value for key, value in given.items() if value is not None},
            ),
            CONNECT_S,
        )
    except Exception as error:
        raise _why(host, error) from error
    try:
        async with line:
            yield Connection(host, line)
    except (asyncssh.ConnectionLost, asyncssh.DisconnectError, ConnectionError) as error:
        raise LostError(f"{host.name}: the connection broke: {_said(error)}") from error


class Connection:
    """A device that is reached. Its commands run as the agent's user, or as root."""

    def __init__(self, host: Host, line: asyncssh.SSHClientConnection) -> None:
        self.host = host
        self._line = line

    @asynccontextmanager
    async def process(self, command: str) -> AsyncIterator[asyncssh.SSHClientProcess[bytes]]:
        """A command with its bytes in and out, for as long as the block."""
        try:
            async with self._line.create_process(command, encoding=None) as process:
                yield process
        except asyncssh.ChannelOpenError as error:
            raise LostError(f"{self.host.name}: the connection broke: {error.reason}") from error

    async def run(self, command: str, given: bytes = b"", *, timeout_s: float = 60.0) -> Done:
        """A command from its start to its end.

        Raises:
            DeviceError: it takes longer than it may.
        """
        async with self.process(command) as process:
            try:
                out, said = await asyncio.wait_for(process.communicate(given), timeout_s)
            except TimeoutError:
                raise DeviceError(f"{self.host.name}: no end of `{command[:60]}` after {timeout_s:g} s") from None
            await process.wait_closed()
            return Done(-1 if process.exit_status is None else process.exit_status, out or b"", _text(said))

    async def edgeloop(
        self, *arguments: str, given: bytes = b"", timeout_s: float = 60.0, fine: tuple[int, ...] = (0,)
    ) -> bytes:
        """What `edgeloop` of the device, run as the agent's user, prints; ``fine`` are exit codes of an answer.

        Raises:
            DeviceError: it is not there, may not be run, or fails.
        """
        done = await self.run(as_agent(arguments), given, timeout_s=timeout_s)
        if done.exit_code not in fine or (done.exit_code and not done.stdout):
            raise self.failure(done.exit_code, done.stderr)
        return done.stdout

    def failure(self, exit_code: int, said: str) -> DeviceError:
        """Why a command that was run by `as_agent` or `as_root` failed, from what it said."""
        if exit_code == -1:
            return LostError(f"{self.host.name}: the connection broke")
        # sudo and the login shell may have said things of their own before.
        last = (said.strip().splitlines() or [f"exit code {exit_code}"])[-1].strip()
        if "sudo:" in last and ("password is required" in last or "not allowed" in last or "may not run" in last):
            return DeviceError(
                f"{self.host.name}: the user you log in as may not use sudo there without a password; allow it in "
                "/etc/sudoers.d, or log in as root"
            )
        if exit_code == 127 or "command not found" in said or f"unknown user {USER}" in said or "No such file" in last:
            return DeviceError(
                f"{self.host.name}: edgeloop is not installed there; edgeloop deploy provision {self.host.name} does it"
            )
        return DeviceError(f"{self.host.name}: {last.removeprefix('edgeloop: ')}")


def as_agent(arguments: Sequence[str]) -> str:
    """The shell command that runs the device's `edgeloop` as the agent's user, whoever logs in."""
    command = shlex.join([COMMAND, *arguments])
    return _privileged(f"runuser -u {USER} -- {command}", f"sudo -n -u {USER} -- {command}")


def as_root(command: Sequence[str]) -> str:
    """The shell command that runs another one as root, whoever logs in."""
    return _privileged(shlex.join(command), f"sudo -n -- {shlex.join(command)}")


def _configurations() -> list[Path]:
    """The user's and the system's ssh_config, as ssh(1) reads them."""
    return [file for file in (Path.home() / ".ssh/config", Path("/etc/ssh/ssh_config")) if file.exists()]


def _privileged(root: str, sudo: str) -> str:
    return f'cd /; if [ "$(id -u)" = 0 ]; then exec {root}; else exec {sudo}; fi'


def _why(host: Host, error: Exception) -> DeviceError:
    """What hinders a connection, and what to do about it."""
    name, user = host.name, host.user or "USER"
    if isinstance(error, TimeoutError):
        return LostError(f"{name}: no answer within {CONNECT_S:g} s; is it on, and is {host.host} its address?")
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return DeviceError(
            f"{name}: its host key is not the one known for {host.host}, or none is known; run `ssh {host.host}` "
            f"once and compare the key. If the device was flashed anew: ssh-keygen -R {host.host}"
        )
    if isinstance(error, asyncssh.PermissionDenied):
        return DeviceError(
            f"{name}: it does not let you in with your keys; ssh-copy-id {user}@{host.host}, or ssh-add yours if it "
            "has a passphrase"
        )
    if isinstance(error, socket.gaierror):
        return LostError(f"{name}: no address is known for {host.host}; is it on, and its name right?")
    if isinstance(error, asyncssh.KeyImportError | asyncssh.KeyEncryptionError | asyncssh.ConfigParseError):
        return DeviceError(f"{name}: your SSH configuration or key cannot be used: {_said(error)}")
    return LostError(f"{name}: cannot be reached: {_said(error)}")


def _said(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error) or type(error).__name__
    return _text(text)


def _text(said: object) -> str:
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(said or "")
    return text[-_SAID_BYTES:]
