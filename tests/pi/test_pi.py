"""From a fresh arm64 Debian to a device and back, over a real sshd, with real aarch64 binaries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from edge_agent.captures.folder import read_capture

from ..conftest import Mosquitto, Ran, Run, Subscriber, wait_until
from ..support.bundles import new_key, repacked
from .root import Pi

pytestmark = [pytest.mark.needs("pi", "ssh-keygen", "index", "mosquitto"), pytest.mark.timeout(600)]

Deploy = Callable[..., Ran]


@pytest.fixture(scope="module")
def deploy(edgeloop: Run, pi: Pi) -> Deploy:
    """`edgeloop deploy COMMAND raspberrypi ...` with the ssh_config that leads there."""

    def run(command: str, *arguments: object, host: str = "raspberrypi", **options: object) -> Ran:
        return edgeloop("deploy", command, "-F", pi.ssh_config, *arguments, host, **options)

    return run


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """agent.yaml as its user wrote it, with a password beside it."""
    folder = tmp_path_factory.mktemp("settings")
    (folder / "password.txt").write_text("not secret\n")
    path = folder / "agent.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "cameras": {"door": {"source": "/srv/video.avi", "loop": True}},
                "mqtt": {"host": "127.0.0.1", "port": 1, "username": "pi", "password_file": "password.txt"},
                "decision": {"min_time_s": 0, "smoothing_s": 0},
                "record": {"per_hour": 3600, "random_every_s": 1, "min_free_mb": 0},
                "threads": 1,
            }
        )
    )
    return path


@pytest.fixture(scope="module")
def device(pi: Pi, deploy: Deploy, settings: Path, signing_key: Path) -> Pi:
    """A provisioned one."""
    ran = deploy("provision", "--config", settings, "--trust", signing_key.with_suffix(".pub"))
    assert ran.code == 0, ran.err
    return pi


def inside(pi: Pi, command: str) -> str:
    done = pi.ssh(command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tree(pi: Pi) -> str:
    """Every file a device could have from us, and who may do what with it."""
    return inside(
        pi,
        "sudo find /etc /home /opt /root /srv /usr /var/lib -name __pycache__ -prune -o -path /home/pi/.cache -prune "
        "-o -printf '%p %u %g %m %l\\n' | sort",
    )


def test_a_dry_run_shows_the_plan_and_changes_nothing(pi: Pi, deploy: Deploy, settings: Path) -> None:
    before = tree(pi)
    ran = deploy("provision", "--config", settings, "--dry-run")
    assert ran.code == 0, ran.err
    assert "raspberrypi: would add the user edgeloop" in ran.out
    assert "would install edgeloop" in ran.out
    assert "would write /etc/systemd/system/edgeloop.service" in ran.out
    assert tree(pi) == before


def test_provision_makes_a_device_and_a_second_run_changes_nothing(
    device: Pi, deploy: Deploy, settings: Path, signing_key: Path
) -> None:
    before = tree(device)
    ran = deploy("provision", "--config", settings, "--trust", signing_key.with_suffix(".pub"))
    assert (ran.code, ran.err) == (0, "")
    assert "raspberrypi: nothing changed" in ran.out
    assert tree(device) == before
    assert "aarch64" in inside(device, "uname -m")
    assert inside(device, "edgeloop --version").startswith("edgeloop, version")
    kept = inside(device, "sudo find /etc/edgeloop /var/lib/edgeloop -printf '%p %u:%g %m\\n' | sort").splitlines()
    assert kept == [
        "/etc/edgeloop root:edgeloop 750",
        "/etc/edgeloop/agent.yaml root:edgeloop 640",
        "/etc/edgeloop/allowed_signers root:edgeloop 640",
        "/etc/edgeloop/mqtt_password root:edgeloop 640",
        "/var/lib/edgeloop edgeloop:edgeloop 750",
    ]
    written = yaml.safe_load(inside(device, "sudo cat /etc/edgeloop/agent.yaml"))
    assert written["device"] == "raspberrypi"
    assert written["mqtt"]["password_file"] == "/etc/edgeloop/mqtt_password"
    assert written["allowed_signers"] == "/etc/edgeloop/allowed_signers"
    # Nobody but the agent reads the password.
    assert device.ssh("cat /etc/edgeloop/mqtt_password").returncode != 0


def test_other_settings_replace_only_the_settings(
    device: Pi, deploy: Deploy, settings: Path, signing_key: Path
) -> None:
    other = settings.with_name("other.yaml")
    other.write_text(settings.read_text() + "health_every_s: 5\n")
    key = signing_key.with_suffix(".pub")
    ran = deploy("provision", "--config", other, "--trust", key)
    assert [line for line in ran.out.splitlines() if "systemd" not in line] == [
        "raspberrypi: replace /etc/edgeloop/agent.yaml"
    ]
    assert deploy("provision", "--config", settings, "--trust", key).code == 0


def test_a_model_is_pushed_proved_watched_replaced_and_rolled_back(
    device: Pi,
    deploy: Deploy,
    settings: Path,
    signing_key: Path,
    signed_versions: dict[str, Path],
    fast_video: Path,
    bundle_file: Path,
    mosquitto: Mosquitto,
    subscriber: Subscriber,
    tmp_path: Path,
) -> None:
    here = settings.with_name("here.yaml")
    document = yaml.safe_load(settings.read_text())
    document["mqtt"] = {"host": "127.0.0.1", "port": mosquitto.port}
    here.write_text(yaml.safe_dump(document))
    assert deploy("provision", "--config", here, "--trust", signing_key.with_suffix(".pub")).code == 0
    shutil.copy(fast_video, device.root / "srv/video.avi")

    # What the device refuses, it refuses whatever the desktop thinks of it; nothing is there then.
    unsigned = repacked(bundle_file, tmp_path / "unsigned.edgeloop", version="9")
    stranger = repacked(bundle_file, tmp_path / "stranger.edgeloop", version="9", key=new_key(tmp_path / "stranger"))
    for bundle, why in ((unsigned, "it is not signed"), (stranger, "signed by a key that is not in")):
        ran = deploy("push", bundle)
        assert ran.code == 1
        assert ran.out.startswith("raspberrypi: refused, the bundle: "), ran.out
        assert why in ran.out
    assert "no model is installed" in deploy("status").out

    ran = deploy("push", signed_versions["1"], "--no-wait")
    assert ran.code == 0, ran.out
    assert "active, ground 1" in ran.out
    with agent(device):
        subscriber.wait_for("raspberrypi/status", "online", timeout_s=60)
        ran = deploy("push", signed_versions["2"])
        assert ran.code == 0, ran.out + ran.err
        assert "raspberrypi: good, ground 2" in ran.out
        seen = {str(message["payload"]["label"]) for message in subscriber.messages("door/event")}  # type: ignore[index]
        assert {"brick", "stars"} <= seen

        ran = deploy("push", signed_versions["2"], "--json")
        outcome = json.loads(ran.out)["outcomes"][0]
        assert (outcome["state"], outcome["moved_bytes"]) == ("good", 0)
        ran = deploy("push", signed_versions["1"])
        assert ran.code == 1
        assert "is older than ground 2" in ran.out
        assert "ground 2" in deploy("status").out

        ran = deploy("rollback", "--reason", "it mistook the cat")
        assert (ran.code, ran.out) == (0, "raspberrypi: runs ground 1 again\n")
        ran = deploy("push", signed_versions["2"])
        assert "it mistook the cat" in ran.out
        ran = deploy("push", signed_versions["3"], "--no-wait")
        assert "raspberrypi: active, ground 3" in ran.out, ran.out + inside(device, "cat /tmp/agent.log")

    out = tmp_path / "captures"
    there = int(inside(device, "sudo find /var/lib/edgeloop/captures -name '*.json' | wc -l"))
    assert there > 2
    ran = deploy("pull", "--out", out, "--keep")
    assert f"{there} captures fetched into {out / 'raspberrypi'}, 0 deleted on it" in ran.out
    ran = deploy("pull", "--out", out)
    assert f"0 captures fetched into {out / 'raspberrypi'}, {there} were already here, {there} deleted on it" in ran.out
    lines = sorted(out.glob("raspberrypi/*/*.json"))
    assert len(lines) == there
    for line in lines:
        capture = read_capture(line)
        assert capture is not None
        assert capture.device == "raspberrypi"
        assert line.with_suffix(".jpg").stat().st_size > 500
    assert "0 captures fetched" in deploy("pull", "--out", out).out


def test_all_of_it_can_be_taken_away(device: Pi, deploy: Deploy) -> None:
    inside(
        device,
        "sudo -u edgeloop sh -c 'mkdir -p /var/lib/edgeloop/captures/2026-01-01; "
        "echo {} > /var/lib/edgeloop/captures/2026-01-01/a.json'",
    )
    ran = deploy("deprovision", "--yes")
    assert ran.code == 1
    assert "it holds 1 captures; fetch them with edgeloop deploy pull" in ran.line
    ran = deploy("deprovision", "--dry-run")
    assert "would remove /opt/edgeloop" in ran.out
    assert inside(device, "edgeloop --version")
    ran = deploy("deprovision", "--yes", "--discard-captures")
    assert (ran.code, ran.err) == (0, "")
    assert "edgeloop" not in tree(device)
    assert device.ssh("id edgeloop").returncode != 0
    ran = deploy("deprovision", "--yes")
    assert (ran.code, ran.out) == (0, "raspberrypi: nothing to remove\n")
    ran = deploy("status")
    assert ran.code == 1
    assert "edgeloop is not installed; install it with: edgeloop deploy provision raspberrypi" in ran.err


class agent:  # noqa: N801  reads as one
    """The agent on the device, started by hand where there is no systemd."""

    def __init__(self, pi: Pi) -> None:
        self._pi = pi

    def __enter__(self) -> None:
        inside(
            self._pi,
            "sudo -u edgeloop setsid /opt/edgeloop/env/bin/edgeloop run > /tmp/agent.log 2>&1 < /dev/null & sleep 1",
        )

    def __exit__(self, *exception: object) -> None:
        self._pi.ssh("sudo pkill -TERM -u edgeloop")
        wait_until(lambda: self._pi.ssh("pgrep -u edgeloop").returncode != 0, 60, "the agent to end")
