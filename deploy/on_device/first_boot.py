"""The first boot of a card that `edgeloop deploy image` prepared.

    python3 first_boot.py system       apply host name, login, Wi-Fi and time zone, then `arrange` (Bookworm)
    python3 first_boot.py arrange      install the service that runs `provision` (Trixie, after cloud-init)
    python3 first_boot.py provision    run setup.py, then delete the payload from the boot partition

The script is part of the provisioning payload on the boot partition. Each command is repeated if a power cut interrupts
it. Standard library only, as in `setup.py`. The log is `edgeloop-setup.txt` on the boot partition, which any computer
can read.
"""

from __future__ import annotations

import glob
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import time
import traceback
import uuid
from typing import Any, Callable

MOUNTED = "/boot/firmware"
KIT = "edgeloop"
HERE = os.path.dirname(os.path.abspath(__file__))
SERVICE = "edgeloop-first-boot.service"
UNITS = "/etc/systemd/system"
LOG = "edgeloop-setup.txt"
_USERCONF = "/usr/lib/userconf-pi/userconf"
_CONNECTION = "/etc/NetworkManager/system-connections/edgeloop.nmconnection"


def system() -> None:
    """Apply the settings of the system; a failed one is logged and the others are still applied."""
    with open(f"{HERE}/system.json", encoding="utf-8") as file:
        settings = json.load(file)
    for name, do in _STEPS:
        if not settings.get(name):
            continue
        try:
            do(settings)
            _log(f"{name}: done")
        except (OSError, subprocess.CalledProcessError, KeyError) as error:
            _log(f"{name}: {_reason(error)}")
    arrange()


def arrange() -> None:
    """Install the service, and start it if systemd is already running."""
    wants = f"{UNITS}/multi-user.target.wants"
    os.makedirs(wants, exist_ok=True)
    shutil.copy(f"{HERE}/{SERVICE}", f"{UNITS}/{SERVICE}")
    if not os.path.lexists(f"{wants}/{SERVICE}"):
        os.symlink(f"{UNITS}/{SERVICE}", f"{wants}/{SERVICE}")
    os.sync()
    if os.path.isdir("/run/systemd/system") and sys.argv[1:] == ["arrange"]:
        _run(["systemctl", "daemon-reload"])
        _run(["systemctl", "start", "--no-block", SERVICE])


def provision() -> int:
    """Provision this machine, then delete the payload."""
    with open(f"{HERE}/kit.json", encoding="utf-8") as file:
        made_s = json.load(file)["made_s"]
    if time.time() < made_s:
        # Most Pis have no battery-backed clock, and there may be no network time here.
        time.clock_settime(time.CLOCK_REALTIME, made_s)
        _log("the clock was behind the creation time of the card and was set to that time")
    with subprocess.Popen(
        [sys.executable, f"{HERE}/setup.py", "apply", "--kit", HERE], stdout=subprocess.PIPE, text=True
    ) as running:
        for line in running.stdout or ():
            result = json.loads(line)
            if result["text"]:
                _log(f"problem: {result['text']}" if result["state"] == "problem" else result["text"])
    if running.returncode != 0:
        _log("provisioning failed; it is tried again at each boot")
        return 1
    _log("provisioning finished")
    # The payload contains passwords and certificates, and every user can read the boot partition.
    shutil.rmtree(HERE)
    os.unlink(f"{UNITS}/multi-user.target.wants/{SERVICE}")
    os.unlink(f"{UNITS}/{SERVICE}")
    os.sync()
    return 0


# --- settings of the system ---


def _hostname(settings: dict[str, Any]) -> None:
    name = settings["hostname"]
    _write("/etc/hostname", f"{name}\n")
    try:
        with open("/etc/hosts", encoding="utf-8") as file:
            others = [line for line in file if not line.startswith("127.0.1.1")]
    except FileNotFoundError:
        others = ["127.0.0.1\tlocalhost\n"]
    _write("/etc/hosts", "".join([*others, f"127.0.1.1\t{name}\n"]))


