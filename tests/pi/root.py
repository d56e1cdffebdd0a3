"""Debian for arm64 in a folder, from Debian's own packages, and an sshd in it on loopback.

Raspberry Pi OS is Debian for arm64. Maintainer scripts would take minutes under emulation, so the packages are only
unpacked, and the few things their scripts would have written are written here.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgeloop-tests" / "pi"
PACKAGES = """
base-files base-passwd bash coreutils dash debianutils findutils grep gzip iproute2 libc-bin libstdc++6 login mount
openssh-client openssh-server passwd procps python3 python3-venv sed sudo tar util-linux
"""
_APT = """\
APT::Architecture "{architecture}";
APT::Architectures {{"{architecture}";}};
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "3";
APT::Sandbox::User "root";
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "-";
Dir::State "{folder}/state";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
"""
# What pam-auth-update would write: the account exists, and that is enough.
_PAM = {
    "common-auth": "auth required pam_unix.so nullok",
    "common-account": "account required pam_unix.so",
    "common-password": "password required pam_unix.so",
    "common-session": "session required pam_permit.so",
    "common-session-noninteractive": "session required pam_permit.so",
}
_LINKS = ("bin", "sbin", "lib")


def can_emulate() -> bool:
    """Whether this machine runs arm64 programs, and lets us change root."""
    # C: sudo inside keeps its rights. F: the emulator need not lie in the root.
    try:
        registered = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").read_text()
    except OSError:
        return False
    flags = next(line for line in registered.splitlines() if line.startswith("flags:"))
    return os.geteuid() == 0 and {"C", "F"} <= set(flags)


def debian_architecture() -> str:
    """Debian's name for this machine's processor."""
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()


def packages(suite: str, names: str = PACKAGES, *, architecture: str = "arm64") -> list[Path]:
    """Debian's packages and what they need, downloaded once and kept."""
    folder = CACHE / f"{suite}-{architecture}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        return _downloaded(folder, suite, names, architecture)


