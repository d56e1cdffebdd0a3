"""Opens SSH connections to devices with the user's configuration, keys, SSH agent and known hosts. Uses asyncssh."""

from __future__ import annotations

import asyncio
import shlex
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import asyncssh
import msgspec

from edge_agent.errors import DeviceError

from ..on_device.setup import COMMAND, USER
from .inventory import Host
from .ssh_settings import ssh_settings

CONNECT_S = 20.0
_KEEPALIVE_S = 10
"""Interval of keepalive messages, in seconds. After three messages without an answer, the connection counts as lost."""
_MAX_ERROR_CHARACTERS = 2000
_MAX_OUTPUT_BYTES = 4 * 2**20
_BLOCK = 64 * 1024

Answer = TypeVar("Answer")


class LostError(DeviceError):
    """The connection was lost; the operation can be tried again."""


@dataclass(frozen=True)
class Done:
    """Result of a command."""

    exit_code: int
    stdout: bytes
    stderr: str


@asynccontextmanager
async def connected(host: Host, *, ssh_config: Path | None = None) -> AsyncIterator[Connection]:
    """Connect to a device. The connection is closed when the ``async with`` block ends.

    Args:
        host: the device.
        ssh_config: SSH configuration file that is used instead of the user's and the system's files.

    Raises:
        DeviceError: the device cannot be reached, its host key is unknown or changed, or it rejects the login.
        LostError: the connection was lost.
    """
    given: dict[str, Any] = {"port": host.port, "username": host.user}
    with tempfile.TemporaryDirectory(prefix="edgeloop-ssh-") as work:
        settings = await asyncio.to_thread(ssh_settings, host, ssh_config, Path(work))
        try:
            line = await asyncio.wait_for(
                asyncssh.connect(
                    host.host,
                    config=[str(file) for file in settings.files],
                    keepalive_interval=_KEEPALIVE_S,
                    **{key: value for key, value in given.items() if value is not None},
                ),
                CONNECT_S,
            )
        except Exception as error:
            raise _connect_error(host, error, settings.notes) from error
    try:
        async with line:
            yield Connection(host, line)
    except (asyncssh.ConnectionLost, asyncssh.DisconnectError, ConnectionError) as error:
        raise LostError(f"{host.name}: the connection was lost: {_reason(error)}") from error