def _login(settings: dict[str, Any]) -> None:
    name = settings["user"]
    if os.path.exists(_USERCONF) and not _first_user_has_password(but=name):
        # Renames the first user of the image and ends the first-boot prompt for a user name.
        _run([_USERCONF, name, ""])
    elif not _is_user(name):
        _run(["useradd", "--create-home", "--shell", "/bin/bash", name])
    with open("/etc/group", encoding="utf-8") as file:
        groups = {line.split(":")[0] for line in file} & set(settings["groups"].split(","))
    _run(["usermod", "--append", "--groups", ",".join(sorted(groups)), name])
    _write(f"/etc/sudoers.d/010_{name}-nopasswd", f"{name} ALL=(ALL) NOPASSWD: ALL\n", mode=0o440)
    account = pwd.getpwnam(name)
    folder = f"{account.pw_dir}/.ssh"
    os.makedirs(folder, mode=0o700, exist_ok=True)
    keys = f"{folder}/authorized_keys"
    try:
        with open(keys, encoding="utf-8") as file:
            before = file.read().splitlines()
    except FileNotFoundError:
        before = []
    lines = [*before, *(key for key in settings["keys"] if key not in before)]
    _write(keys, "".join(f"{line}\n" for line in lines), mode=0o600)
    for path in (folder, keys):
        os.chown(path, account.pw_uid, account.pw_gid)
    for unit in ("ssh.service", "sshd.service"):
        source = next((f"{at}/{unit}" for at in ("/lib/systemd/system", UNITS) if os.path.exists(f"{at}/{unit}")), None)
        wants = f"{UNITS}/multi-user.target.wants/{unit}"
        if source is not None and not os.path.lexists(wants):
            os.makedirs(os.path.dirname(wants), exist_ok=True)
            os.symlink(source, wants)


def _first_user_has_password(*, but: str) -> bool:
    """Whether the first user has another name than ``but`` and a password: someone chose both, as in the Imager."""
    try:
        first = pwd.getpwuid(1000).pw_name
    except KeyError:
        return False
    with open("/etc/shadow", encoding="utf-8") as file:
        fields = next((line.split(":") for line in file if line.startswith(f"{first}:")), [first, ""])
    return first != but and fields[1].startswith("$")


def _wifi(settings: dict[str, Any]) -> None:
    if not os.path.isdir(os.path.dirname(_CONNECTION)):
        raise FileNotFoundError(
            2, "NetworkManager, which joins Wi-Fi networks, is missing", os.path.dirname(_CONNECTION)
        )
    ssid, psk = settings["wifi"]["ssid"], settings["wifi"]["psk"]
    # As bytes, because the name can contain characters with a meaning in this format.
    ssid_bytes = "".join(f"{byte};" for byte in ssid.encode())
    security = f"[wifi-security]\nkey-mgmt=wpa-psk\npsk={psk}\n\n" if psk else ""
    _write(
        _CONNECTION,
        f"[connection]\nid=edgeloop\nuuid={uuid.uuid4()}\ntype=wifi\n\n[wifi]\nmode=infrastructure\nssid={ssid_bytes}\n\n"
        f"{security}[ipv4]\nmethod=auto\n\n[ipv6]\nmethod=auto\n",
        mode=0o600,
    )
    # The image blocks the radio until a country is set; cmdline.txt now sets it.
    for path in glob.glob("/var/lib/systemd/rfkill/*:wlan"):
        _write(path, "0\n")
    if shutil.which("rfkill"):
        _run(["rfkill", "unblock", "wifi"])


def _timezone(settings: dict[str, Any]) -> None:
    zone = f"/usr/share/zoneinfo/{settings['timezone']}"
    if not os.path.isfile(zone):
        raise FileNotFoundError(2, "no such time zone", zone)
    part = "/etc/localtime.part"
    if os.path.lexists(part):
        os.unlink(part)
    os.symlink(zone, part)
    os.replace(part, "/etc/localtime")
    _write("/etc/timezone", f"{settings['timezone']}\n")


_STEPS: tuple[tuple[str, Callable[[dict[str, Any]], None]], ...] = (
    ("hostname", _hostname),
    ("user", _login),
    ("wifi", _wifi),
    ("timezone", _timezone),
)


# --- helpers ---


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _write(path: str, text: str, *, mode: int = 0o644) -> None:
    part = f"{path}.part"
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(handle, mode)
        file.flush()
        os.fsync(handle)
    os.replace(part, path)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = (error.stderr or "").strip().splitlines()
        return f"{os.path.basename(error.cmd[0])}: {lines[-1] if lines else error.returncode}"
    return str(error)


def _log(text: str) -> None:
    """Log to the journal and to the file on the card, which can be read without a screen on the Pi."""
    print(text, flush=True)
    with open(f"{os.path.dirname(HERE)}/{LOG}", "a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {re.sub(r'[^ -~]', '?', text)}\n")
        file.flush()
        os.fsync(file.fileno())


def main() -> int:
    """Run one of the three commands."""
    verb = sys.argv[1] if len(sys.argv) == 2 else ""
    try:
        if verb == "provision":
            return provision()
        if verb == "system":
            system()
        elif verb == "arrange":
            arrange()
        else:
            print((__doc__ or "").strip(), file=sys.stderr)
            return 2
    except Exception:  # noqa: BLE001  every failure must be in the log on the card
        _log(traceback.format_exc().splitlines()[-1])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
