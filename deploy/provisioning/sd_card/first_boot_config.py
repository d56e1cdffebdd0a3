"""Configures the first boot: sets the host name, login, Wi-Fi and time zone, and starts provisioning.

Raspberry Pi OS Trixie reads cloud-init files from the boot partition, and Bookworm runs the script `firstrun.sh` on it.
Both start `first_boot.py` of the provisioning payload. The payload stays on the card until that script has finished.
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
"""Groups of which the first user of Raspberry Pi OS is a member."""
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
    """A Wi-Fi network. ``psk`` is its key, 64 hexadecimal digits, or None if the network is open."""

    ssid: str
    psk: str | None
    country: str


@dataclass(frozen=True)
class System:
    """Settings of the operating system. A setting that is None stays as it is in the image.

    Attributes:
        hostname: host name.
        user: user who can log in with ``keys`` and use sudo.
        keys: lines of authorized_keys.
        wifi: Wi-Fi network to join.
        timezone: name of the time zone, as in /usr/share/zoneinfo.
    """

    hostname: str | None = None
    user: str = "pi"
    keys: Sequence[str] = ()
    wifi: Wifi | None = None
    timezone: str | None = None

    def check(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: a setting is invalid. The message lists all problems.
        """
        wrong = []
        if self.hostname is not None and not _HOSTNAME.match(self.hostname):
            wrong.append(
                f"{self.hostname!r} is not a host name; expected up to 63 lowercase letters, digits and hyphens"
            )
        if not _USER.match(self.user) or self.user in ("root", "edgeloop"):
            wrong.append(f"{self.user!r} cannot be the login user; expected a name such as pi, not root or edgeloop")
        if self.timezone is not None and not _ZONE.match(self.timezone):
            wrong.append(f"{self.timezone!r} is not a time zone; expected one such as Europe/London")
        if self.wifi is not None and not 1 <= len(self.wifi.ssid.encode()) <= 32:
            wrong.append(f"{self.wifi.ssid!r} is not the name of a Wi-Fi network; expected 1 to 32 bytes")
        if self.wifi is not None and not _COUNTRY.match(self.wifi.country):
            wrong.append(
                f"{self.wifi.country!r} is not a country code; --wifi-country takes two letters such as GB, without "
                "which the radio stays off"
            )
        if wrong:
            raise ConfigError("; ".join(wrong))


def psk(ssid: str, passphrase: str) -> str:
    """Derive the key of a WPA network from its passphrase, so that the card does not contain the passphrase itself.

    The key has 64 hexadecimal digits and is computed with PBKDF2, SHA-1 and 4096 iterations (IEEE 802.11i, annex H.4).
    A passphrase that is already such a key is returned in lower case.

    Raises:
        ConfigError: the passphrase is invalid.
    """
    if _PSK.match(passphrase):
        return passphrase.lower()
    if not 8 <= len(passphrase) <= 63 or not passphrase.isascii() or not passphrase.isprintable():
        raise ConfigError("a Wi-Fi password has 8 to 63 ASCII characters, or is a key of 64 hexadecimal digits")
    return hashlib.pbkdf2_hmac("sha1", passphrase.encode(), ssid.encode(), 4096, 32).hex()


def detect(names: set[str], issue: bytes | None, place: str) -> Codename:
    """Detect the release of Raspberry Pi OS from its boot partition.

    Args:
        names: names of files and folders at the top of the partition.
        issue: content of ``issue.txt``.
        place: path of the partition or image, as shown in messages.

    Raises:
        ConfigError: the partition belongs to another system, to a 32-bit system or to a release that is too old.
    """
    if not {"cmdline.txt", "config.txt"} <= names:
        raise ConfigError(f"{place}: not a boot partition of Raspberry Pi OS: it has no cmdline.txt and config.txt")
    if names & {"kernel7.img", "kernel7l.img"} or not names & {"kernel8.img", "kernel_2712.img"}:
        raise ConfigError(f"{place}: a 32-bit system; use the 64-bit Raspberry Pi OS")
    # Only Trixie's images use cloud-init.
    if names & {"user-data", "network-config"}:
        return "trixie"
    made = re.search(rb"reference (20\d\d-\d\d-\d\d)", issue or b"")
    if made and made[1] < b"2023-10-10":
        raise ConfigError(f"{place}: Raspberry Pi OS of {made[1].decode()} is too old; use Bookworm (10/2023) or later")
    return "bookworm"


