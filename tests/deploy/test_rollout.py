"""Waves: how hosts are cut into them, and a fleet of simulated devices that takes a roll-out, bad ones among them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.fleet.inventory import Host
from deploy.fleet.rollout import waves
from edge_agent.errors import ConfigError
from edge_agent.store.model_store import ModelStore

from ..conftest import Mosquitto, Ran, Run, Subscriber, wait_until
from ..support.bundles import ONE, repacked
from ..support.fleet import Fleet, agents, fleet

DEVICES = [f"pi-{number:02d}" for number in range(8)]
DYING, FULL, GONE = "pi-03", "pi-04", "pi-05"


@pytest.mark.parametrize(
    ("plan", "count", "sizes"),
    [
        ("1,10%,100%", 200, [1, 19, 180]),
        ("1,10%,100%", 1, [1]),
        ("1,10%,100%", 5, [1, 4]),
        ("50%", 5, [3, 2]),
        ("3, 5, 4", 9, [3, 2, 4]),
        ("100", 3, [3]),
    ],
)
def test_waves_hold_every_host_once_in_its_order(plan: str, count: int, sizes: list[int]) -> None:
    hosts = [Host(f"pi-{number}", f"pi-{number}") for number in range(count)]
    cut = waves(hosts, plan)
    assert [len(wave) for wave in cut] == sizes
    assert [host for wave in cut for host in wave] == hosts


@pytest.mark.parametrize("plan", ["", "0", "-1", "101%", "nan", "1,,2", "many", "1;2"])
def test_a_plan_that_is_none_is_refused(plan: str) -> None:
    with pytest.raises(ConfigError, match="is not the size of a wave; expected a plan such as 1,10%,100%"):
        waves([Host("pi", "pi")], plan)


@pytest.fixture(scope="module")
def bundles(bundle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rollout")
    return {number: repacked(bundle_file, folder / f"{number}.edgeloop", version=number) for number in "123"}


@pytest.fixture
def devices(bundles: dict[str, Path], tmp_path: Path) -> Iterator[Fleet]:
    """Eight with model 1; nobody answers for one of them."""
    with fleet(tmp_path, DEVICES, unreachable=[GONE]) as made:
        store = store_of(made, DEVICES[0])
        store.install(bundles["1"], signers=None, limits=ONE)
        store.good()
        for name in DEVICES[1:]:
            shutil.copytree(made.root / DEVICES[0] / "var", made.root / name / "var", symlinks=True)
        yield made


def store_of(devices: Fleet, name: str) -> ModelStore:
    return ModelStore(devices.root / name / "var/lib/edgeloop")


def versions(devices: Fleet) -> dict[str, str]:
    found = {name: store_of(devices, name).status().current for name in DEVICES}
    return {name: "none" if one is None else one.version for name, one in found.items()}


def push(edgeloop: Run, devices: Fleet, bundle: Path, *options: object) -> Ran:
    return edgeloop(*("deploy", "push", bundle, "--inventory", devices.inventory(), "-F", devices.ssh_config, *options))


@pytest.mark.long
@pytest.mark.needs("mosquitto")
def test_a_fleet_takes_a_model_and_bad_devices_go_back_and_are_named(
    devices: Fleet,
    bundles: dict[str, Path],
    fast_video: Path,
    mosquitto: Mosquitto,
    subscriber: Subscriber,
    edgeloop: Run,
) -> None:
    settings = {
        "cameras": {"door": {"source": str(fast_video), "loop": True}},
        "mqtt": {"host": "127.0.0.1", "port": mosquitto.port},
        "threads": 1,
    }
    # No disk for another model there: its place is taken.
    incoming = devices.root / FULL / "var/lib/edgeloop/incoming"
    incoming.write_text("")
    with agents(devices, settings, dying=[DYING]):
        ran = push(edgeloop, devices, bundles["2"], "--waves", "1,3,100%", "--tolerate", 60, "--json")
        told = json.loads(ran.out)
        states = {outcome["host"]: outcome["state"] for outcome in told["outcomes"]}
        expected = dict.fromkeys(DEVICES, "good") | {DYING: "failed", FULL: "refused", GONE: "unreachable"}
        assert (ran.code, states) == (1, expected), told
        assert told["stopped"] is None
        texts = {outcome["host"]: outcome["text"] for outcome in told["outcomes"]}
        assert "three times" in texts[DYING] or "3 starts" in texts[DYING] or "start" in texts[DYING], texts[DYING]
        assert Counter(versions(devices).values()) == {"2": 5, "1": 3}
        assert versions(devices)[DYING] == versions(devices)[FULL] == "1"

        # The broker knows it, too: what they send comes from the model they have.
        subscriber.wait_for(f"{DEVICES[0]}/status", "online")
        wait_until(lambda: model_at_broker(subscriber, DEVICES[0]) == "2", 20, "an event of the new model")


def model_at_broker(subscriber: Subscriber, device: str) -> str | None:
    events = [message for message in subscriber.messages("door/event") if f"/{device}/" in str(message["topic"])]
    return None if not events else str(events[-1]["payload"]["model"]["version"])  # type: ignore[index]


@pytest.mark.slow
def test_a_wave_that_does_badly_goes_back_and_no_further_one_is_begun(
    devices: Fleet, bundles: dict[str, Path], edgeloop: Run
) -> None:
    """The second wave holds the device nobody answers for: its neighbour gets its old model again."""
    names = [DEVICES[0], GONE, DEVICES[1], DEVICES[2]]
    ran = edgeloop(
        *("deploy", "push", bundles["2"], "-F", devices.ssh_config, *names, "--waves", "1,3,100%", "--no-wait")
    )
    assert ran.code == 1
    assert "pi-00: active, ground 2" in ran.out
    assert "pi-05: unreachable" in ran.out
    assert "pi-01: rolled back, runs ground 1 again" in ran.out
    assert "pi-02" not in ran.out
    assert "stopped: 1 of 2 devices of wave 2 failed; 1 devices were not started" in ran.err
    now = versions(devices)
    assert (now["pi-00"], now["pi-01"], now["pi-02"]) == ("2", "1", "1")
    failed = store_of(devices, "pi-01").status().failures[0]
    assert failed.reason == "rollout stopped: 1 of 2 devices of wave 2 failed"
