"""Cards prepared on the desktop: images with a real FAT boot partition, mounted partitions, block devices."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.provisioning.sd_card.disks import Disk, choose, parsed, write
from deploy.provisioning.sd_card.first_boot_config import System, Wifi, detect, first_boot_files, psk
from edge_agent.errors import ConfigError, DeviceError

from ..conftest import NAMESPACE, Ran, Run
from ..support.bundles import new_key
from ..support.card_image import BOOKWORM, BOOT_START, ROOT_BYTES, TRIXIE, boot_files, make_image

pytestmark = pytest.mark.timeout(300)
PASSWORD = "correct horse battery"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPstp you@desk"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_key(tmp_path_factory.mktemp("key") / "id")


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    (tmp_path / "mqtt.txt").write_text("broker's password\n")
    path = tmp_path / "agent.yaml"
    mqtt = {"host": "broker.local", "username": "porch", "password_file": "mqtt.txt"}
    path.write_text(yaml.safe_dump({"cameras": {"door": {"source": 0}}, "mqtt": mqtt}))
    return path


Image = Callable[..., Ran]


@pytest.fixture
def image(edgeloop: Run, settings: Path) -> Image:
    """`edgeloop deploy image ...`."""

    def run(*arguments: object, **environment: str) -> Ran:
        return edgeloop("deploy", "image", *arguments, "--config", settings, **environment)

    return run


@pytest.mark.long
@pytest.mark.needs("mtools", "index", "ssh-keygen")
def test_an_image_of_bookworm_becomes_a_card_that_sets_itself_up(
    image: Image, key: Path, bundle_file: Path, tmp_path: Path
) -> None:
    plain = make_image(tmp_path / "raspios.img", BOOKWORM)
    packed = tmp_path / "raspios.img.xz"
    packed.write_bytes(lzma.compress(plain.read_bytes(), preset=0))
    before, out = packed.read_bytes(), tmp_path / "porch.img"
    options = ("--hostname", "porch", "--wifi", "café", "--wifi-country", "gb", "--timezone", "Europe/London")
    ran = image(
        packed,
        *("--out", out, "--bundle", bundle_file, "--ssh-key", key.with_suffix(".pub"), *options),
        EDGELOOP_WIFI_PASSWORD=PASSWORD,
    )
    assert (ran.code, ran.err) == (0, "no --trust KEY.pub: the device accepts unsigned bundles\n")
    assert f"{out}: 0.19 GB written and verified; Bookworm, " in ran.out
    assert packed.read_bytes() == before
    assert out.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("*.part"))
    made, was = out.read_bytes(), plain.read_bytes()
    assert (made[:BOOT_START], made[-ROOT_BYTES:], len(made)) == (was[:BOOT_START], was[-ROOT_BYTES:], len(was))
    # Neither the password of the network, nor a word of the owner's private key.
    assert PASSWORD.encode() not in made

    boot = boot_files(out, tmp_path)
    assert {name: (boot / name).read_text() for name in ("config.txt", "issue.txt", "kernel8.img")} == {
        name: BOOKWORM[name] for name in ("config.txt", "issue.txt", "kernel8.img")
    }
    cmdline = (boot / "cmdline.txt").read_text()
    assert cmdline.startswith(BOOKWORM["cmdline.txt"].strip())
    assert cmdline.count("\n") == 1
    assert " cfg80211.ieee80211_regdom=GB " in cmdline
    assert " systemd.run=/boot/firmware/firstrun.sh " in cmdline
    assert subprocess.run(["sh", "-n", str(boot / "firstrun.sh")], check=False).returncode == 0
    asked = json.loads((boot / "edgeloop/system.json").read_text())
    assert (asked["hostname"], asked["user"], asked["timezone"]) == ("porch", "pi", "Europe/London")
    assert asked["keys"] == [key.with_suffix(".pub").read_text().strip()]
    assert asked["wifi"] == {"ssid": "café", "psk": psk("café", PASSWORD)}
    kit = json.loads((boot / "edgeloop/kit.json").read_text())
    assert list(kit["wheels"]) == ["3.11-aarch64"]
    assert {path.name for path in (boot / "edgeloop/wheels").iterdir()} == set(kit["wheels"]["3.11-aarch64"])
    assert kit["bundle"]["file"] == "bundle.edgeloop"
    assert (boot / "edgeloop/bundle.edgeloop").read_bytes() == bundle_file.read_bytes()
    assert yaml.safe_load((boot / "edgeloop/etc/agent.yaml").read_text())["device"] == "porch"
    assert (boot / "edgeloop/etc/mqtt_password").read_text() == "broker's password\n"

    packed.write_bytes(before[:-1_000_000])
    ran = image(packed, "--out", tmp_path / "other.img")
    assert (ran.code, "damaged or incomplete" in ran.line) == (2, True)
    plain.write_bytes(was[:-1_000_000])
    ran = image(plain, "--out", tmp_path / "other.img")
    assert (ran.code, "truncated, ends before its last partition" in ran.line) == (2, True)
    assert not list(tmp_path.glob("other.img*"))


@pytest.mark.needs("mtools", "index", "ssh-keygen")
def test_an_image_of_trixie_gets_what_cloud_init_reads(image: Image, key: Path, tmp_path: Path) -> None:
    plain = make_image(tmp_path / "raspios.img", TRIXIE)
    out = tmp_path / "barn.img"
    public = key.with_suffix(".pub")
    ran = image(
        plain,
        *("--out", out, "--ssh-key", public, "--trust", public, "--user", "ann", "--hostname", "barn"),
        *("--wifi", "7e5", "--wifi-country", "DE", "--wifi-open"),
    )
    assert ran.code == 0, ran.err
    assert "no --bundle" in ran.err
    boot = boot_files(out, tmp_path)
    assert not (boot / "firstrun.sh").exists()
    text = (boot / "user-data").read_text()
    assert text.startswith("#cloud-config\n")
    config = yaml.safe_load(text)
    assert (config["hostname"], config["manage_etc_hosts"]) == ("barn", True)
    assert config["users"][0]["name"] == "ann"
    assert config["users"][0]["ssh_authorized_keys"] == [public.read_text().strip()]
    assert config["runcmd"] == [
        ["systemctl", "enable", "--now", "ssh"],
        ["python3", "/boot/firmware/edgeloop/first_boot.py", "arrange"],
    ]
    network = yaml.safe_load((boot / "network-config").read_text())["network"]
    assert network["ethernets"]["eth0"]["dhcp4"] is True
    assert network["wifis"]["wlan0"]["access-points"] == {"7e5": {}}
    assert network["wifis"]["wlan0"]["regulatory-domain"] == "DE"
    assert " ds=nocloud;i=edgeloop-" in (boot / "cmdline.txt").read_text()
    kit = json.loads((boot / "edgeloop/kit.json").read_text())
    assert list(kit["wheels"]) == ["3.13-aarch64"]
    assert public.read_text().split()[1] in (boot / "edgeloop/etc/allowed_signers").read_text()


@pytest.mark.needs("index")
def test_a_card_that_imager_customised_keeps_that_and_may_be_prepared_again(image: Image, tmp_path: Path) -> None:
    boot = tmp_path / "bootfs"
    boot.mkdir()
    for name, text in BOOKWORM.items():
        (boot / name).write_text(text)
    imagers = "#!/bin/bash\nset +e\nrm -f /boot/firstrun.sh\nexit 0\n"
    (boot / "firstrun.sh").write_text(imagers)
    theirs = " systemd.run=/boot/firstrun.sh systemd.run_success_action=reboot systemd.unit=kernel-command-line.target"
    (boot / "cmdline.txt").write_text(BOOKWORM["cmdline.txt"].strip() + theirs + "\n")
    for _ in range(2):
        ran = image(boot)
        assert ran.code == 0, ran.err
        assert "no --ssh-key" in ran.err
        assert (boot / "firstrun.before.sh").read_text() == imagers
        cmdline = (boot / "cmdline.txt").read_text()
        assert cmdline.count("systemd.run=") == cmdline.count("systemd.unit=") == 1
        assert "systemd.run=/boot/firmware/firstrun.sh" in cmdline
        assert json.loads((boot / "edgeloop/system.json").read_text())["user"] is None
        assert not list(boot.rglob("*.part"))


def test_what_a_user_set_for_cloud_init_is_kept() -> None:
    theirs = {"users": [{"name": "bob"}, {"name": "pi", "groups": "x"}], "runcmd": ["echo hi"], "locale": "de_DE"}
    there = {
        "cmdline.txt": b"rootwait ds=nocloud;i=rpi-imager-1 quiet\n",
        "user-data": b"#cloud-config\n" + yaml.safe_dump(theirs).encode(),
    }
    for _ in range(2):
        files = first_boot_files(System(keys=(KEY,)), "trixie", there)
        there |= files
    config = yaml.safe_load(files["user-data"])
    assert config["locale"] == "de_DE"
    assert [user["name"] for user in config["users"]] == ["bob", "pi"]
    assert config["users"][1]["ssh_authorized_keys"] == [KEY]
    assert config["runcmd"][0] == "echo hi"
    assert len(config["runcmd"]) == 3
    # A new instance, or cloud-init would think that it has done all this before.
    assert files["cmdline.txt"].startswith(b"rootwait quiet ds=nocloud;i=edgeloop-")
    with pytest.raises(ConfigError, match="user-data on the boot partition is not YAML"):
        first_boot_files(System(), "trixie", {**there, "user-data": b"{"})
    with pytest.raises(ConfigError, match=r"cmdline\.txt is not one line"):
        first_boot_files(System(), "bookworm", {"cmdline.txt": b""})


def test_a_user_of_the_same_name_keeps_password_and_keys() -> None:
    imagers = {
        "name": "pi",
        "groups": "users,sudo",
        "shell": "/bin/bash",
        "lock_passwd": False,
        "passwd": "$5$made$by-imager",
        "ssh_authorized_keys": ["ssh-ed25519 AAAAlaptop owner"],
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
    }
    there = {"cmdline.txt": b"rootwait\n", "user-data": yaml.safe_dump({"users": [imagers, "default"]}).encode()}
    for _ in range(2):
        there |= first_boot_files(System(keys=(KEY,)), "trixie", there)
    users = yaml.safe_load(there["user-data"])["users"]
    keys = ["ssh-ed25519 AAAAlaptop owner", KEY]
    assert users == ["default", imagers | {"ssh_authorized_keys": keys}]

    there["user-data"] = yaml.safe_dump({"users": ["default", "pi"]}).encode()  # only a name
    config = yaml.safe_load(first_boot_files(System(keys=(KEY,)), "trixie", there)["user-data"])
    assert [user if isinstance(user, str) else user["name"] for user in config["users"]] == ["default", "pi"]
    assert config["users"][1]["lock_passwd"] is True


@pytest.mark.parametrize("around", [True, False])
def test_a_network_config_stays_as_it_is_written(*, around: bool) -> None:
    theirs: dict[str, Any] = {"version": 2, "ethernets": {"eth0": {"addresses": ["192.168.1.7/24"]}}}
    text = yaml.safe_dump({"network": theirs} if around else theirs).encode()
    there = {"cmdline.txt": b"rootwait\n", "network-config": text}
    files = first_boot_files(System(wifi=Wifi("home", "0" * 64, "GB")), "trixie", there)
    config = yaml.safe_load(files["network-config"])
    inner = config["network"] if around else config
    assert set(inner) == {"version", "ethernets", "wifis"}
    assert inner["ethernets"] == theirs["ethernets"]
    assert inner["wifis"]["wlan0"]["access-points"] == {"home": {"password": "0" * 64}}
    there["network-config"] = b"version: 1\nconfig: []\n"
    with pytest.raises(ConfigError, match="version 1, expected 2"):
        first_boot_files(System(wifi=Wifi("home", None, "GB")), "trixie", there)


def test_the_key_of_a_network_is_the_one_of_the_standard() -> None:
    # IEEE 802.11i, annex H.4, test cases 1 and 2.
    assert psk("IEEE", "password") == "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e"
    assert psk("ThisIsASSID", "ThisIsAPassword") == "0dc0d6eb90555ed6419756b9a15ec3e3209b63df707dd508d14581f8982721af"
    assert psk("any", "AB" * 32) == "ab" * 32
    for wrong in ("short", "x" * 64, "umlaut äöü", "new\nline!"):
        with pytest.raises(ConfigError, match="8 to 63 ASCII"):
            psk("IEEE", wrong)


@pytest.mark.parametrize(
    ("system", "says"),
    [
        (System(hostname="Porch"), "is not a host name"),
        (System(hostname="a;reboot"), "is not a host name"),
        (System(user="root"), "cannot be the login user"),
        (System(user="edgeloop"), "cannot be the login user"),
        (System(timezone="../../etc/passwd"), "is not a time zone"),
        (System(wifi=Wifi("x" * 33, None, "GB")), "is not the name of a Wi-Fi network"),
        (System(wifi=Wifi("home", None, "GBR")), "is not a country code"),
    ],
)
def test_what_no_system_takes_is_refused(system: System, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        system.check()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"cmdline.txt": None}, "not a boot partition of Raspberry Pi OS"),
        ({"kernel7l.img": "kernel"}, "a 32-bit system"),
        ({"kernel8.img": None, "kernel_2712.img": None}, "a 32-bit system"),
        ({"issue.txt": "Raspberry Pi reference 2023-05-03\n"}, "of 2023-05-03 is too old; use Bookworm"),
    ],
)
def test_another_system_is_named_for_what_it_is(changed: dict[str, str | None], says: str) -> None:
    files = {name: text for name, text in {**BOOKWORM, **changed}.items() if text is not None}
    with pytest.raises(ConfigError, match=says):
        detect(set(files), files["issue.txt"].encode(), "card")


@pytest.mark.long
@pytest.mark.needs("mtools", "index")
def test_what_is_no_image_is_refused_and_leaves_nothing(image: Image, settings: Path, tmp_path: Path) -> None:
    whole = make_image(tmp_path / "whole.img", BOOKWORM, boot_bytes=34 * 2**20)
    data = whole.read_bytes()
    packed = lzma.compress(data, preset=0)
    bad = {
        "text.img": (b"not an image\n" * 100, "not an SD card image"),
        "empty.img": (b"", "not an SD card image"),
        "half.img": (data[: BOOT_START + 2**20], "truncated, ends within its boot partition; download it again"),
        "half.img.xz": (packed[:3000], "damaged or incomplete"),
        "it.zip": (b"PK\x03\x04" + bytes(1000), "a zip archive; unpack it"),
        "gpt.img": (data[:450] + b"\xee" + data[451:], "does not begin with a FAT boot partition"),
        "nofat.img": (data[:BOOT_START] + bytes(len(data) - BOOT_START), "its boot partition cannot be used"),
        "full.img": (data, "MB are needed on its boot partition, 3"),
    }
    out = tmp_path / "out.img"
    for name, (content, says) in bad.items():
        (tmp_path / name).write_bytes(content)
        ran = image(tmp_path / name, "--out", out)
        assert (ran.code, says in ran.line) == (2, True), (name, ran.err)
        assert not out.exists()
        assert not list(tmp_path.glob("*.part"))
    assert "no such file" in image(tmp_path / "nothing.img", "--out", out).line
    assert "not a boot partition of Raspberry Pi OS" in image(settings.parent).line
    out.write_text("mine")
    assert "already exists" in image(whole, "--out", out).line
    assert out.read_text() == "mine"


@pytest.mark.slow
@pytest.mark.needs("ssh-keygen")
def test_options_that_do_not_go_together_are_refused(image: Image, key: Path, tmp_path: Path) -> None:
    source = tmp_path / "raspios.img"
    source.touch()
    out = ("--out", tmp_path / "out.img")
    assert "give --out FILE or --write DEVICE; " in image(source).line
    assert "--wifi also needs --wifi-country" in image(source, *out, "--wifi", "home").line
    assert "need --wifi SSID" in image(source, *out, "--wifi-open").line
    assert "is prepared in place" in image(tmp_path, *out).line
    assert "expected a public key" in image(source, *out, "--ssh-key", key).line
    ran = image(source, *out, "--wifi", "home", "--wifi-country", "GB", EDGELOOP_WIFI_PASSWORD="short")
    assert "8 to 63 ASCII" in ran.line


# --- disks ---


def entry(path: str, **other: object) -> dict[str, object]:
    empty = {"size": 31914983424, "type": "disk", "rm": True, "hotplug": True, "ro": False, "vendor": "Generic "}
    return {"path": path, **empty, "model": "SD/MMC", "mountpoints": [None], **other}


LISTING = json.dumps(
    {
        "blockdevices": [
            entry(
                "/dev/nvme0n1",
                rm=False,
                hotplug=False,
                children=[entry("/dev/nvme0n1p2", type="part", mountpoints=["/"])],
            ),
            entry("/dev/sda", rm=False, hotplug=False),
            entry("/dev/sdb", children=[entry("/dev/sdb1", type="part")]),
            entry("/dev/sdc", children=[entry("/dev/sdc1", type="part", mountpoints=["/media/you/bootfs"])]),
            entry(
                "/dev/sdd",
                children=[
                    entry(
                        "/dev/sdd1", type="part", children=[entry("/dev/mapper/luks", type="crypt", mountpoints=["/"])]
                    )
                ],
            ),
            entry("/dev/sde", ro=True),
            entry("/dev/sdf", size=0),
            entry("/dev/sr0", type="rom"),
            entry("/dev/sdg", children=[entry("/dev/sdg2", type="part", mountpoints=["[SWAP]"])]),
        ]
    }
)


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("/dev/nvme0n1", "is not removable"),
        ("/dev/sda", "is not removable"),
        ("/dev/sdb1", "is not a whole disk"),
        ("/dev/sdc", r"is in use as /media/you/bootfs; unmount it first"),
        ("/dev/sdd", r"is in use as crypt /dev/mapper/luks, /"),
        ("/dev/sde", "is read-only"),
        ("/dev/sdf", "is not a whole disk"),
        ("/dev/sdg", r"is in use as \[SWAP\]"),
        ("/dev/sr0", "is not a whole disk"),
        ("/etc/passwd", "is not a whole disk"),
    ],
)
def test_only_a_removable_disk_that_nobody_uses_is_written_to(device: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        choose(device, parsed(LISTING))
    assert str(caught.value).endswith("available cards: /dev/sdb (Generic SD/MMC, 31.9 GB)")


def test_the_one_card_that_is_free_is_taken(tmp_path: Path) -> None:
    link = tmp_path / "card"
    link.symlink_to("/dev/sdb")
    assert choose(str(link), parsed(LISTING)) == Disk("/dev/sdb", 31914983424, True, False, (), "Generic SD/MMC")
    with pytest.raises(ConfigError, match="no card is available; insert one"):
        choose("/dev/sdb", [])


@pytest.mark.needs("mtools", "lsblk")
def test_a_disk_of_this_machine_is_never_written_to(image: Image, tmp_path: Path) -> None:
    source = make_image(tmp_path / "raspios.img", BOOKWORM, boot_bytes=34 * 2**20)
    listing = subprocess.run(["lsblk", "-dpno", "PATH,TYPE"], capture_output=True, text=True, check=True).stdout
    own = [line.split()[0] for line in listing.splitlines() if line.endswith("disk")]
    for device in own or ["/dev/null"]:
        ran = image(source, "--write", device, "--yes")
        assert ran.code == 2
        assert "is not removable" in ran.line or "is in use" in ran.line or "is not a whole disk" in ran.line


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    def blocks() -> Iterator[bytes]:
        yield b"a" * 5_000_000
        # As a card does whose cells are worn out.
        with open(tmp_path / "card", "r+b") as file:
            file.seek(4_999_999)
            file.write(b"b")

    with pytest.raises(DeviceError, match="verification failed"):
        write(tmp_path / "card", blocks(), needed=5_000_000)


@contextmanager
def loop_device(backing: Path, size: int) -> Iterator[Path]:
    with open(backing, "wb") as file:
        file.truncate(size)
    told = subprocess.run(["losetup", "--find", "--show", str(backing)], capture_output=True, text=True, check=True)
    device = Path(told.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)


@pytest.mark.needs("loop")
def test_a_block_device_is_written_whole_or_the_reason_said(tmp_path: Path) -> None:
    data = [bytes([number]) * 2**20 for number in range(20)]
    with loop_device(tmp_path / "card", 32 * 2**20) as device:
        seen: list[tuple[int, int]] = []
        assert write(device, data, needed=20 * 2**20, verifying=lambda *told: seen.append(told)) == 20 * 2**20
        assert seen[-1] == (20 * 2**20, 20 * 2**20)
        assert (tmp_path / "card").read_bytes()[: 20 * 2**20] == b"".join(data)
        with pytest.raises(DeviceError, match=r"too small: 0\.03 GB, 0\.04 GB are needed"):
            write(device, data, needed=40 * 2**20)
        with pytest.raises(DeviceError, match="too small for the image"):
            write(device, [*data, *data], needed=20 * 2**20)
        subprocess.run(["/usr/sbin/mkfs.ext4", "-q", str(device)], check=True)
        folder = tmp_path / "mounted"
        folder.mkdir()
        subprocess.run(["mount", str(device), str(folder)], check=True)
        try:
            with pytest.raises(ConfigError, match="it is in use; unmount it first"):
                write(device, data, needed=1)
        finally:
            subprocess.run(["umount", str(folder)], check=True)


FAILING = """
import subprocess, sys
from pathlib import Path
from deploy.provisioning.sd_card.disks import write
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", sys.argv[1]], check=True)
backing = Path(sys.argv[1]) / "card"
with open(backing, "wb") as file:
    file.truncate(64 * 2**20)
