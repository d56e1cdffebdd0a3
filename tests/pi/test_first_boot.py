"""The first boot of a prepared card, step by step, in a Debian root: what systemd would run, run here."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deploy.on_device import setup
from deploy.provisioning.over_ssh import DeviceSpec
from deploy.provisioning.sd_card import prepare
from deploy.provisioning.sd_card.first_boot_config import GROUPS, System, Wifi
from edge_agent.store.model_store import ModelStore

from ..support.card_image import BOOKWORM
from .root import Pi, processes

pytestmark = [pytest.mark.needs("root", "index"), pytest.mark.timeout(300)]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPstp you@desk"
FIRST_BOOT = "/boot/firmware/edgeloop/first_boot.py"


@pytest.fixture
def boot(near: Pi, signed_versions: dict[str, Path], signing_key: Path, tmp_path: Path) -> Iterator[Path]:
    """A boot partition as `edgeloop deploy image` leaves it, where the system mounts it; later all of it is removed."""
    folder = near.root / "boot/firmware"
    folder.mkdir(parents=True)
    for name, text in BOOKWORM.items():
        (folder / name).write_text(text)
    (near.root / "var/lib/systemd/rfkill").mkdir(parents=True, exist_ok=True)
    (near.root / "var/lib/systemd/rfkill/platform-3f300000:wlan").write_text("1\n")
    (near.root / "etc/NetworkManager/system-connections").mkdir(parents=True)
    settings = tmp_path / "agent.yaml"
    settings.write_text(yaml.safe_dump({"cameras": {"door": {"source": "/srv/none.avi"}}, "threads": 1}))
    wanted = DeviceSpec(settings, [signing_key.with_suffix(".pub")], signed_versions["1"])
    system = System("porch", "ann", [KEY], Wifi("café;", "ab" * 32, "GB"), "Nowhere/At_All")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "MACHINE", os.uname().machine)
        prepare.prepare_mounted(folder, wanted, system, None, lambda *_told: None)
    yield folder
    inside(near, "python3", "-", "remove", given=Path(setup.__file__).read_bytes())
    for path in ("boot/firmware", "etc/NetworkManager", "home/ann"):
        shutil.rmtree(near.root / path)
    (near.root / "etc/sudoers.d/010_ann-nopasswd").unlink()
    inside(near, "userdel", "ann")


def inside(pi: Pi, *command: str, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["chroot", str(pi.root), *command], capture_output=True, check=False, timeout=200, input=given
    )


def test_a_card_makes_itself_a_device_however_often_it_is_cut(near: Pi, boot: Path) -> None:
    etc = near.root / "etc"
    wants = etc / "systemd/system/multi-user.target.wants/edgeloop-first-boot.service"
    # The script that systemd.run= names, cut and done again.
    script = (boot / "firstrun.sh").read_text()
    for _ in range(2):
        (boot / "firstrun.sh").write_text(script)
        ran = inside(near, "sh", "/boot/firmware/firstrun.sh")
        assert ran.returncode == 0, ran.stderr
        assert "systemd." not in (boot / "cmdline.txt").read_text()
        assert (boot / "cmdline.txt").read_text().endswith("cfg80211.ieee80211_regdom=GB\n")
        assert not (boot / "firstrun.sh").exists()
        assert (etc / "hostname").read_text() == "porch\n"
        assert (etc / "hosts").read_text().count("127.0.1.1\tporch\n") == 1
        keys = near.root / "home/ann/.ssh/authorized_keys"
        assert keys.read_text() == f"{KEY}\n"
        assert (keys.stat().st_mode & 0o777, keys.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert inside(near, "runuser", "-u", "ann", "--", "sudo", "-n", "true").returncode == 0
        groups = inside(near, "id", "-nG", "ann").stdout.decode().split()
        assert {"ann", "sudo", "video"} <= set(groups) <= {"ann", *GROUPS.split(",")}
        connection = etc / "NetworkManager/system-connections/edgeloop.nmconnection"
        assert connection.stat().st_mode & 0o777 == 0o600
        assert "ssid=99;97;102;195;169;59;\n" in connection.read_text()
        assert f"psk={'ab' * 32}\n" in connection.read_text()
        assert (near.root / "var/lib/systemd/rfkill/platform-3f300000:wlan").read_text() == "0\n"
        assert wants.is_symlink()
    # What cannot be done is said, and hindered nothing.
    assert "timezone: [Errno 2] no such time zone: '/usr/share/zoneinfo/Nowhere/At_All'" in log(boot)
    assert not (etc / "localtime.part").exists()

    # Half a kit, as after a power cut while the card was written, or a worn one.
    wheel = next((boot / "edgeloop/wheels").glob("click-*.whl"))
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:-1])
    ran = inside(near, "python3", FIRST_BOOT, "provision")
    assert ran.returncode == 1
    assert f"problem: {Path('/boot/firmware/edgeloop/wheels') / wheel.name} is damaged" in log(boot)
    assert wants.is_symlink()
    wheel.write_bytes(whole)

    # The power goes while packages are unpacked.
    cut = subprocess.Popen(["chroot", str(near.root), "python3", FIRST_BOOT, "provision"], stdout=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        cut.wait(4)
    for pid in set(processes(near.root)) & descendants(cut.pid):
        os.kill(pid, 9)
    cut.wait()

    ran = inside(near, "python3", FIRST_BOOT, "provision")
    assert ran.returncode == 0, ran.stdout
    assert log(boot).endswith("provisioning finished\n")
    # Nothing of it is left where everybody can read it, and nothing to do at the next boot.
    assert not (boot / "edgeloop").exists()
    assert not wants.is_symlink()
    assert not (etc / "systemd/system/edgeloop-first-boot.service").exists()
    current = ModelStore(near.root / "var/lib/edgeloop").current()
    assert current is not None
    assert (current.version, current.signer) == ("1", "owner")
    assert yaml.safe_load((etc / "edgeloop/agent.yaml").read_text())["device"] == "porch"
    assert (etc / "systemd/system/edgeloop.service").exists()


def log(boot: Path) -> str:
    return (boot / "edgeloop-setup.txt").read_text()


def descendants(pid: int) -> set[int]:
    """A process and everything it started."""
    found = {pid}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found |= descendants(int(child))
    return found