def first_boot_files(system: System, codename: Codename, existing: Mapping[str, bytes | None]) -> dict[str, bytes]:
    """Return the files that a boot partition needs in addition to the provisioning payload.

    Args:
        system: settings of the operating system.
        codename: release of the system.
        existing: current contents of cmdline.txt, firstrun.sh, user-data and network-config.

    Raises:
        ConfigError: the existing files cannot be used.
    """
    files = _cloud_init(system, existing) if codename == "trixie" else _firstrun(system, existing)
    cmdline = (existing.get("cmdline.txt") or b"").decode("utf-8", "replace").strip()
    if not cmdline or "\n" in cmdline:
        raise ConfigError("cmdline.txt is not one line; write the image again")
    if system.wifi is not None:
        cmdline = _without(cmdline, "cfg80211.ieee80211_regdom=") + f" cfg80211.ieee80211_regdom={system.wifi.country}"
    if codename == "trixie":
        # The data source on the kernel command line has priority; a new instance ID makes cloud-init run again.
        cmdline = _without(cmdline, "ds=nocloud") + f" ds=nocloud;i=edgeloop-{secrets.token_hex(6)}"
    else:
        cmdline = re.sub(r" systemd\.(run|run_\w+_action|unit)=\S*", "", cmdline) + _RUN
    # Last, because it starts everything else.
    return files | {"cmdline.txt": f"{cmdline}\n".encode()}


def _without(cmdline: str, prefix: str) -> str:
    return " ".join(word for word in cmdline.split() if not word.startswith(prefix))


# --- Bookworm ---


def _firstrun(system: System, existing: Mapping[str, bytes | None]) -> dict[str, bytes]:
    script = existing.get("firstrun.sh")
    files = {f"{KIT}/system.json": json.dumps(_settings(system), indent=2).encode()}
    if script is not None and _FIRST_BOOT.encode() not in script:
        # The script of Raspberry Pi Imager, which applies the settings chosen there.
        files[_BEFORE] = script
    return files | {"firstrun.sh": _SCRIPT.encode()}


def _settings(system: System) -> dict[str, Any]:
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
# Written by edgeloop deploy image. systemd.run= on the kernel command line starts it once, before everything else.
boot={MOUNTED}
[ ! -e $boot/{_BEFORE} ] || sh $boot/{_BEFORE}
python3 {_FIRST_BOOT} system
# Even after a failure, the next boot must be a normal one.
sed -i -E 's/ systemd\\.(run|run_[a-z]+_action|unit)=[^ ]*//g' $boot/cmdline.txt
rm -f $boot/firstrun.sh $boot/{_BEFORE}
sync
"""


# --- Trixie ---


def _cloud_init(system: System, existing: Mapping[str, bytes | None]) -> dict[str, bytes]:
    config = _document(existing.get("user-data"), "user-data")
    commands = [command for command in config.get("runcmd") or [] if _FIRST_BOOT not in str(command)]
    # Not enable_ssh: only Raspberry Pi's cloud-init knows it, others reject the whole file.
    ssh = [["systemctl", "enable", "--now", "ssh"]] if system.keys else []
    config["runcmd"] = [*(one for one in commands if one not in ssh), *ssh, ["python3", _FIRST_BOOT, "arrange"]]
    if system.hostname is not None:
        config |= {"hostname": system.hostname, "manage_etc_hosts": True}
    if system.timezone is not None:
        config["timezone"] = system.timezone
    if system.keys:
        config["users"] = _with_login(config.get("users") or [], system)
    files = {"user-data": b"#cloud-config\n" + yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode()}
    if system.wifi is not None:
        files["network-config"] = _network(system.wifi, _document(existing.get("network-config"), "network-config"))
    return files


def _with_login(users: list[Any], system: System) -> list[Any]:
    """Add the login user to a list of cloud-init's users, or its keys to the user of that name who is already there.

    Raspberry Pi Imager writes the user chosen there, with a password and keys, which remain valid.
    """
    login: dict[str, Any] = {"name": system.user, "groups": GROUPS, "shell": "/bin/bash"}
    login["sudo"] = "ALL=(ALL) NOPASSWD:ALL"
    others = []
    for user in users:
        if user == system.user:
            continue
        if isinstance(user, dict) and user.get("name") == system.user:
            login |= user
        else:
            others.append(user)
    if not {"passwd", "hashed_passwd", "plain_text_passwd"} & login.keys():
        login["lock_passwd"] = True
    keys = login.get("ssh_authorized_keys") or []
    keys = [keys] if isinstance(keys, str) else keys
    login["ssh_authorized_keys"] = [*keys, *(key for key in system.keys if key not in keys)]
    return [*others, login]


def _network(wifi: Wifi, config: dict[str, Any]) -> bytes:
    point = {} if wifi.psk is None else {"password": wifi.psk}
    # cloud-init accepts this file with or without the key `network` around it, but not a mixture of both.
    if not config:
        config = {"network": {"version": 2, "ethernets": {"eth0": {"dhcp4": True, "optional": True}}}}
    inner = config.get("network", config)
    if inner.get("version", 2) != 2:
        raise ConfigError(
            f"network-config on the boot partition has version {inner['version']}, expected 2; write the image again"
        )
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
    """Parse an existing cloud-init file. It contains only comments unless Raspberry Pi Imager wrote it."""
    try:
        document = yaml.safe_load(data or b"")
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} on the boot partition is not YAML; write the image again: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict) or not isinstance(document.get("network", {}), dict):
        raise ConfigError(f"{name} on the boot partition is not a cloud-init file; write the image again")
    return document
