"""Once round the loop: real agents, captures over SSH, labels, the next model, and the devices that get it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.fleet.inventory import Host
from deploy.fleet.push import Outcome
from deploy.fleet.rollout import Rollout
from deploy.pipelines.loop import STATE, Means, State, once_round
from deploy.pipelines.retrain.pipeline import Terms
from edge_agent.preprocessing import Pixels
from edge_agent.store.model_store import ModelStore
from trainer.active_learning.annotations import Annotation, Annotations
from trainer.active_learning.captured_frames import find_frames

from ..conftest import CLASSES, QUIET, Mosquitto, Ran, Run
from ..support.bundles import ONE, repacked
from ..support.captured import START_NS, keep
from ..support.fleet import Fleet, agents, fleet
from .test_retrain import scene  # noqa: F401  a fixture

DEVICES = ["pi-00", "pi-01"]
MINUTE_NS = 60_000_000_000


@pytest.fixture
def first(bundle_file: Path, tmp_path: Path) -> Path:
    return repacked(bundle_file, tmp_path / "ground-1.edgeloop", version="1")


@pytest.fixture
def devices(first: Path, tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path, DEVICES) as made:
        for name in DEVICES:
            store = ModelStore(made.root / name / "var/lib/edgeloop")
            store.install(first, signers=None, limits=ONE)
            store.good()
        yield made


def versions(devices: Fleet) -> list[str]:
    found = [ModelStore(devices.root / name / "var/lib/edgeloop").current() for name in DEVICES]
    return ["none" if one is None else one.version for one in found]


@pytest.mark.long
@pytest.mark.needs("mosquitto")
def test_frames_of_a_changed_scene_become_the_model_that_the_devices_run(
    devices: Fleet,
    first: Path,
    efficientnet_run: Path,
    scene: tuple[list[Pixels], list[str]],  # noqa: F811
    fast_video: Path,
    mosquitto: Mosquitto,
    tmp_path: Path,
    edgeloop: Run,
) -> None:
    work = tmp_path / "loop"

    def round_(*options: object) -> Ran:
        return edgeloop(
            "loop", work, "--inventory", devices.inventory(), "-F", devices.ssh_config, "--waves", "1", *options
        )

    images, shown = scene
    settings = {
        "cameras": {"door": {"source": str(fast_video), "loop": True}},
        "mqtt": {"host": "127.0.0.1", "port": mosquitto.port},
        "threads": 1,
    }
    nothing = round_()
    assert (nothing.code, "give --run and --bundle for the first call" in nothing.err) == (2, True)
    began = round_("--run", efficientnet_run, "--bundle", first)
    assert began.code == 0, began.err
    assert "0 captures fetched from 2 of 2 devices" in began.out
    assert "no captures yet" in began.out

    for place, name in enumerate(DEVICES):
        folder = devices.root / name / "var/lib/edgeloop/captures"
        for event in range(place, 30, 2):
            some = slice(5 * event, 5 * event + 5)
            keep(
                folder,
                images[some],
                shown[some],
                classes=CLASSES,
                device=name,
                start_ns=START_NS + 2 * event * MINUTE_NS,
            )
    waiting = round_()
    assert waiting.code == 0, waiting.err
    assert "150 captures fetched from 2 of 2 devices" in waiting.out
    assert f"150 frames wait for review: edgeloop review {work / 'captures'} --run {efficientnet_run}" in waiting.out

    # A person labels them; by the time, which says what was filmed.
    truth = {START_NS // 1_000_000_000 + 120 * (number // 5) + number % 5: label for number, label in enumerate(shown)}
    from datetime import datetime

    log = Annotations(work / "captures")
    frames = find_frames(work / "captures").frames
    log.add(
        [
            Annotation(
                sha256=frame.sha256,
                verdict="label",
                label=truth[int(datetime.fromisoformat(frame.captured_at).timestamp())],
            )
            for frame in frames
        ]
    )
    # Another one is at it: a timer fires while a training takes hours.
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        busy = round_()
        assert (busy.code, "another `edgeloop loop` is running" in busy.err) == (1, True)
    with agents(devices, settings):
        done = round_("--timeout-s", 120)
        assert done.code == 0, done.out + done.err
        assert "ground-2 was promoted, trained with 150 annotations" in done.out
        assert "ground-2.edgeloop runs on 2 of 2 devices" in done.out
        assert versions(devices) == ["2", "2"]
    again = round_()
    assert (again.code, "there are no new labels" in again.out) == (0, True)
    state = json.loads((work / STATE).read_text())
    assert (state["number"], state["to_push"], state["under_way"]) == (2, False, False)
    history = [json.loads(line) for line in (work / "loop.jsonl").read_text().splitlines()]
    assert len(history) == 4
    assert (work / "runs/ground-2/promotion.html").is_file()


@pytest.mark.parametrize(
    ("states", "stopped", "current", "pushes"),
    [
        (("good", "good"), None, "ground-2", 1),
        (("good", "unreachable"), None, "ground-2", 2),
        (("failed", "rolled back"), "wave 1: 1 of 1 failed", "ground-1", 1),
    ],
)
def test_a_model_is_pushed_again_where_a_device_was_off_and_given_up_where_a_wave_went_back(
    tmp_path: Path, states: tuple[Any, ...], stopped: str | None, current: str, pushes: int
) -> None:
    rollout = Rollout(tuple(Outcome(name, state) for name, state in zip(DEVICES, states, strict=True)), (), stopped)
    pushed: list[Path] = []

    def push(bundle: Path) -> Rollout:
        pushed.append(bundle)
        return rollout

    means = Means([Host(name, name) for name in DEVICES], lambda _folder: [], push, Terms())
    state = State("runs/ground-2", "runs/ground-2.edgeloop", 2, to_push=True, before=("run", "ground-1.edgeloop"))
    (tmp_path / STATE).write_bytes(msgspec.json.encode(state))
    done = once_round(tmp_path, means, QUIET)
    kept = msgspec.json.decode((tmp_path / STATE).read_bytes(), type=State)
    assert (Path(kept.bundle).stem, kept.to_push) == (current, pushes == 2)
    assert done.well == (states == ("good", "good"))
    once_round(tmp_path, means, QUIET)
    assert len(pushed) == pushes


@pytest.mark.long
def test_a_loop_cannot_be_begun_with_what_is_not_there_or_twice(
    run_folder: Path, first: Path, tmp_path: Path, edgeloop: Run
) -> None:
    work = tmp_path / "loop"
    for options, code, said in (
        (["--run", tmp_path / "none", "--bundle", first], 1, "no such run"),
        (["--run", run_folder, "--bundle", tmp_path / "ground-9.edgeloop"], 1, "no such bundle"),
        (["--run", run_folder, "--bundle", tmp_path / "ground.edgeloop"], 2, "NAME-VERSION"),
        (["--run", run_folder, "--bundle", tmp_path / "ground-1.2.edgeloop"], 2, "a whole number"),
        (["--run", run_folder], 2, "give both --run and --bundle"),
    ):
        done = edgeloop("loop", work, "pi@127.0.0.1:1", *options)
        assert (done.code, said in done.err, len(done.err.splitlines())) == (code, True, 1), done.err
    work.mkdir(exist_ok=True)
    (work / STATE).write_text('{"run": 1}')
    done = edgeloop("loop", work, "pi@127.0.0.1:1")
    assert (done.code, "loop.json: damaged" in done.err) == (1, True)
    done = edgeloop("loop", work, "pi@127.0.0.1:1", "--run", run_folder, "--bundle", first)
    assert "already started" in done.err
