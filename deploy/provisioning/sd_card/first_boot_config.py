"""What a card tells its system at the first boot: host name, login, Wi-Fi, and to make itself a device.

Raspberry Pi OS Trixie reads cloud-init's files from the boot partition, Bookworm runs a `firstrun.sh` there. Both lead
to `first_boot.py` of the kit, which waits on the card until it is done.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from edge_agent.errors import ConfigError

from ...on_device.first_boot import KIT, MOUNTED

Codename = Literal["bookworm", "trixie"]
PYTHONS: dict[Codename, tuple[int, int]] = {"bookworm": (3, 11), "trixie": (3, 13)}
GROUPS = "adm,audio,cdrom,dialout,games,gpio,i2c,input,netdev,plugdev,render,spi,sudo,users,video"
"""Of the first user of Raspberry Pi OS."""
_RUN = " systemd.run=/boot/firmware/firstrun.sh systemd.run_success_action=reboot systemd.run_failure_action=reboot"
_RUN += " systemd.unit=kernel-command-line.target"
_FIRST_BOOT = f"{MOUNTED}/{KIT}/first_boot.py"
_BEFORE = "firstrun.before.sh"
_HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_USER = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
_COUNTRY = re.compile(r"[A-Z]{2}\Z")
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}\Z")
_PSK = re.compile(r"[0-9a-fA-F]{64}\Z")


@dataclass(frozen=True)
class Wifi:
    """A network to join. ``psk``: 64 hexadecimal digits; None for an open one."""

    ssid: str
    psk: str | None
    country: str


@dataclass(frozen=True)
class System:
    """What the user wants of the system; None leaves it as it is.

    Attributes:
        hostname: its name in the network.
        user: who may log in with ``keys``, and become root.
        keys: lines of authorized_keys.
        wifi: a network to join.
        timezone: as in /usr/share/zoneinfo.
    """

    hostname: str | None = None
    user: str = "pi"
    keys: Sequence[str] = ()
    wifi: Wifi | None = None
    timezone: str | None = None

    def check(self) -> None:
        """Refuse what a system would stumble over.

        Raises:
            ConfigError: with everything that is wrong.
        """
        wrong = []
        if self.hostname is not None and not _HOSTNAME.match(self.hostname):
            wrong.append(
                f"{self.hostname!r} is no host name; expected lower-case letters, digits and hyphens, at most 63"
            )
        if not _USER.match(self.user) or self.user in ("root", "edgeloop"):
            wrong.append(f"{self.user!r} cannot log in; expected a name such as pi, not root or edgeloop")
        if self.timezone is not None and not _ZONE.match(self.timezone):
            wrong.append(f"{self.timezone!r} is no time zone; expected one such as Europe/London")
        if self.wifi is not None and not 1 <= len(self.wifi.ssid.encode()) <= 32:
            wrong.append(f"{self.wifi.ssid!r} is no name of a network; expected 1 to 32 bytes")
        if self.wifi is not None and not _COUNTRY.match(self.wifi.country):
            wrong.append(
                f"{self.wifi.country!r} is no country; --wifi-country takes two letters such as GB, without which the "
                "radio stays off"
            )
        if wrong:
            raise ConfigError("; ".join(wrong))


def psk(ssid: str, passphrase: str) -> str:
    """The key of a WPA network, 64 hexadecimal digits: PBKDF2 with SHA-1, 4096 times (IEEE 802.11i, annex H.4).

    A card then does not carry the passphrase itself.

    Raises:
        ConfigError: it is no passphrase.
    """
    if _PSK.match(passphrase):
        return passphrase.lower()
    if not 8 <= len(passphrase) <= 63 or not passphrase.isascii() or not passphrase.isprintable():
        raise ConfigError("a Wi-Fi password has 8 to 63 ASCII characters, or is a key of 64 hexadecimal digits")
    return hashlib.pbkdf2_hmac("sha1", passphrase.encode(), ssid.encode(), 4096, 32).hex()


def detect(names: set[str], issue: bytes | None, place: str) -> Codename:
    """Which Raspberry Pi OS a boot partition belongs to.

    Args:
        names: of what is at its top.
        issue: its ``issue.txt``.
        place: where it is, for messages.

    Raises:
        ConfigError: it is another system, a 32-bit or too old one.
    """
    if not {"cmdline.txt", "config.txt"} <= names:
        raise ConfigError(f"{place}: no boot partition of Raspberry Pi OS: it has no cmdline.txt and config.txt")
    if names & {"kernel7.img", "kernel7l.img"} or not names & {"kernel8.img", "kernel_2712.img"}:
        raise ConfigError(f"{place}: a 32-bit system; take the 64-bit Raspberry Pi OS")
    # Only Trixie's images are made for cloud-init.
    if names & {"user-data", "network-config"}:
        return "trixie"
    made = re.search(rb"reference (20\d\d-\d\d-\d\d)", issue or b"")
    if made and made[1] < b"2023-10-10":
        raise ConfigError(f"{place}: a Raspberry Pi OS of {made[1].decode()}; take Bookworm (October 2023) or later")
    return "bookworm"


def first_boot_files(system: System, codename: Codename, there: Mapping[str, bytes | None]) -> dict[str, bytes]:
    """What a boot partition needs beside the kit.

    Args:
        system: what the user wants.
        codename: which system it is.
        there: cmdline.txt, firstrun.sh, user-data and network-config as they are.

    Raises:
        ConfigError: what is there cannot be kept.
    """
    files = _cloud_init(system, there) if codename == "trixie" else _firstrun(system, there)
    cmdline = (there.get("cmdline.txt") or b"").decode("utf-8", "replace").strip()
    if not cmdline or "\n" in cmdline:
        raise ConfigError("cmdline.txt is not one line; write the image anew")
    if system.wifi is not None:
        cmdline = _without(cmdline, "cfg80211.ieee80211_regdom=") + f" cfg80211.ieee80211_regdom={system.wifi.country}"
    if codename == "trixie":
        # Here, for where it is given here cloud-init heeds no other; a new one, so that it sets things up again.
        cmdline = _without(cmdline, "ds=nocloud") + f" ds=nocloud;i=edgeloop-{secrets.token_hex(6)}"
    else:
        cmdline = re.sub(r" systemd\.(run|run_\w+_action|unit)=\S*", "", cmdline) + _RUN
    # Last: it is what makes the rest count.
    return files | {"cmdline.txt": f"{cmdline}\n".encode()}


def _without(cmdline: str, beginning: str) -> str:
    return " ".join(word for word in cmdline.split() if not word.startswith(beginning))


# --- Bookworm ---


def _firstrun(system: System, there: Mapping[str, bytes | None]) -> dict[str, bytes]:
    script = there.get("firstrun.sh")
    files = {f"{KIT}/system.json": json.dumps(_asked(system), indent=2).encode()}
    if script is not None and _FIRST_BOOT.encode() not in script:
        # Raspberry Pi Imager's, which sets up what its user chose there.
        files[_BEFORE] = script
    return files | {"firstrun.sh": _SCRIPT.encode()}


def _asked(system: System) -> dict[str, Any]:
    wifi = system.wifi
    return {
        "hostname": system.hostname,
        "user": system.user if system.keys else None,
        "keys": list(system.keys),
        "groups": GROUPS,
        "wifi": None if wifi is None else {"ssid": wifi.ssid, "psk": wifi.psk},
        "timezone": system.timezone,
    }


_SCRIPT = f"""\
#!/bin/sh
# By edgeloop deploy image. systemd.run= on the kernel's command line starts it, once, before everything else.
boot={MOUNTED}
[ ! -e $boot/{_BEFORE} ] || sh $boot/{_BEFORE}
python3 {_FIRST_BOOT} system
# Whatever came of it: another boot must be an ordinary one.
sed -i -E 's/ systemd\\.(run|run_[a-z]+_action|unit)=[^ ]*//g' $boot/cmdline.txt
rm -f $boot/firstrun.sh $boot/{_BEFORE}
sync
"""


# --- Trixie ---


def _cloud_init(system: System, there: Mapping[str, bytes | None]) -> dict[str, bytes]:
    config = _document(there.get("user-data"), "user-data")
    commands = [command for command in config.get("runcmd") or [] if _FIRST_BOOT not in str(command)]
    # Not enable_ssh, which only Raspberry Pi's cloud-init knows: another refuses the whole file for it.
    ssh = [["systemctl", "enable", "--now", "ssh"]] if system.keys else []
    config["runcmd"] = [*(one for one in commands if one not in ssh), *ssh, ["python3", _FIRST_BOOT, "arrange"]]
    if system.hostname is not None:
        config |= {"hostname": system.hostname, "manage_etc_hosts": True}
    if system.timezone is not None:
        config["timezone"] = system.timezone
    if system.keys:
        user = {
            "name": system.user,
            "groups": GROUPS,
            "shell": "/bin/bash",
            "lock_passwd": True,
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
            "ssh_authorized_keys": list(system.keys),
        }
        others = [
            one for one in config.get("users") or [] if not isinstance(one, dict) or one.get("name") != system.user
        ]
        config["users"] = [*others, user]
    files = {"user-data": b"#cloud-config\n" + yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()}
    if system.wifi is not None:
        files["network-config"] = _network(system.wifi, _document(there.get("network-config"), "network-config"))
    return files


def _network(wifi: Wifi, config: dict[str, Any]) -> bytes:
    point = {} if wifi.psk is None else {"password": wifi.psk}
    inner = config.setdefault("network", {"version": 2, "ethernets": {"eth0": {"dhcp4": True, "optional": True}}})
    inner["wifis"] = {
        "wlan0": {
            "dhcp4": True,
            "optional": True,
            "regulatory-domain": wifi.country,
            "access-points": {wifi.ssid: point},
        }
    }
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()


def _document(data: bytes | None, name: str) -> dict[str, Any]:
    """A file of cloud-init as it is; mostly comments, or what Raspberry Pi Imager wrote."""
    try:
        document = yaml.safe_load(data or b"")
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} on the boot partition is not YAML; write the image anew: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict) or not isinstance(document.get("network", {}), dict):
        raise ConfigError(f"{name} on the boot partition is not what cloud-init takes; write the image anew")
    return document