told = subprocess.run(["losetup", "--find", "--show", backing], capture_output=True, text=True, check=True)
device = told.stdout.strip()
try:
    write(Path(device), [bytes([7]) * 2**20] * 40, needed=2**20)
except Exception as error:
    print(f"{type(error).__name__}: {error}")
finally:
    subprocess.run(["losetup", "--detach", device], check=True)
"""


@pytest.mark.needs("loop", "namespace")
def test_a_card_that_fails_while_it_is_written_is_said_to_be_of_no_use(tmp_path: Path) -> None:
    """A device whose writes stop arriving: its backing disk is full, which the kernel reports as the card's failure."""

    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-c", FAILING, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "DeviceError: /dev/loop" in done.stdout, done.stderr
    assert "the card was removed or failed during writing" in done.stdout or "too small" in done.stdout


@pytest.mark.needs("mtools", "namespace")
def test_room_for_a_while_is_looked_for_first(settings: Path, tmp_path: Path) -> None:
    source, small = make_image(tmp_path / "raspios.img", BOOKWORM, boot_bytes=34 * 2**20), tmp_path / "small"
    small.mkdir()
    script = 'mount -t tmpfs -o size=10m tmpfs "$0" && TMPDIR="$0" exec "$@"'
    command = [
        sys.executable,
        "-m",
        "edge_agent.cli",
        "deploy",
        "image",
        str(source),
        "--out",
        str(tmp_path / "out.img"),
    ]
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", script, str(small), *command, "--config", str(settings)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"{small}: 40 MB are needed for temporary files, 10 MB are free; set TMPDIR to another folder" in done.stderr
