"""A whole arm64 machine with systemd, in software: Debian's kernel and packages on a card image, booted by QEMU.

As in `root`, packages are only unpacked, for their scripts would take minutes. The card is what Raspberry Pi OS's is: a
FAT boot partition whose cmdline.txt is the kernel's command line, as the Pi's firmware reads it at each start, and a
root partition. One thing is of ours: a small initrd, for Debian's kernel has the emulator's disk as a module.
"""

from __future__ import annotations

import lzma
import os
import shlex
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..support.card_image import ENVIRONMENT, offset_of_boot
from .root import PACKAGES, free_port, make_root, ssh_config

_SYSTEM = "busybox-static dbus e2fsprogs hostname kmod linux-image-cloud-arm64 systemd systemd-sysv udev"
CMDLINE = "console=ttyAMA0 root=LABEL=rootfs rootwait quiet net.ifnames=0\n"
ROOT_BYTES = 1800 * 2**20
_MODULES = "virtio virtio_ring virtio_mmio virtio_blk crc16 mbcache jbd2 crc32c_generic libcrc32c ext4"
_INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*.ko; do /bin/busybox insmod $module; done
while ! root=$(/bin/busybox findfs LABEL=rootfs); do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 $root /root
exec /bin/busybox switch_root /root /sbin/init
"""
_NETWORK = """\
[Match]
Name=e*

