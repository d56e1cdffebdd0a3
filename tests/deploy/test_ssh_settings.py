"""What OpenSSH shrugs off does not stop us: each configuration is tried with `ssh` itself, and with ours."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.fleet.inventory import Host
from deploy.fleet.ssh import connected
from edge_agent.errors import DeviceError

from ..conftest import SEARCH, find_free_port, listens, wait_until

pytestmark = pytest.mark.needs("ssh-keygen", "sshd", "root")


@dataclass
class Server:
    """A real sshd on loopback; ``folder`` holds the key that it accepts and the list that knows its host key."""

    folder: Path
    port: int

    def config(self, *lines: str, key: bool = True, known: str = "known_hosts") -> Path:
        path = self.folder / "config"
        own = [f"  IdentityFile {self.folder / 'id'}"] * key
        path.write_text(
            "\n".join(
                [
                    *lines,
                    "Host device",
                    "  HostName 127.0.0.1",
                    f"  Port {self.port}",
                    "  User root",
                    *own,
                    f"  UserKnownHostsFile {self.folder / known}",
                ]
            )
            + "\n"
        )
        return path

    def ssh(self, config: Path) -> subprocess.CompletedProcess[str]:
        command = ["ssh", "-F", str(config), "-o", "BatchMode=yes", "device", "echo hello"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def ours(self, config: Path, name: str = "device") -> bytes:
        async def hello() -> bytes:
            async with connected(Host(name, name), ssh_config=config) as device:
                return (await device.run("echo hello")).stdout

        return asyncio.run(hello())


def new_key(path: Path, passphrase: str = "") -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "id", "other"):
        new_key(folder / name)
    new_key(folder / "locked", "a passphrase")
    shutil.copy(folder / "id.pub", folder / "authorized_keys")
    port = find_free_port()
    key = (folder / "host.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(key)}\n")
    binary = shutil.which("sshd", path=SEARCH)
    assert binary is not None
    Path("/run/sshd").mkdir(exist_ok=True)
    options = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PermitRootLogin": "prohibit-password",
    }
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([binary, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
        try:
            wait_until(lambda: listens(port), 20, "sshd")
            yield Server(folder, port)
        finally:
            process.terminate()
            process.wait(60)


CERTIFICATE = "  CertificateFile {folder}/missing-cert.pub"
HARMLESS = {
    "a key that is missing": ["Host *", "  IdentityFile {folder}/missing"],
    "a key that is locked": ["Host *", "  IdentityFile {folder}/locked"],
    "a public key in the place of a key": ["Host *", "  IdentityFile {folder}/other.pub"],
    "rubbish in the place of a key": ["Host *", "  IdentityFile {folder}/rubbish"],
    "a certificate that is missing": ["Host *", CERTIFICATE],
    "a list of known hosts that is missing": ["Host *", "  UserKnownHostsFile {folder}/known_hosts {folder}/missing"],
    "a damaged line in a list": ["Host *", "  UserKnownHostsFile {folder}/damaged {folder}/known_hosts"],
    "comments behind values": ["Host *", "  ConnectTimeout 10 # seconds"],
    "times in words": ["Host *", "  ConnectTimeout 1m", "  ServerAliveInterval 1m30s"],
    "options of newer versions": ["IgnoreUnknown Sparkle", "Host *", "  Sparkle yes"],
    "a match": ['Match host device exec "true"', "  ServerAliveCountMax 2"],
    "a jump": ["Host jump", "  HostName 127.0.0.1", "  Port {port}", "  IdentityFile {folder}/missing",
               "  IdentityFile {folder}/id", "  User root", "  UserKnownHostsFile {folder}/known_hosts",
               "Host device", "  ProxyJump jump"],
}  # fmt: skip


@pytest.mark.parametrize("what", HARMLESS)
def test_what_openssh_ignores_is_ignored(server: Server, what: str) -> None:
    folder = server.folder
    (folder / "rubbish").write_text("no key\n")
    (folder / "rubbish").chmod(0o600)
    (folder / "damaged").write_text("device ssh-ed25519 AAAA\n@revoked\n|1|x|y ssh-rsa !!!\n\n# a comment\n")
    config = server.config(*(line.format(folder=folder, port=server.port) for line in HARMLESS[what]))
    theirs = server.ssh(config)
    assert (theirs.returncode, theirs.stdout) == (0, "hello\n"), theirs.stderr
    assert server.ours(config) == b"hello\n"


def test_what_stops_openssh_stops_us_and_is_named(server: Server, tmp_path: Path) -> None:
    config = server.config("Host *", "  Sparkle yes")
    assert server.ssh(config).returncode == 255
    with pytest.raises(DeviceError, match=rf"{config}.* line 2: Bad configuration option: sparkle"):
        server.ours(config)
    config = server.config(f"Host *\n  IdentityFile {server.folder}/locked", key=False)
    with pytest.raises(DeviceError, match=r"rejects your keys; .*; .*/locked has a passphrase; add it with ssh-add"):
        server.ours(config)
    new_key(tmp_path / "host")
    wrong = (tmp_path / "host.pub").read_text().split()[:2]
    (server.folder / "wrong_hosts").write_text(f"[127.0.0.1]:{server.port} {' '.join(wrong)}\n")
    config = server.config(known="wrong_hosts")
    assert server.ssh(config).returncode == 255
    with pytest.raises(DeviceError, match="its host key is unknown or differs from the known key"):
        server.ours(config)
    config = server.config(known="missing")
    with pytest.raises(DeviceError, match="its host key is unknown"):
        server.ours(config)


def test_without_openssh_the_files_are_read_all_the_same(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = server.config()
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert server.ours(config) == b"hello\n"
