"""Installs edgeloop on this machine or removes it. Runs as root with the system's own Python.

    python3 setup.py facts          print facts about this machine as JSON
    python3 setup.py plan           print what `apply` would change
    python3 setup.py apply          install or update; does nothing if everything is up to date
    python3 setup.py remove         remove everything

The script is part of the provisioning payload, next to `kit.json`, `wheels/`, `etc/` and `edgeloop.service`, and runs
over SSH or at the first boot of a prepared card. Standard library only and nothing newer than Python 3.7, so that it
can report that Python is too old. It prints JSON lines: {"step", "state": done | changed | would | problem | note,
"text"}.
"""

from __future__ import annotations

import argparse
import glob
import grp
import hashlib
import json
import os
import platform
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, Iterator, NamedTuple

USER = "edgeloop"
OPT, ETC, STATE = "/opt/edgeloop", "/etc/edgeloop", "/var/lib/edgeloop"
ENVS, ENV = f"{OPT}/envs", f"{OPT}/env"
COMMAND = f"{ENV}/bin/edgeloop"
SHORTCUT = "/usr/local/bin/edgeloop"
UNIT = "/etc/systemd/system/edgeloop.service"
WANTED_BY = "/etc/systemd/system/multi-user.target.wants/edgeloop.service"
GROUPS = ("video", "render", "plugdev")
"""Groups that can access cameras, their ISP and accelerators on USB."""
MACHINES = ("aarch64", "x86_64")
PYTHONS = ((3, 11), (3, 12), (3, 13))
EARLIEST = 1_761_955_200
"""2025-11-01. A clock before that date was never set, so TLS certificates would count as not yet valid."""
NEEDED_BYTES = 450 * 10**6
"""Free space for the environment (300 MB), models and captures."""
_FROM_APT = {"numpy": "python3-numpy", "cv2": "python3-opencv", "yaml": "python3-yaml"}


class RefusedError(Exception):
    """The machine cannot be set up; the message is for the user."""


class Step(NamedTuple):
    """One step: ``missing`` returns a description of what is to be done, or None if nothing is; ``do`` does it."""

    name: str
    missing: Callable[[], str | None]
    do: Callable[[], None]


def facts() -> dict[str, Any]:
    """Return facts about this machine, which the desktop needs to select packages."""
    os_release = {}
    try:
        with open("/etc/os-release", encoding="utf-8") as file:
            for line in file:
                key, _, value = line.rstrip("\n").partition("=")
                os_release[key] = value.strip('"')
    except OSError:
        pass
    return {
        "machine": _machine(),
        "python": list(sys.version_info[:2]),
        "os": os_release.get("PRETTY_NAME", platform.system()),
        "codename": os_release.get("VERSION_CODENAME", ""),
        "glibc": platform.libc_ver()[1],
        "free_bytes": shutil.disk_usage(_existing(OPT)).free,
        "clock_s": time.time(),
        "systemd": _systemd_runs(),
        "root": os.geteuid() == 0,
        "env": _linked(ENV),
        "captures": sum(1 for _ in glob.iglob(f"{STATE}/captures/*/*.json")),
        "cameras": sorted(glob.glob("/dev/video*")),
    }


def problems(found: dict[str, Any], *, now_s: float | None = None) -> list[str]:
    """Return all reasons why a machine cannot be provisioned.

    Args:
        found: `facts` of the machine.
        now_s: the correct time, if known.
    """
    reasons = []
    if found["machine"] not in MACHINES:
        system = "; use the 64-bit Raspberry Pi OS" if found["machine"] in ("armv7l", "armv6l") else ""
        reasons.append(f"its processor is {found['machine']}; expected one of {', '.join(MACHINES)}{system}")
    if tuple(found["python"]) not in PYTHONS:
        version = ".".join(map(str, found["python"]))
        reasons.append(
            f"its python3 is {version}; expected 3.11 to 3.13, which Raspberry Pi OS includes since Bookworm: flash "
            "a newer release"
        )
    if found["env"] is None and found["free_bytes"] < NEEDED_BYTES:
        reasons.append(
            f"{found['free_bytes'] / 1e6:.0f} MB are free in {OPT}; {NEEDED_BYTES / 1e6:.0f} MB are needed: free space"
        )
    if found["clock_s"] < EARLIEST:
        when = time.strftime("%Y-%m-%d", time.gmtime(found["clock_s"]))
        reasons.append(f"its clock shows {when}; set it with: sudo date -s @{now_s or time.time():.0f}")
    return reasons