[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
"""


@dataclass(frozen=True)
class System:
    """What a machine is made of: the kernel, our initrd, and a root partition to copy."""

    kernel: Path
    initrd: Path
    root: Path


def make_system(folder: Path, *, suite: str = "bookworm", files: Mapping[str, Path]) -> System:
    """A small Debian with systemd, sshd and the user `pi`, as an ext4 file system in a file.

    Args:
        folder: for all of it.
        suite: of Debian. As on Raspberry Pi OS, trixie has cloud-init, which looks at the boot partition.
        files: place in the root to the file that is to be there.
    """
    more = " cloud-init netcat-openbsd netplan.io" if suite == "trixie" else ""
    root = make_root(folder / "root", suite=suite, names=f"{PACKAGES} {_SYSTEM}{more}")
    etc = root / "etc"
    subprocess.run(["systemd-sysusers", f"--root={root}"], check=True, capture_output=True)
    (etc / "fstab").write_text("LABEL=rootfs / ext4 defaults 0 1\nLABEL=bootfs /boot/firmware vfat defaults 0 2\n")
    (root / "boot/firmware").mkdir()
    (etc / "machine-id").write_text("")
    (etc / "systemd/network").mkdir(parents=True, exist_ok=True)
    (etc / "systemd/network/wired.network").write_text(_NETWORK)
    for unit in ("serial-getty@ttyAMA0", "systemd-networkd-wait-online", "getty@tty1", "console-getty"):
        (etc / f"systemd/system/{unit}.service").unlink(missing_ok=True)
        (etc / f"systemd/system/{unit}.service").symlink_to("/dev/null")
    subprocess.run(
        ["systemctl", f"--root={root}", "enable", "ssh", "systemd-networkd"], check=True, capture_output=True
    )
    if suite == "trixie":
        _set_up_cloud_init(root)
    subprocess.run(["ssh-keygen", "-A", "-f", str(root)], check=True, capture_output=True)
    for place, source in files.items():
        shutil.copy(source, root / place.lstrip("/"))
    version = next((root / "lib/modules").iterdir()).name
    subprocess.run(["chroot", str(root), "/sbin/depmod", version], check=True)
    initrd = _make_initrd(root, version, folder)
    kernel = shutil.copy(root / f"boot/vmlinuz-{version}", folder / "vmlinuz")
    disk = folder / "root.ext4"
    with open(disk, "wb") as file:
        file.truncate(ROOT_BYTES)
    make = ["mke2fs", "-q", "-t", "ext4", "-L", "rootfs", "-d", str(root), str(disk)]
    subprocess.run(make, check=True, env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"})
    shutil.rmtree(root)
    return System(Path(kernel), initrd, disk)


def _set_up_cloud_init(root: Path) -> None:
    """As Raspberry Pi OS does; and what the scripts of packages it needs would have written."""
    certificates = (path.read_text() for path in sorted((root / "usr/share/ca-certificates").rglob("*.crt")))
    (root / "etc/ssl/certs/ca-certificates.crt").write_text("".join(certificates))
    (root / "usr/bin/nc").symlink_to("nc.openbsd")
    config = root / "etc/cloud/cloud.cfg.d/99_boot_partition.cfg"
    config.write_text("datasource_list: [NoCloud, None]\ndatasource: {NoCloud: {seedfrom: 'file:///boot/firmware'}}\n")
    for unit in ("main", "local"):
        drop_in = root / f"etc/systemd/system/cloud-init-{unit}.service.d"
        drop_in.mkdir(parents=True)
        (drop_in / "boot.conf").write_text("[Unit]\nRequiresMountsFor=/boot/firmware\n")
    units = [path.name for path in (root / "usr/lib/systemd/system").glob("cloud-*.service")]
    subprocess.run(["systemctl", f"--root={root}", "enable", *sorted(units)], check=True, capture_output=True)


def _make_initrd(root: Path, version: str, folder: Path) -> Path:
    modules = root / "lib/modules" / version
    builtin = (modules / "modules.builtin").read_text()
    entries: list[tuple[str, int, bytes]] = [
        *((name, stat.S_IFDIR | 0o755, b"") for name in ("bin", "dev", "modules", "proc", "root", "sys")),
        ("bin/busybox", stat.S_IFREG | 0o755, (root / "bin/busybox").read_bytes()),
        ("init", stat.S_IFREG | 0o755, _INIT.encode()),
    ]
    for number, name in enumerate(_MODULES.split()):
        found = next(modules.rglob(f"{name}.ko*"), None)
        if found is None:
            assert f"/{name}.ko" in builtin, name
            continue
        data = lzma.decompress(found.read_bytes()) if found.suffix == ".xz" else found.read_bytes()
        entries.append((f"modules/{number:02d}-{name}.ko", stat.S_IFREG | 0o644, data))
    path = folder / "initrd"
    with open(path, "wb") as file:
        for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
            # cpio's newc format: magic, then 13 numbers of 8 hexadecimal digits.
            fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
            header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
            file.write(header.ljust(len(header) + -len(header) % 4, b"\0"))
            file.write(content.ljust(len(content) + -len(content) % 4, b"\0"))
    return path


class Machine:
    """A machine with a card in it; off until it is started.

    Args:
        system: what boots it.
        card: image of the card.
        work: folder for its console's log and the way to reach it.
        key: whose private key may log in as ``user``.
    """

    def __init__(self, system: System, card: Path, work: Path, key: Path, *, user: str = "pi") -> None:
        work.mkdir(parents=True, exist_ok=True)
        self._system, self._card, self._work = system, card, work
        self.port = free_port()
        self.ssh_config = ssh_config(work, self.port, key, user=user, host_key=None)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Turn it on."""
        place = f"{self._card}@@{offset_of_boot(self._card)}"
        told = subprocess.run(
            ["mtype", "-i", place, "::/cmdline.txt"], check=True, capture_output=True, text=True, env=ENVIRONMENT
        )
        with open(self._work / "console.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *("qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a76", "-smp", "2", "-m", "1024"),
                    *("-accel", "tcg,thread=multi,tb-size=256", "-nographic", "-no-reboot", "-monitor", "none"),
                    *("-kernel", str(self._system.kernel), "-initrd", str(self._system.initrd)),
                    *("-append", told.stdout.strip()),
                    *(
                        "-drive",
                        f"file={self._card},if=none,format=raw,id=card",
                        "-device",
                        "virtio-blk-device,drive=card",
                    ),
                    *("-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self.port}-:22"),
                    *("-device", "virtio-net-device,netdev=net", "-device", "virtio-rng-device"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_off(self, timeout_s: float) -> None:
        """Until it turned itself off, or wanted to start again."""
        assert self._process is not None
        self._process.wait(timeout_s)

    def cut_power(self) -> None:
        """Off, at once."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def ssh(self, command: str, *, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command there with the user's own ssh."""
        return subprocess.run(
            ["ssh", "-F", str(self.ssh_config), "raspberrypi", command],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def inside(self, command: str) -> str:
        """What a command as root prints."""
        done = self.ssh(f"sudo -n sh -c {shlex.quote(command)}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait_for(self, command: str, timeout_s: float) -> str:
        """What a command prints, once it succeeds."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                done = self.ssh(f"sudo -n sh -c {shlex.quote(command)}", timeout_s=60)
                if done.returncode == 0:
                    return done.stdout
                said = done.stderr
            except subprocess.TimeoutExpired:
                said = "no answer"
            assert self._process is None or self._process.poll() is None, f"it went off; {self.console()}"
            assert time.monotonic() < deadline, f"{command}: {said}; {self.console()}"
            time.sleep(2)

    def console(self) -> str:
        """The last it said there."""
        return (self._work / "console.log").read_text(errors="replace")[-3000:]


@contextmanager
def on(machine: Machine) -> Iterator[Machine]:
    """The machine, on for as long as the block."""
    machine.start()
    try:
        yield machine
    finally:
        machine.cut_power()
