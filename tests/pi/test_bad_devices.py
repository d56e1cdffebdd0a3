"""Machines that cannot be reached or made devices: one line with the remedy, and the machine as it was."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from ..conftest import Ran, Run, find_free_port
from ..support.bundles import new_key
from .root import Pi, ssh_config

pytestmark = [pytest.mark.needs("root", "index", "ssh-keygen"), pytest.mark.timeout(300)]

Deploy = Callable[..., Ran]


@pytest.fixture
def provision(edgeloop: Run, near: Pi, tmp_path: Path) -> Deploy:
    """`edgeloop deploy provision HOST`, with any ssh_config."""
    settings = tmp_path / "agent.yaml"
    settings.write_text(yaml.safe_dump({"cameras": {"door": {"source": 0}}}))

    def run(config: Path = near.ssh_config, host: str = "raspberrypi") -> Ran:
        return edgeloop("deploy", "provision", "-F", config, host, "--config", settings)

    return run


@contextmanager
def unchanged(pi: Pi) -> Iterator[None]:
    before = everything(pi)
    yield
    assert everything(pi) == before


def everything(pi: Pi) -> list[str]:
    """All of it: owners, modes, and when files were changed; not what sudo keeps of who logged in."""
    found = ["find", str(pi.root), "-xdev", "-path", f"{pi.root}/run", "-prune", "-o"]
    found += ["-name", "__pycache__", "-prune", "-o"]  # of Python itself, which nobody compiled here
    found += ["-type", "d", "-printf", "%P %u %m\\n", "-o", "-printf", "%P %u %m %T@ %l\\n"]
    lines = subprocess.run(found, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(line for line in lines if not line.startswith("var/lib/sudo"))


@contextmanager
def instead(path: Path, text: str | None) -> Iterator[None]:
    """Another file in its place, or none; then the old one again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.aside")
    if path.is_symlink() or path.exists():
        path.rename(aside)
    if text is not None:
        path.write_text(text)
        path.chmod(0o755)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if aside.is_symlink() or aside.exists():
            aside.rename(path)


def edited(pi: Pi, folder: Path, old: str, new: str) -> Path:
    """The ssh_config that leads there, with a change."""
    text = pi.ssh_config.read_text()
    assert old in text
    path = folder / "ssh_config"
    path.write_text(text.replace(old, new))
    return path


def test_another_host_key_is_not_talked_to(near: Pi, provision: Deploy, tmp_path: Path) -> None:
    known = near.ssh_config.with_name("known_hosts")
    other = new_key(tmp_path / "other").with_suffix(".pub").read_text()
    wrong, empty = tmp_path / "wrong", tmp_path / "empty"
    wrong.write_text(f"[127.0.0.1]:{near.port} {other}")
    empty.write_text("")
    for path in (wrong, empty):
        ran = provision(edited(near, tmp_path, str(known), str(path)))
        assert ran.code == 1
        assert "its host key is unknown or differs from the known key of raspberrypi" in ran.err
        assert "run `ssh raspberrypi` once" in ran.err
        assert "ssh-keygen -R" in ran.err


def test_who_may_not_log_in_is_told_how(near: Pi, provision: Deploy, tmp_path: Path) -> None:
    key = near.ssh_config.with_name("id")
    ran = provision(edited(near, tmp_path, f"IdentityFile {key}", f"IdentityFile {new_key(tmp_path / 'mine')}"))
    assert ran.code == 1
    assert "it rejects your keys; run ssh-copy-id" in ran.err
    ran = provision(edited(near, tmp_path, f"IdentityFile {key}", f"IdentityFile {tmp_path / 'none'}"))
    assert ran.code == 1
    assert ran.err.startswith("edgeloop: raspberrypi: ")


def test_a_machine_that_is_off_is_said_to_be(near: Pi, provision: Deploy, tmp_path: Path) -> None:
    ran = provision(ssh_config(tmp_path, find_free_port(), near.ssh_config.with_name("id"), host_key=None))
    assert ran.code == 1
    assert "edgeloop: raspberrypi: cannot be reached: " in ran.err
    ran = provision(edited(near, tmp_path, "127.0.0.1", "nowhere.invalid"))
    assert ran.code == 1
    assert "the name raspberrypi cannot be resolved; is the device on, and the name right?" in ran.err


def test_without_sudo_nothing_is_done(near: Pi, provision: Deploy) -> None:
    with instead(near.root / "etc/sudoers.d/010_pi-nopasswd", None), unchanged(near):
        ran = provision()
    assert ran.code == 1
    assert "your login user cannot use sudo without a password; allow it in /etc/sudoers.d" in ran.err


PRETENDING = """#!/bin/sh
[ "$1" = - ] || exec /usr/bin/python3 "$@"
shift
exec /usr/bin/python3 -c 'import platform, sys, time; {what}; exec(sys.stdin.read())' "$@"
"""


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ('platform.machine = lambda: "riscv64"', "its processor is riscv64; expected one of aarch64, x86_64"),
        ("sys.version_info = (3, 9, 2)", "its python3 is 3.9; expected 3.11 to 3.13, which Raspberry Pi OS includes"),
        ("time.time = lambda: 0.0", "its clock shows 1970-01-01; set it with: sudo date -s @"),
    ],
)
def test_a_machine_that_is_no_device_is_refused(near: Pi, provision: Deploy, what: str, says: str) -> None:
    """It runs on a real one, whose Python then says so of it."""
    with instead(near.root / "usr/local/bin/python3", PRETENDING.format(what=what)), unchanged(near):
        ran = provision()
    assert ran.code == 1
    assert says in ran.line


def test_a_machine_without_python_is_refused(near: Pi, provision: Deploy) -> None:
    with instead(near.root / "usr/bin/python3", None), unchanged(near):
        ran = provision()
    assert ran.code == 1
    assert "it has no python3; expected Raspberry Pi OS or Debian, Bookworm or later" in ran.line


def test_a_full_disk_is_noticed_before_anything_is_sent(near: Pi, provision: Deploy) -> None:
    place = near.root / "opt"
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(place)], check=True)
    try:
        with unchanged(near):
            ran = provision()
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert ran.code == 1
    assert "MB are free in /opt/edgeloop; 450 MB are needed: free space" in ran.line


def test_what_is_not_a_device_yet_is_pushed_nothing(near: Pi, edgeloop: Run, bundle_file: Path) -> None:
    with unchanged(near):
        ran = edgeloop("deploy", "push", bundle_file, "-F", near.ssh_config, "raspberrypi")
        assert ran.code == 1
        assert "edgeloop is not installed; install it with: edgeloop deploy provision raspberrypi" in ran.out
        assert "it has no systemd journal" in edgeloop("deploy", "logs", "-F", near.ssh_config, "raspberrypi").err


def test_a_talkative_login_shell_is_named_as_what_it_is(near: Pi, edgeloop: Run, bundle_file: Path) -> None:
    with instead(near.root / "home/pi/.bashrc", "echo Welcome back, commander.\n"):
        ran = edgeloop("deploy", "push", bundle_file, "-F", near.ssh_config, "raspberrypi")
    assert ran.code == 1
    assert "does the login shell print something?" in ran.out
