"""Reads SSH settings as OpenSSH does, and passes them to asyncssh without what OpenSSH ignores.

OpenSSH itself resolves the settings (``ssh -G``): comments, times such as ``1m``, ``Match``, ``Include``. asyncssh
stops at a key, certificate or list of known hosts that is missing or damaged; OpenSSH goes on without it, and so does
edgeloop.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

from edge_agent.errors import DeviceError

from .inventory import Host

_PLAIN = (
    "hostname",
    "port",
    "user",
    "hostkeyalias",
    "bindaddress",
    "addressfamily",
    "proxycommand",
    "pubkeyauthentication",
)
"""Settings that are passed on as they are, except the values `none` and `any`."""
_MAX_JUMPS = 8
_JUMP = re.compile(r"(?:ssh://)?(?:(?P<user>[^@]+)@)?(?P<host>\[[^\]]+\]|[^:]+)(?::(?P<port>\d+))?/?\Z")


@dataclass
class SshSettings:
    """Settings for one connection.

    Attributes:
        files: configuration files for asyncssh.
        notes: what was left out, to explain why a login was rejected.
    """

    files: list[Path]
    notes: list[str] = field(default_factory=list)


def ssh_settings(host: Host, ssh_config: Path | None, work: Path) -> SshSettings:
    """Resolve the settings for a device. Blocks for some milliseconds.

    Without OpenSSH on this machine, the user's and the system's files are passed on as they are.

    Args:
        host: the device.
        ssh_config: file that is used instead of the user's and the system's files.
        work: directory for the resolved settings; asyncssh reads them while it connects.

    Raises:
        DeviceError: OpenSSH does not accept the settings; the message names the file and the line.
    """
    if shutil.which("ssh") is None:
        own = [Path.home() / ".ssh/config", Path("/etc/ssh/ssh_config")] if ssh_config is None else [ssh_config]
        return SshSettings([file for file in own if file.exists()])
    settings = SshSettings([work / "config"])
    resolver = _Resolver(ssh_config, work, settings.notes)
    resolver.add(host.host, host.user, host.port)
    settings.files[0].write_text("\n".join(resolver.lines) + "\n")
    return settings


class _Resolver:
    """Collects the settings for a device and for the hosts that lead to it."""

    def __init__(self, ssh_config: Path | None, work: Path, notes: list[str]) -> None:
        self.lines: list[str] = []
        self._given = [] if ssh_config is None else ["-F", str(ssh_config)]
        self._work = work
        self._notes = notes
        self._known: set[str] = set()

    def add(self, name: str, user: str | None, port: int | None) -> None:
        if name in self._known or len(self._known) > _MAX_JUMPS:
            return
        self._known.add(name)
        found = self._resolved(name, user, port)
        self.lines.append(f"Host {name}")
        for key in _PLAIN:
            self.lines += [f"  {key} {value}" for value in found.get(key, [])[:1] if value not in ("none", "any")]
        agent = found.get("identityagent", ["SSH_AUTH_SOCK"])[0]
        if agent != "SSH_AUTH_SOCK":
            self.lines.append(f"  identityagent {agent}")
        self.lines += [f"  identityfile {_quoted(path)}" for path in self._keys(found.get("identityfile", []))]
        # asyncssh would otherwise also try the keys of the agent first; too many attempts, and the device hangs up.
        self.lines += [f"  identitiesonly {value}" for value in found.get("identitiesonly", [])]
        certificates = [path for path in map(_path, found.get("certificatefile", [])) if path.is_file()]
        self.lines += [f"  certificatefile {_quoted(path)}" for path in certificates]
        self.lines.append(f"  userknownhostsfile {_quoted(self._known_hosts(found))}")
        self.lines.append("  globalknownhostsfile /dev/null")
        jumps = found.get("proxyjump", ["none"])[0]
        if jumps != "none":
            self.lines.append(f"  proxyjump {jumps}")
            for jump in jumps.split(","):
                parts = _JUMP.match(jump.strip())
                if parts is not None:
                    self.add(parts["host"].strip("[]"), parts["user"], int(parts["port"]) if parts["port"] else None)

    def _resolved(self, name: str, user: str | None, port: int | None) -> dict[str, list[str]]:
        command = ["ssh", "-G", *self._given]
        command += [] if user is None else ["-l", user]
        command += [] if port is None else ["-p", str(port)]
        done = subprocess.run([*command, "--", name], capture_output=True, text=True, check=False, timeout=60)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line and not line.endswith("terminating")]
            raise DeviceError(
                f"{name}: your SSH configuration or key cannot be used: {'; '.join(lines[-3:]) or 'ssh -G failed'}"
            )
        found: dict[str, list[str]] = {}
        for line in done.stdout.splitlines():
            key, _, value = line.partition(" ")
            found.setdefault(key, []).append(value)
        return found

    def _keys(self, names: list[str]) -> Iterator[Path]:
        for path in map(_path, names):
            if not path.is_file():
                continue
            try:
                asyncssh.read_private_key(path)
            except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, OSError) as error:
                # A public key, whose private key is in the agent, for example.
                locked = "passphrase" in str(error).lower()
                reason = "has a passphrase; add it with ssh-add" if locked else f"is not a private key: {error}"
                self._notes.append(f"{path} {reason}")
            else:
                yield path

    def _known_hosts(self, found: dict[str, list[str]]) -> Path:
        """Write the valid lines of all lists of known hosts into one file."""
        target = self._work / f"known_hosts{len(self._known)}"
        with target.open("w", encoding="utf-8") as file:
            for kind in ("userknownhostsfile", "globalknownhostsfile"):
                for name in " ".join(found.get(kind, [])).split():
                    file.writelines(f"{line}\n" for line in self._valid_lines(_path(name)))
        return target

    def _valid_lines(self, path: Path) -> Iterator[str]:
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return
        for number, line in enumerate(lines, 1):
            try:
                asyncssh.import_known_hosts(line)
            except (ValueError, asyncssh.KeyImportError) as error:
                self._notes.append(f"{path}: line {number} is damaged: {error}")
            else:
                yield line


def _path(name: str) -> Path:
    return Path(name).expanduser()


def _quoted(path: Path) -> str:
    return f'"{path}"'