class Connection:
    """A connection to a device. Commands run as the agent's user or as root."""

    def __init__(self, host: Host, line: asyncssh.SSHClientConnection) -> None:
        self.host = host
        self._line = line

    @asynccontextmanager
    async def process(self, command: str) -> AsyncIterator[asyncssh.SSHClientProcess[bytes]]:
        """Run a command with binary standard streams. The command is ended when the ``async with`` block ends."""
        try:
            async with self._line.create_process(command, encoding=None) as process:
                yield process
        except asyncssh.ChannelOpenError as error:
            raise LostError(f"{self.host.name}: the connection was lost: {error.reason}") from error

    async def run(
        self, command: str, stdin: bytes = b"", *, timeout_s: float = 60.0, max_bytes: int = _MAX_OUTPUT_BYTES
    ) -> Done:
        """Run a command and wait for its end.

        Args:
            command: command for the login shell.
            stdin: standard input.
            timeout_s: maximum duration, in seconds.
            max_bytes: maximum size of the standard output.

        Raises:
            DeviceError: the command did not end within ``timeout_s``, or its output is too large.
        """
        async with self.process(command) as process:
            try:
                return await asyncio.wait_for(self._finish(process, stdin, max_bytes), timeout_s)
            except TimeoutError:
                raise DeviceError(f"{self.host.name}: `{command[:60]}` did not end within {timeout_s:g} s") from None

    async def _finish(self, process: asyncssh.SSHClientProcess[bytes], stdin: bytes, max_bytes: int) -> Done:
        feed(process, stdin)
        output, errors = bytearray(), bytearray()

        async def read_errors() -> None:
            while block := await process.stderr.read(_BLOCK):
                errors[:] = (errors + block)[-_MAX_ERROR_CHARACTERS:]

        reading = asyncio.ensure_future(read_errors())
        try:
            while block := await process.stdout.read(_BLOCK):
                output += block
                if len(output) > max_bytes:
                    raise DeviceError(f"{self.host.name}: sends more than {max_bytes} bytes; is it an edgeloop device?")
            await reading
        finally:
            reading.cancel()
        await process.wait_closed()
        return Done(-1 if process.exit_status is None else process.exit_status, bytes(output), _text(bytes(errors)))

    async def ask(self, kind: type[Answer], *arguments: str, ok_codes: tuple[int, ...] = (0,)) -> Answer:
        """Run the device's `edgeloop` and return its JSON output as a value of type ``kind``.

        Raises:
            DeviceError: as `edgeloop`; or the output is not of this type.
        """
        output = await self.edgeloop(*arguments, ok_codes=ok_codes)
        try:
            return msgspec.json.decode(output, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DeviceError(
                f"{self.host.name}: its answer to `edgeloop {arguments[0]}` cannot be used ({error}); is its edgeloop "
                f"older than this one? Update it with: edgeloop deploy provision {self.host.name}"
            ) from None

    async def edgeloop(
        self,
        *arguments: str,
        stdin: bytes = b"",
        timeout_s: float = 60.0,
        ok_codes: tuple[int, ...] = (0,),
        max_bytes: int = _MAX_OUTPUT_BYTES,
    ) -> bytes:
        """Run the device's `edgeloop` as the agent's user and return its standard output.

        Args:
            arguments: arguments of `edgeloop`.
            stdin: standard input.
            timeout_s: maximum duration, in seconds.
            ok_codes: exit codes of a successful command.
            max_bytes: maximum size of the standard output.

        Raises:
            DeviceError: edgeloop is not installed, cannot be run, fails, or its output is too large.
        """
        done = await self.run(as_agent(arguments), stdin, timeout_s=timeout_s, max_bytes=max_bytes)
        if done.exit_code not in ok_codes or (done.exit_code and not done.stdout):
            raise self.failure(done.exit_code, done.stderr)
        return done.stdout

    def failure(self, exit_code: int, stderr: str) -> DeviceError:
        """Return an error that explains why a command from `as_agent` or `as_root` failed."""
        if exit_code == -1:
            return LostError(f"{self.host.name}: the connection was lost")
        # sudo and the login shell may have printed other lines before.
        last = (stderr.strip().splitlines() or [f"exit code {exit_code}"])[-1].strip()
        if "sudo:" in last and ("password is required" in last or "not allowed" in last or "may not run" in last):
            return DeviceError(
                f"{self.host.name}: your login user cannot use sudo without a password; allow it in /etc/sudoers.d, or "
                "log in as root"
            )
        if (
            exit_code == 127
            or "command not found" in stderr
            or f"unknown user {USER}" in stderr
            or "No such file" in last
        ):
            return DeviceError(
                f"{self.host.name}: edgeloop is not installed; install it with: edgeloop deploy provision "
                f"{self.host.name}"
            )
        return DeviceError(f"{self.host.name}: {last.removeprefix('edgeloop: ')}")


def feed(process: asyncssh.SSHClientProcess[bytes], data: bytes) -> None:
    """Send a process its whole standard input. One that has already ended gives its reason in its exit code."""
    with suppress(OSError):
        process.stdin.write(data)
        process.stdin.write_eof()


class Lines:
    """Reads the output of a process line by line: an asynchronous iterator.

    Args:
        stream: standard output of the process.
        host: the device, for error messages.
        max_bytes: maximum length of a line.
        silence_s: maximum time without output, in seconds.

    Raises:
        DeviceError: on iteration, if a line is too long.
        LostError: on iteration, if nothing arrives for ``silence_s``.
    """

    def __init__(self, stream: asyncssh.SSHReader[bytes], host: Host, *, max_bytes: int, silence_s: float) -> None:
        self._stream, self._host = stream, host
        self._max_bytes, self._silence_s = max_bytes, silence_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rest = b""
        while True:
            # Not `readuntil`, which waits for ever for the end of a line that is longer than the window of the channel.
            try:
                block = await asyncio.wait_for(self._stream.read(_BLOCK), self._silence_s)
            except TimeoutError:
                raise LostError(f"{self._host.name}: no output for {self._silence_s:g} s") from None
            *lines, rest = (rest + block).split(b"\n")
            if max(map(len, (*lines, rest))) > self._max_bytes:
                raise DeviceError(f"{self._host.name}: its output has a line of more than {self._max_bytes} bytes")
            for line in lines:
                yield line
            if not block:
                if rest:
                    yield rest
                return


def as_agent(arguments: Sequence[str]) -> str:
    """Return a shell command that runs the device's `edgeloop` as the agent's user. Any login user may run it."""
    command = shlex.join([COMMAND, *arguments])
    return _privileged(f"runuser -u {USER} -- {command}", f"sudo -n -u {USER} -- {command}")


def as_root(command: Sequence[str]) -> str:
    """Return a shell command that runs ``command`` as root. Any login user may run it."""
    return _privileged(shlex.join(command), f"sudo -n -- {shlex.join(command)}")


def _privileged(root: str, sudo: str) -> str:
    return f'cd /; if [ "$(id -u)" = 0 ]; then exec {root}; else exec {sudo}; fi'


def _connect_error(host: Host, error: Exception, notes: Sequence[str]) -> DeviceError:
    """Return an error that explains why a connection failed and what to do."""
    name, user = host.name, host.user or "USER"
    if isinstance(error, TimeoutError):
        return LostError(f"{name}: no answer within {CONNECT_S:g} s; is it on, and is {host.host} its address?")
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return DeviceError(
            f"{name}: its host key is unknown or differs from the known key of {host.host}; run `ssh {host.host}` "
            f"once and compare the key. If the device was flashed again: ssh-keygen -R {host.host}"
        )
    if isinstance(error, asyncssh.PermissionDenied):
        return DeviceError(
            f"{name}: it rejects your keys; run ssh-copy-id {user}@{host.host}, or ssh-add if your key has a passphrase"
            + "".join(f"; {note}" for note in notes)
        )
    if isinstance(error, socket.gaierror):
        return LostError(f"{name}: the name {host.host} cannot be resolved; is the device on, and the name right?")
    if isinstance(error, asyncssh.KeyImportError | asyncssh.KeyEncryptionError | asyncssh.ConfigParseError):
        return DeviceError(f"{name}: your SSH configuration or key cannot be used: {_reason(error)}")
    return LostError(f"{name}: cannot be reached: {_reason(error)}")


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error) or type(error).__name__
    return _text(text)


def _text(output: object) -> str:
    text = output.decode(errors="replace") if isinstance(output, bytes) else str(output or "")
    return text[-_MAX_ERROR_CHARACTERS:]
