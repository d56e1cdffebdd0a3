"""What goes to a device: agent.yaml and the files it names, keys, packages. What hinders a machine to become one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.commands.deploy_image import image_command
from deploy.commands.deploy_provision import provision_command
from deploy.on_device.setup import EARLIEST, NEEDED_BYTES, problems
from deploy.provisioning.payload import ON_DEVICE, Kit, make_kit, public_key
from deploy.provisioning.wheels import own_wheel, wheels
from edge_agent.bundle.signature import NAMESPACE
from edge_agent.errors import ConfigError

from ..support.bundles import new_key

SETTINGS: dict[str, Any] = {"cameras": {"door": {"source": 0}}}
FACTS: dict[str, Any] = {
    "machine": "aarch64",
    "python": [3, 11],
    "free_bytes": 8 * 10**9,
    "clock_s": EARLIEST + 1e6,
    "env": None,
}


def kit_of(folder: Path, document: object, **options: Any) -> Kit:
    path = folder / "agent.yaml"
    path.write_text(yaml.safe_dump(document))
    return make_kit(path, {}, device="porch", **options)


def settings_in(kit: Kit) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(kit.files["etc/agent.yaml"])
    return found


def test_files_that_agent_yaml_names_go_along_and_are_named_as_they_lie_there(tmp_path: Path) -> None:
    for name in ("secret.txt", "ca.crt", "me.crt", "me.key"):
        (tmp_path / name).write_text(name)
    tls = {"ca": "ca.crt", "certificate": "me.crt", "key": "me.key"}
    mqtt = {"host": "broker", "username": "me", "password_file": "secret.txt", "tls": tls}
    (tmp_path / "door.pem").write_text("door.pem")
    door = {"source": "https://door/", "tls": {"ca": "door.pem"}}
    kit = kit_of(tmp_path, {"cameras": {"door": door}, "mqtt": mqtt})
    assert {name: kit.files[f"etc/{name}"].decode() for name in json.loads(kit.files["kit.json"])["etc"][1:]} == {
        "camera_door_ca.pem": "door.pem",
        "mqtt_ca.pem": "ca.crt",
        "mqtt_certificate.pem": "me.crt",
        "mqtt_key.pem": "me.key",
        "mqtt_password": "secret.txt",
    }
    there = settings_in(kit)["mqtt"]
    assert there["password_file"] == "/etc/edgeloop/mqtt_password"
    assert there["tls"]["key"] == "/etc/edgeloop/mqtt_key.pem"
    assert settings_in(kit)["cameras"]["door"]["tls"] == {"ca": "/etc/edgeloop/camera_door_ca.pem"}


@pytest.mark.parametrize("outside", ["../secret.txt", "{absolute}/secret.txt", "link.txt"])
def test_an_inventory_sends_no_file_from_elsewhere(outside: str, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("of somebody else")
    folder = tmp_path / "fleet"
    folder.mkdir()
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "own.txt").write_text("own")
    named = outside.format(absolute=tmp_path)
    mqtt = {"host": "broker", "username": "me", "password_file": named}
    with pytest.raises(ConfigError, match=r"settings\.mqtt\.password_file: .* is not in the folder of"):
        kit_of(folder, SETTINGS, settings={"mqtt": mqtt})
    kit = kit_of(folder, {**SETTINGS, "mqtt": mqtt})  # agent.yaml itself may name any file
    assert kit.files["etc/mqtt_password"] == b"of somebody else"
    kit = kit_of(folder, {**SETTINGS, "mqtt": mqtt}, settings={"mqtt": {"password_file": "own.txt"}})
    assert kit.files["etc/mqtt_password"] == b"own"


def test_settings_of_one_device_are_laid_over_those_of_all(tmp_path: Path) -> None:
    kit = kit_of(tmp_path, SETTINGS, settings={"cameras": {"door": {"fps": 5}, "yard": {"source": 1}}, "threads": 2})
    assert settings_in(kit) == {
        "device": "porch",
        "cameras": {"door": {"source": 0, "fps": 5}, "yard": {"source": 1}},
        "threads": 2,
    }
    assert settings_in(kit_of(tmp_path, {**SETTINGS, "device": "mine"}))["device"] == "mine"


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([1], "expected keys and values"),
        ({**SETTINGS, "bundle": "x.edgeloop"}, "delete the line and push the bundle"),
        ({**SETTINGS, "state": "/srv"}, "state is always /var/lib/edgeloop on a device"),
        (
            {**SETTINGS, "mqtt": {"host": "b", "username": "u", "password_file": "none.txt"}},
            "mqtt.password_file: .*none.txt",
        ),
        ({**SETTINGS, "treads": 2}, "treads"),
        ({"cameras": {}}, "cameras"),
    ],
)
def test_settings_a_device_could_not_use_never_get_there(tmp_path: Path, document: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        kit_of(tmp_path, document)


@pytest.mark.needs("ssh-keygen")
def test_a_key_is_trusted_with_bundles_and_nothing_else(tmp_path: Path) -> None:
    key = new_key(tmp_path / "owner")
    public = key.with_suffix(".pub")
    public.write_text(f"{' '.join(public.read_text().split()[:2])} me and my * laptop\n")
    kit = kit_of(tmp_path, SETTINGS, trust=[public])
    line = kit.files["etc/allowed_signers"].decode()
    assert line.startswith(f'me-and-my---laptop namespaces="{NAMESPACE}" ssh-ed25519 AAAA')
    assert line.count("\n") == 1
    assert settings_in(kit)["allowed_signers"] == "/etc/edgeloop/allowed_signers"
    with pytest.raises(ConfigError, match="expected a public key"):
        public_key(key)
    with pytest.raises(ConfigError, match="cannot be read as a public key"):
        public_key(tmp_path)
    (tmp_path / "two.pub").write_text(public.read_text() + 'x namespaces="*" ssh-ed25519 AAAA\n')
    with pytest.raises(ConfigError, match="expected a public key"):
        public_key(tmp_path / "two.pub")
    (tmp_path / "signers").write_text("")
    with pytest.raises(ConfigError, match="give either that or --trust"):
        kit_of(tmp_path, {**SETTINGS, "allowed_signers": "signers"}, trust=[public])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"machine": "riscv64"}, "its processor is riscv64; expected one of aarch64"),
        ({"python": [3, 9]}, "its python3 is 3.9; expected 3.11 to 3.13.*flash a newer release"),
        ({"python": [3, 14]}, "its python3 is 3.14"),
        ({"free_bytes": NEEDED_BYTES - 1}, "MB are free in /opt/edgeloop; 450 MB are needed: free space"),
        ({"clock_s": 0.0}, "its clock shows 1970-01-01; set it with: sudo date -s @1800000000"),
    ],
)
def test_a_machine_that_cannot_become_a_device_says_why(change: dict[str, Any], says: str) -> None:
    assert problems(FACTS) == []
    found = problems({**FACTS, **change}, now_s=1_800_000_000)
    assert len(found) == 1
    assert re.search(says, found[0]), found
    assert len(problems({**FACTS, "machine": "mips", "python": [2, 7], "clock_s": 0, "free_bytes": 0})) == 4
    # One that is a device already needs no room for another environment.
    assert problems({**FACTS, "free_bytes": 0, "env": "/opt/edgeloop/envs/1"}) == []


def test_the_devices_own_package_holds_what_runs_here_and_is_the_same_each_time(tmp_path: Path) -> None:
    first = own_wheel(tmp_path).read_bytes()
    wheel = own_wheel(tmp_path)
    assert wheel.read_bytes() == first
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert "edge_agent/agent/pipeline.py" in names
    assert not [name for name in names if not name.startswith(("edge_agent/", "edgeloop-"))]
    assert not [name for name in names if "__pycache__" in name]


@pytest.mark.parametrize("command", [image_command, provision_command], ids=lambda command: str(command.name))
def test_the_dashboard_option_is_also_accepted_under_its_former_name(command: click.Command) -> None:
    for arguments, expected in ((["--dashboard"], True), (["--page"], True), ([], False)):
        context = command.make_context("edgeloop", ["here", "--config", "agent.yaml", *arguments])
        assert context.params["dashboard"] is expected
    assert "--page" not in command.get_help(command.make_context("edgeloop", [], resilient_parsing=True))


def test_pinned_packages_are_those_that_are_tested() -> None:
    root = Path(__file__).parents[2]
    tested = dict(line.split("==") for line in (root / "constraints.txt").read_text().splitlines())
    tested = {canonicalize_name(name): version for name, version in tested.items()}
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]} | {"pip"}
    review = {canonicalize_name(Requirement(line).name) for line in project["optional-dependencies"]["review"]}
    pinned = json.loads((root / "deploy/provisioning/device_packages.json").read_text())
    assert sorted(pinned) == [f"3.{minor}-{machine}" for minor in (11, 12, 13) for machine in ("aarch64", "x86_64")]
    for environment, sets in pinned.items():
        versions = {}
        for name, sha256 in (sets["base"] | sets["dashboard"]).items():
            assert re.fullmatch("[0-9a-f]{64}", sha256)
            package, version = name.split("-")[:2]
            versions[canonicalize_name(package)] = version
        older = {"numpy", "opencv-python-headless", "ml-dtypes"} if environment.startswith("3.11") else set()
        assert {name for name, version in versions.items() if name in tested and tested[name] != version} <= older
        assert set(versions) - set(tested) <= {"pip"}
        assert wanted <= {canonicalize_name(name.split("-")[0]) for name in sets["base"]}
        assert review <= set(versions)


@pytest.mark.long
@pytest.mark.needs("index")
def test_packages_are_those_of_the_devices_python_and_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And pip, so that it can install them without a network; each with the pinned hash."""
    found = wheels((3, 13), "aarch64")
    assert any(name.startswith("pip-") for name in found)
    binary = [name for name in found if "none-any" not in name]
    assert {name.split("-")[0] for name in binary} >= {"numpy", "opencv_python_headless", "ai_edge_litert", "msgspec"}
    assert all("aarch64" in name for name in binary)
    assert not [name for name in found if name.startswith(("tensorflow", "keras", "asyncssh", "rich"))]
    assert {name.split("-")[0] for name in wheels((3, 11), "aarch64", dashboard=True)} >= {"uvicorn", "starlette"}
    changed = next(path for name, path in found.items() if name.startswith("click-"))
    content = changed.read_bytes()
    changed.write_bytes(content + b"x")
    assert wheels((3, 13), "aarch64")[changed.name].read_bytes() == content
    # No network, and nothing kept from before: one line, not pip's page.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot be downloaded: .*; is there a network here\?"):
        wheels((3, 13), "aarch64")
    with pytest.raises(ConfigError, match=r"there are no packages for Python 3\.11 on armv7l"):
        wheels((3, 11), "armv7l")


def test_setup_runs_with_a_python_that_has_nothing_else(tmp_path: Path) -> None:
    """`facts` is asked of machines that may become devices; isolated, it sees the standard library alone."""
    from deploy.on_device import setup

    script = Path(setup.__file__).read_bytes()
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-", "facts"], input=script, capture_output=True, check=True, cwd=tmp_path
    )
    assert json.loads(done.stdout)["python"] == list(sys.version_info[:2])


@pytest.mark.needs("systemd")
@pytest.mark.parametrize("unit", ["edgeloop.service", "edgeloop-first-boot.service"])
def test_the_units_hold_nothing_systemd_does_not_know(unit: str, tmp_path: Path) -> None:
    text = (ON_DEVICE / unit).read_text()
    # What they start is on the device alone.
    (tmp_path / unit).write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", text, flags=re.MULTILINE))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.needs("systemd")
def test_the_service_is_sandboxed() -> None:
    """Exposure by systemd-analyze's weights, 0 to 100, at most 20."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(ON_DEVICE / "edgeloop.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