def steps(kit: str, about: dict[str, Any]) -> Iterator[Step]:
    """Yield the steps of the installation in order."""
    yield Step("user", _user_missing, _make_user)
    for path, mode, group in ((OPT, 0o755, "root"), (ENVS, 0o755, "root"), (ETC, 0o750, USER)):
        yield _folder(path, mode, "root", group)
    yield _folder(STATE, 0o750, USER, USER)
    yield _environment(kit, about)
    yield _shortcut()
    for name in about["etc"]:
        # Readable but not writable for the agent, and not readable for others: files can contain passwords.
        yield _copy(f"{kit}/etc/{name}", f"{ETC}/{name}", 0o640, USER)
    yield _copy(f"{kit}/edgeloop.service", UNIT, 0o644, "root")
    if shutil.which("systemctl"):
        yield Step("start at boot", lambda: None if os.path.lexists(WANTED_BY) else "enable edgeloop.service", _enable)
    if about.get("bundle"):
        yield _model(kit, about["bundle"])


def apply(kit: str, *, dry: bool) -> int:
    """Run the steps that are needed, or only print them if `dry`; returns the exit status."""
    about = _read_kit(kit)
    reasons = problems(facts())
    if reasons:
        for text in reasons:
            _say("check", "problem", text)
        return 1
    changed = False
    for step in steps(kit, about):
        missing = step.missing()
        if missing is None:
            _say(step.name, "done", "")
            continue
        changed = True
        if not dry:
            step.do()
        _say(step.name, "would" if dry else "changed", missing)
    _service(dry=dry, changed=changed)
    return 0


def remove(*, dry: bool) -> int:
    """Remove everything, including captures and models."""
    found = [path for path in (UNIT, WANTED_BY, SHORTCUT, OPT, ETC, STATE) if os.path.lexists(path)]
    state = "would" if dry else "changed"
    if _systemd_runs() and os.path.lexists(UNIT):
        _say("service", state, "stop edgeloop.service")
        if not dry:
            _run(["systemctl", "disable", "--now", "edgeloop.service"])
    for path in found:
        _say("files", state, f"remove {path}")
        if not dry:
            _remove(path)
    if _systemd_runs() and not dry:
        _run(["systemctl", "daemon-reload"])
    if _has_user():
        _say("user", state, f"remove the user {USER}")
        if not dry:
            _run(["userdel", USER])
    if not found and not _has_user():
        _say("all", "done", "edgeloop is not installed here")
    return 0


# --- user and folders ---


def _has_user() -> bool:
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return False
    return True


def _missing_groups() -> list[str]:
    """Return the existing groups of `GROUPS` that the user is not yet a member of."""
    missing = []
    for name in GROUPS:
        try:
            if USER not in grp.getgrnam(name).gr_mem:
                missing.append(name)
        except KeyError:
            continue
    return missing


def _user_missing() -> str | None:
    if not _has_user():
        return f"add the user {USER}"
    groups = _missing_groups()
    return f"add {USER} to {', '.join(groups)}" if groups else None


def _make_user() -> None:
    if not _has_user():
        _run(
            ["useradd", "--system", "--user-group", "--home-dir", STATE, "--no-create-home", "--shell"]
            + ["/usr/sbin/nologin", USER]
        )
    groups = _missing_groups()
    if groups:
        _run(["usermod", "--append", "--groups", ",".join(groups), USER])


def _folder(path: str, mode: int, owner: str, group: str) -> Step:
    def missing() -> str | None:
        if not os.path.lexists(path):
            return f"create {path}"
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode):
            raise RefusedError(f"{path} exists but is not a directory; remove it")
        return None if _owned(found, owner, group, mode) else f"set owner and mode of {path}"

    def do() -> None:
        os.makedirs(path, mode=mode, exist_ok=True)
        os.chmod(path, mode)
        os.chown(path, pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid)

    return Step("folders", missing, do)


