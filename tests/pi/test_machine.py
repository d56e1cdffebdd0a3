"""A prepared card in a whole arm64 machine with systemd: its first boot, the service, the watchdog, power cuts."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from edge_agent.bundle import open_bundle

from ..conftest import Mosquitto, Run, Subscriber, start_mosquitto
from ..support.bundles import new_key
from ..support.card_image import BOOKWORM, TRIXIE, make_image
from .machine import CMDLINE, Machine, make_system, on

pytestmark = [
    pytest.mark.whole_machine,
    pytest.mark.needs("pi", "qemu", "mtools", "index", "mosquitto", "ssh-keygen"),
    pytest.mark.timeout(1800),
]
CUTS = 5
ONLINE = "systemctl is-active edgeloop.service"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with start_mosquitto(tmp_path_factory.mktemp("broker")) as started:
        yield started


@pytest.fixture(scope="module")
def messages(broker: Mosquitto) -> Iterator[Subscriber]:
    with Subscriber(broker.port, "edgeloop/#") as opened:
        yield opened


@pytest.fixture(scope="module")
def card_of(
    edgeloop: Run, broker: Mosquitto, fast_video: Path, signed_versions: dict[str, Path], signing_key: Path
) -> Callable[[Path, str], Machine]:
    """A machine with a card in it that `edgeloop deploy image` wrote, before its first boot."""

    def make(folder: Path, suite: str) -> Machine:
        system = make_system(folder, suite=suite, files={"/srv/video.avi": fast_video})
        files = {"bookworm": BOOKWORM, "trixie": TRIXIE}[suite]
        image = make_image(folder / "raspios.img", {**files, "cmdline.txt": CMDLINE}, root=system.root)
        key, settings = new_key(folder / "id"), folder / "agent.yaml"
        cameras = {"door": {"source": "/srv/video.avi", "loop": True}}
        mqtt = {"host": "10.0.2.2", "port": broker.port}
        settings.write_text(yaml.safe_dump({"cameras": cameras, "mqtt": mqtt, "threads": 2}))
        card = folder / "card.img"
        ran = edgeloop(
            *("deploy", "image", image, "--out", card, "--config", settings, "--bundle", signed_versions["1"]),
            *("--hostname", suite, "--user", "ann", "--ssh-key", key.with_suffix(".pub")),
            *("--trust", signing_key.with_suffix(".pub")),
        )
        assert ran.code == 0, ran.err
        image.unlink()
        return Machine(system, card, folder / "work", key, user="ann")

    return make


@pytest.fixture(scope="module")
def machine(card_of: Callable[[Path, str], Machine], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = card_of(tmp_path_factory.mktemp("machine"), "bookworm")
    yield made
    made.cut_power()


def test_the_first_boot_of_a_card_ends_with_labels_at_the_broker(machine: Machine, messages: Subscriber) -> None:
    machine.start()
    machine.wait_off(300)  # firstrun.sh is done, and wants an ordinary boot
    with on(machine):
        has_become_a_device(machine, "bookworm", messages)
        # Exposure: what systemd-analyze makes of the sandbox, on a scale to 10.
        told = machine.inside("systemd-analyze security --no-pager edgeloop.service")
        found = re.search(r"exposure level for edgeloop\.service: ([0-9.]+)", told)
        assert found is not None
        assert float(found[1]) <= 2.0, told
        assert "firstrun.sh" not in machine.inside("ls /boot/firmware")
        assert machine.inside("ps -o user= -C edgeloop").split()[0] == "edgeloop"
        assert "good" in machine.wait_for("edgeloop status | grep good", 300)
        machine.inside("sync")


def has_become_a_device(machine: Machine, name: str, messages: Subscriber) -> None:
    machine.wait_for("mountpoint -q /boot/firmware && test ! -e /boot/firmware/edgeloop", 1200)
    assert machine.inside("cat /proc/sys/kernel/hostname") == f"{name}\n"
    log = machine.inside("cat /boot/firmware/edgeloop-setup.txt")
    assert log.endswith("provisioning finished\n"), log
    assert "problem" not in log
    messages.wait_for(f"{name}/status", "online", timeout_s=120)
    messages.wait_for(f"{name}/camera/door/label", timeout_s=60)


def test_a_hung_agent_is_killed_by_the_watchdog_and_comes_back(machine: Machine, messages: Subscriber) -> None:
    with on(machine):
        machine.wait_for(ONLINE, 300)
        messages.wait_for("porch/status", "online", timeout_s=120)
        before = machine.inside("systemctl show -p MainPID --value edgeloop.service")
        machine.inside(f"kill -STOP {before}")
        after = machine.wait_for(
            f"systemctl is-active -q edgeloop.service && p=$(systemctl show -p MainPID --value edgeloop.service) && "
            f"test $p != {before.strip()} && test $p != 0 && echo $p",
            300,
        )
        assert after != before
        assert (
            "watchdog"
            in machine.inside("systemctl show -p Result edgeloop.service; journalctl -u edgeloop -n 50").lower()
        )


def test_a_power_cut_at_any_moment_of_a_push_leaves_a_model_that_runs(
    machine: Machine, edgeloop: Run, signed_versions: dict[str, Path]
) -> None:
    chance = random.Random(11)
    digests = {open_bundle(path).digest: number for number, path in signed_versions.items()}
    current, ends = "1", []
    for cut in range(CUTS):
        new = "3" if current == "2" else "2"
        bundle = signed_versions[new]
        push = [*("deploy", "push", bundle, "raspberrypi", "-F", machine.ssh_config, "--allow-downgrade")]
        with on(machine):
            machine.wait_for(ONLINE, 300)
            running = subprocess.Popen(
                [sys.executable, "-m", "edge_agent.cli", *map(str, push), "--no-wait"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(chance.uniform(1, 25))
            machine.cut_power()
            running.kill()
            running.wait()
        with on(machine):
            machine.wait_for(ONLINE, 300)
            status = json.loads(machine.inside("runuser -u edgeloop -- edgeloop status --json"))
            found = digests[status["current"]["digest"]]
            ends.append(found == new)
            assert found in (current, new), (cut, status)
            assert status["current"]["status"] in ("good", "probation")
            ran = edgeloop(*push, "--timeout-s", 600, timeout=900)
            assert ran.code == 0, ran.out + ran.err
            assert f"raspberrypi: good, ground {new}" in ran.out
            machine.inside("sync")
        current = new


def test_cloud_init_makes_a_card_of_trixie_a_device(
    card_of: Callable[[Path, str], Machine], messages: Subscriber, tmp_path: Path
) -> None:
    with on(card_of(tmp_path, "trixie")) as booted:
        has_become_a_device(booted, "trixie", messages)
        assert "127.0.1.1" in booted.inside("cat /etc/hosts")
        assert booted.inside("cloud-init status") == "status: done\n", booted.inside("cloud-init status --long || true")
        # The file is one that cloud-init takes without a murmur.
        assert "Valid schema user-data" in booted.inside("cloud-init schema --system")
