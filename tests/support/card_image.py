"""Images as Raspberry Pi OS's are: a master boot record, a real FAT boot partition, and a root partition."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

BOOT_START = 8192 * 512
BOOT_BYTES = 176 * 2**20
ROOT_BYTES = 3 * 2**20
CMDLINE = "console=serial0,115200 console=tty1 root=PARTUUID=c0ffee00-02 rootfstype=ext4 fsck.repair=yes rootwait"
BOOKWORM: Mapping[str, str] = {
    "cmdline.txt": f"{CMDLINE} quiet init=/usr/lib/raspberrypi-sys-mods/firstboot\n",
    "config.txt": "camera_auto_detect=1\narm_64bit=1\n",
    "issue.txt": "Raspberry Pi reference 2025-05-13\nGenerated using pi-gen, stage2\n",
    "kernel8.img": "kernel",
    "kernel_2712.img": "kernel",
}
TRIXIE: Mapping[str, str] = {
    **BOOKWORM,
    "cmdline.txt": f"{CMDLINE} resize\n",
    "issue.txt": "Raspberry Pi reference 2025-10-01\nGenerated using pi-gen, stage2\n",
    "user-data": "#cloud-config\n# nothing yet\n",
    "network-config": "network:\n  version: 2\n  ethernets:\n    eth0:\n      dhcp4: true\n      optional: true\n",
    "meta-data": "dsmode: local\ninstance_id: rpios-image\n",
}
ENVIRONMENT = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}


def make_image(path: Path, files: Mapping[str, str], *, boot_bytes: int = BOOT_BYTES, root: Path | None = None) -> Path:
    """Write an image whose boot partition holds these files.

    Args:
        path: of the image.
        files: name to text.
        boot_bytes: size of the boot partition.
        root: file with the root partition; a few random megabytes otherwise.
    """
    root_bytes = ROOT_BYTES if root is None else root.stat().st_size
    partitions = [(0x0C, BOOT_START, boot_bytes), (0x83, BOOT_START + boot_bytes, root_bytes)]
    entries = b"".join(struct.pack("<4xB3xII", kind, start // 512, size // 512) for kind, start, size in partitions)
    with open(path, "wb") as file:
        file.write(bytes(440) + b"\x00\xee\xff\xc0\x00\x00" + entries.ljust(64, b"\0") + b"\x55\xaa")
        file.seek(BOOT_START + boot_bytes)
        if root is None:
            file.write(os.urandom(ROOT_BYTES))
    boot = path.with_suffix(".fat")
    with open(boot, "wb") as file:
        file.truncate(boot_bytes)
    subprocess.run(
        ["mkfs.fat", "-F", "32", "-n", "bootfs", str(boot)], check=True, capture_output=True, env=_with_sbin()
    )
    for name, text in files.items():
        subprocess.run(["mcopy", "-i", str(boot), "-", f"::/{name}"], check=True, input=text.encode(), env=ENVIRONMENT)
    for part, start in ((boot, BOOT_START), (root, BOOT_START + boot_bytes)):
        if part is not None:
            copy = [
                "dd",
                f"if={part}",
                f"of={path}",
                "bs=1M",
                f"seek={start}",
                "oflag=seek_bytes",
                "conv=notrunc,sparse",
            ]
            subprocess.run([*copy, "status=none"], check=True)
    # Holes at its end are part of it.
    os.truncate(path, BOOT_START + boot_bytes + root_bytes)
    boot.unlink()
    return path


def offset_of_boot(image: Path) -> int:
    """Byte at which an image's first partition begins."""
    with open(image, "rb") as file:
        file.seek(446 + 8)
        (sector,) = struct.unpack("<I", file.read(4))
    return int(sector) * 512


def boot_files(image: Path, folder: Path, *, boot_bytes: int = BOOT_BYTES) -> Path:
    """What lies on an image's boot partition, whose file system must be sound."""
    boot = folder / "boot.fat"
    with open(image, "rb") as file:
        file.seek(BOOT_START)
        boot.write_bytes(file.read(boot_bytes))
    checked = subprocess.run(
        ["fsck.fat", "-n", str(boot)], capture_output=True, text=True, check=False, env=_with_sbin()
    )
    assert checked.returncode == 0, checked.stdout
    out = folder / "boot"
    out.mkdir()
    subprocess.run(["mcopy", "-s", "-n", "-i", str(boot), "::/", str(out)], check=True, env=ENVIRONMENT)
    boot.unlink()
    return out


def _with_sbin() -> dict[str, str]:
    return {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