def _owned(found: os.stat_result, owner: str, group: str, mode: int) -> bool:
    try:
        ids = pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid
    except KeyError:
        return False
    return (found.st_uid, found.st_gid) == ids and stat.S_IMODE(found.st_mode) == mode


def _copy(source: str, target: str, mode: int, group: str) -> Step:
    def missing() -> str | None:
        if not os.path.lexists(target):
            return f"write {target}"
        if _read(source) != _read(target):
            return f"replace {target}"
        return None if _owned(os.lstat(target), "root", group, mode) else f"set owner and mode of {target}"

    def do() -> None:
        handle, part = tempfile.mkstemp(prefix=".", suffix=".part", dir=os.path.dirname(target))
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_read(source))
                os.fchown(handle, 0, grp.getgrnam(group).gr_gid)
                os.fchmod(handle, mode)
                file.flush()
                os.fsync(handle)
            os.replace(part, target)
        except BaseException:
            os.unlink(part)
            raise
        if target == UNIT and _systemd_runs():
            _run(["systemctl", "daemon-reload"])

    return Step("files", missing, do)


def _shortcut() -> Step:
    def do() -> None:
        os.makedirs(os.path.dirname(SHORTCUT), exist_ok=True)
        _swap_link(COMMAND, SHORTCUT)

    return Step("command", lambda: None if _linked(SHORTCUT) == COMMAND else f"link {SHORTCUT}", do)


# --- the environment ---


def _environment(kit: str, about: dict[str, Any]) -> Step:
    """Install the wheels into a virtual environment named by their digest; `env` links to the complete one."""
    tag = f"{sys.version_info[0]}.{sys.version_info[1]}"
    wheels = about["wheels"].get(f"{tag}-{_machine()}")
    if wheels is None:
        raise RefusedError(f"the payload is for {', '.join(about['wheels'])}; this machine is {tag}-{_machine()}")
    content = json.dumps([tag, sys.version_info[:3], wheels], sort_keys=True)
    folder = f"{ENVS}/{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    complete = f"{folder}/.whole"

    def missing() -> str | None:
        if _linked(ENV) == folder and os.path.exists(complete):
            return None
        return f"install edgeloop {about['version']} from {len(wheels)} packages"

    def do() -> None:
        if not os.path.exists(complete):
            _build(folder, {f"{kit}/wheels/{name}": digest for name, digest in wheels.items()})
            _write(complete, b"")
            os.sync()
        _swap_link(folder, ENV)
        for other in os.listdir(ENVS):
            if f"{ENVS}/{other}" != folder:
                shutil.rmtree(f"{ENVS}/{other}", ignore_errors=True)

    return Step("packages", missing, do)