def _downloaded(folder: Path, suite: str, names: str, architecture: str) -> list[Path]:
    for part in ("state/lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "state/status").touch()
    (folder / "sources.list").write_text(
        f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {_mirror()} {suite} main\n"
    )
    (folder / "apt.conf").write_text(_APT.format(folder=folder, architecture=architecture))
    apt = ["apt-get", "-qq", "-c", str(folder / "apt.conf")]
    subprocess.run([*apt, "update"], check=True, capture_output=True, text=True)
    install = [*apt, "install", "-y", *names.split()]
    subprocess.run([*install, "--download-only"], check=True, capture_output=True, text=True)
    plan = subprocess.run([*install, "--simulate"], check=True, capture_output=True, text=True).stdout
    # Which ones belong together is apt's to say: the folder may hold older ones.
    wanted = re.findall(r"^Inst (\S+) \((\S+) .*\[(\S+)\]", plan, re.MULTILINE)
    assert wanted, plan
    archives = folder / "cache/archives"
    return [archives / f"{name}_{version.replace(':', '%3a')}_{kind}.deb" for name, version, kind in wanted]


def _mirror() -> str:
    """Where this machine's own packages come from: it holds those of the other architectures, too."""
    told = ["apt-get", "indextargets", "--format", "$(SITE) $(SUITE) $(COMPONENT)", "Created-By: Packages"]
    listed = subprocess.run(told, capture_output=True, text=True, check=True).stdout.splitlines()
    sites = [line.split()[0] for line in listed if re.fullmatch(r"\S+ [a-z]+ main", line)]
    assert sites, f"apt knows no archive of Debian's: {listed}"
    return sites[0]


def make_root(root: Path, *, suite: str = "bookworm", architecture: str = "arm64", names: str = PACKAGES) -> Path:
    """Unpack a small Debian into ``root``, with a user `pi` who may sudo, as Raspberry Pi OS has."""
    root.mkdir(parents=True)
    for name in _LINKS:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in packages(suite, names, architecture=architecture):
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as unpacked:
            subprocess.run(
                ["tar", "-x", "-C", str(root), "--keep-directory-symlink"],
                stdin=unpacked.stdout,
                check=True,
                timeout=60,
            )
        assert unpacked.returncode == 0, package
    master = root / "usr/share/base-passwd"
    etc = root / "etc"
    (etc / "passwd").write_text(
        (master / "passwd.master").read_text().replace(":*:", ":x:")
        + "sshd:x:101:65534::/run/sshd:/usr/sbin/nologin\npi:x:1000:1000::/home/pi:/bin/bash\n"
    )
    (etc / "group").write_text(
        (master / "group.master").read_text().replace(":*:", ":x:") + "pi:x:1000:\nrender:x:106:\n"
    )
    users = [line.split(":")[0] for line in (etc / "passwd").read_text().splitlines()]
    (etc / "shadow").write_text("".join(f"{name}:*:19000:0:99999:7:::\n" for name in users))
    (etc / "shadow").chmod(0o640)
    (etc / "gshadow").touch(0o640)
    for name, text in _PAM.items():
        (etc / "pam.d" / name).write_text(f"{text}\n")
    sudoers = etc / "sudoers.d/010_pi-nopasswd"
    sudoers.write_text("pi ALL=(ALL) NOPASSWD: ALL\n")
    sudoers.chmod(0o440)
    shutil.copy(root / "usr/share/openssh/sshd_config", etc / "ssh/sshd_config")
    (etc / "hostname").write_text("raspberrypi\n")
    (etc / "hosts").write_text("127.0.0.1 localhost raspberrypi\n")
    for folder in ("proc", "dev/pts", "sys", "run/sshd", "tmp", "root", "home/pi/.ssh", "srv", "var/lib", "var/tmp"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for path in (root / "home/pi", root / "home/pi/.ssh"):
        os.chown(path, 1000, 1000)
    subprocess.run(["chroot", str(root), "/sbin/ldconfig"], check=True, timeout=60)
    return root


@dataclass(frozen=True)
class Pi:
    """A running sshd, and what reaches it."""

    root: Path
    port: int
    ssh_config: Path
    name: str = "raspberrypi"

    def ssh(self, command: str, *, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command there with the user's own ssh."""
        return subprocess.run(
            ["ssh", "-F", str(self.ssh_config), self.name, command],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )


@contextmanager
def running(root: Path, work: Path) -> Iterator[Pi]:
    """An sshd in the root, on loopback, until the block ends; with everything that was started in it.

    Args:
        root: as `make_root` leaves it.
        work: folder for keys and the ssh_config that leads there.
    """
    work.mkdir(parents=True, exist_ok=True)
    key, host_key = work / "id", root / "etc/ssh/ssh_host_ed25519_key"
    for path in (key, host_key):
        if not path.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    authorized = root / "home/pi/.ssh/authorized_keys"
    authorized.write_bytes(key.with_suffix(".pub").read_bytes())
    authorized.chmod(0o600)
    os.chown(authorized, 1000, 1000)
    port = free_port()
    config = ssh_config(work, port, key, host_key=host_key)
    with ExitStack() as stack:
        for source, place, options in (
            ("proc", "proc", ["-t", "proc"]),
            ("/dev", "dev", ["--bind"]),
            ("devpts", "dev/pts", ["-t", "devpts"]),
        ):
            subprocess.run(["mount", *options, source, str(root / place)], check=True)
            stack.callback(_unmount, root / place)
        log = stack.enter_context(open(work / "sshd.log", "ab"))
        options = [f"Port={port}", "ListenAddress=127.0.0.1", "UsePAM=no", "PidFile=none", "PasswordAuthentication=no"]
        sshd = subprocess.Popen(
            ["chroot", str(root), "/usr/sbin/sshd", "-D", "-e", *(f"-o{option}" for option in options)],
            stderr=log,
            start_new_session=True,
        )
        stack.callback(_end_all, root)
        stack.callback(sshd.wait)
        stack.callback(sshd.terminate)
        _wait_for(port, sshd)
        yield Pi(root, port, config)


def ssh_config(work: Path, port: int, key: Path, *, user: str = "pi", host_key: Path | None) -> Path:
    """The way to a device on loopback, which is called `raspberrypi` there.

    Args:
        work: folder for it.
        port: where it listens.
        key: private key that may log in.
        user: as whom.
        host_key: its own key; None takes the first one that is seen.
    """
    known = work / "known_hosts"
    known.write_text("" if host_key is None else f"[127.0.0.1]:{port} {host_key.with_suffix('.pub').read_text()}")
    config = work / "ssh_config"
    config.write_text(
        f"Host raspberrypi\n  HostName 127.0.0.1\n  Port {port}\n  User {user}\n  IdentityFile {key}\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {known}\n  GlobalKnownHostsFile /dev/null\n  BatchMode yes\n"
        + ("  StrictHostKeyChecking accept-new\n" if host_key is None else "")
    )
    return config


def processes(root: Path) -> list[int]:
    """What runs inside a root, whatever started it."""
    entries = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [int(entry.name) for entry in entries if _root_of(entry) == root]


def _end_all(root: Path) -> None:
    """Kill what still runs inside the root."""
    for _ in range(50):
        inside = processes(root)
        if not inside:
            return
        for pid in inside:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        time.sleep(0.1)


def _root_of(process: Path) -> Path | None:
    try:
        return (process / "root").readlink()
    except OSError:
        return None


def _unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", str(place)], check=True)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def _wait_for(port: int, sshd: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert sshd.poll() is None, f"sshd ended with {sshd.returncode}"
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
                if line.recv(4) == b"SSH-":
                    return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError("no sshd")


def remove_root(root: Path) -> None:
    """Remove a root; never through a mount that is still there."""
    mounts = Path("/proc/self/mounts").read_text()
    assert f" {root}/" not in mounts, mounts
    shutil.rmtree(root)