def _build(folder: str, wheels: dict[str, str]) -> None:
    """Create a virtual environment with access to Debian's packages, which include the Pi's camera library."""
    for path, digest in wheels.items():
        if hashlib.sha256(_read(path)).hexdigest() != digest:
            raise RefusedError(f"{path} is damaged; run the command on your computer again")
    shutil.rmtree(folder, ignore_errors=True)
    # --without-pip, because Debian's venv needs an extra package for pip; the payload contains a pip wheel.
    _run([sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", folder])
    pip = next(path for path in wheels if os.path.basename(path).startswith("pip-"))
    others = [path for path in wheels if path != pip]
    python = f"{folder}/bin/python"
    # Exactly these versions, whatever the system has: they were tested together.
    options = ["--no-index", "--no-deps", "--ignore-installed", "--no-warn-script-location", "--no-cache-dir"]
    quiet = ["--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]
    _run([python, f"{pip}/pip", "install", *options, *quiet, *others])
    for module in ("numpy", "cv2", "yaml", "msgspec", "click", "paho.mqtt.client"):
        try:
            _run([python, "-c", f"import {module}"])
        except RefusedError as error:
            remedy = (
                "" if "No module named" not in str(error) else f"; sudo apt install {_FROM_APT.get(module, module)}"
            )
            raise RefusedError(f"{module} cannot be imported: {error}{remedy}") from error
    _run([f"{folder}/bin/edgeloop", "--version"])


# --- model and service ---


def _model(kit: str, bundle: dict[str, str]) -> Step:
    def missing() -> str | None:
        try:
            shown = _as_agent(["status", "--json"])
        except (RefusedError, OSError, KeyError):
            return f"install {bundle['file']}"
        known = {one["digest"] for key in ("installed", "failures") for one in json.loads(shown)[key]}
        return None if bundle["digest"] in known else f"install {bundle['file']}"

    def do() -> None:
        # The agent's user cannot read the folder of the payload.
        with tempfile.TemporaryDirectory(prefix="edgeloop-") as folder:
            os.chmod(folder, 0o755)
            copy = shutil.copy(f"{kit}/{bundle['file']}", folder)
            os.chmod(copy, 0o644)
            _as_agent(["install", copy])

    return Step("model", missing, do)


def _as_agent(arguments: list[str]) -> str:
    return _run(["runuser", "-u", USER, "--", COMMAND, *arguments], cwd="/")


def _enable() -> None:
    _run(["systemctl", "enable", "edgeloop.service"])


def _service(*, dry: bool, changed: bool) -> None:
    """Start the agent, or restart it if anything changed."""
    if not _systemd_runs():
        _say("service", "note", f"systemd is not running; start the agent with: {COMMAND} run")
        return
    if not os.path.lexists(f"{STATE}/current"):
        _say("service", "note", "the agent starts with the first model; send one with: edgeloop deploy push")
        return
    active = subprocess.run(["systemctl", "is-active", "-q", "edgeloop.service"], check=False).returncode == 0
    if active and not changed:
        _say("service", "done", "")
        return
    text = f"{'restart' if active else 'start'} edgeloop.service"
    if not dry:
        _run(["systemctl", "restart", "edgeloop.service"])
    _say("service", "would" if dry else "changed", text)


# --- helpers ---


def _machine() -> str:
    """Return the processor of the programs, because a 32-bit system can run on a 64-bit kernel."""
    machine = platform.machine()
    return "armv7l" if machine == "aarch64" and sys.maxsize < 2**32 else machine


def _systemd_runs() -> bool:
    return os.path.isdir("/run/systemd/system")


def _linked(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _swap_link(target: str, link: str) -> None:
    part = f"{link}.part"
    if os.path.lexists(part):
        os.unlink(part)
    os.symlink(target, part)
    os.replace(part, link)


def _existing(path: str) -> str:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _read_kit(kit: str) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads(_read(f"{kit}/kit.json"))
    except (OSError, ValueError) as error:
        raise RefusedError(f"{kit}: no provisioning payload, or an incomplete one: {error}; create it again") from error
    return about


def _run(command: list[str], *, cwd: str | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise RefusedError(f"{os.path.basename(command[0])}: {reason}")
    return done.stdout


def _say(step: str, state: str, text: str) -> None:
    print(json.dumps({"step": step, "state": state, "text": text}), flush=True)


def main() -> int:
    """Run one of the four commands."""
    parser = argparse.ArgumentParser(description="Install edgeloop on this machine or remove it.")
    parser.add_argument("what", choices=("facts", "plan", "apply", "remove"))
    parser.add_argument("--dry-run", action="store_true", help="with remove: only print what would be removed")
    parser.add_argument("--kit", default=os.path.dirname(os.path.abspath(sys.argv[0])))
    arguments = parser.parse_args()
    os.umask(0o022)
    try:
        if arguments.what == "facts":
            print(json.dumps(facts()))
            return 0
        if os.geteuid() != 0:
            _say("all", "problem", "root is required; run it with sudo")
            return 1
        if arguments.what == "remove":
            return remove(dry=arguments.dry_run)
        return apply(arguments.kit, dry=arguments.what == "plan")
    except RefusedError as error:
        _say("all", "problem", str(error))
    except OSError as error:
        _say("all", "problem", f"{error.filename or 'the disk'}: {error.strerror or error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
