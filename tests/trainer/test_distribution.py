"""Several processes train one model: the same losses as one process with the whole batch."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edge_agent.errors import ConfigError
from trainer.training.batches import Batches
from trainer.training.checkpoint import Unfinished, unfinished_path
from trainer.training.distribution import form_team

ARGUMENTS = ("--image-size", "32", "--fine-tune", "top", "--batch-size", "16", "--epochs", "3")
"""Pretrained and its batch norms at rest: from random weights the least rounding grows within a few steps."""


def start(data: Path, out: Path, distribute: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edge_agent.cli", "train", str(data), "--out", str(out), *ARGUMENTS]
    return subprocess.Popen(
        [*command, "--distribute", distribute, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # One core each, as on machines of their own.
        env={**os.environ, "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"},
    )


def losses(run: Path) -> list[float]:
    with (run / "history.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["phase"] == "fine-tune"]
    return [float(row[name]) for row in rows for name in ("loss", "val_loss")]


@pytest.fixture(scope="module")
def alone(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with the whole batch."""
    out = tmp_path_factory.mktemp("alone") / "run"
    process = start(photo_folder, out, "devices")
    said = process.communicate(timeout=280)[0]
    assert process.returncode == 0, said
    return out


@pytest.mark.long
@pytest.mark.needs("jax")
@pytest.mark.timeout(600)
def test_two_processes_train_to_the_losses_of_one_even_when_one_is_killed_and_both_go_on(
    alone: Path, photo_folder: Path, tmp_path: Path, free_port: int
) -> None:
    out = tmp_path / "run"
    team = [start(photo_folder, out, f"127.0.0.1:{free_port},{rank}/2") for rank in range(2)]
    unfinished = Unfinished(unfinished_path(out))
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and all(process.poll() is None for process in team):
        reached = unfinished.load()
        if reached is not None and reached.epoch >= 1:
            break
        time.sleep(0.02)
    team[1].kill()
    said = team[0].communicate(timeout=120)[0]
    team[1].communicate()
    assert team[0].returncode == 1, said
    assert said.strip().splitlines()[-1] == (
        "edgeloop: another process of the training was lost; start all of them again with --resume"
    )
    assert not out.exists()

    again = [start(photo_folder, out, f"127.0.0.1:{free_port},{rank}/2", "--resume") for rank in range(2)]
    said_again = [process.communicate(timeout=280)[0] for process in again]
    assert [process.returncode for process in again] == [0, 0], said_again
    assert losses(out) == pytest.approx(losses(alone), rel=1e-3)
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("where", ["", "gpus", "host,0/2", "host:1,2/2", "host:1,0/0", "host:1,-1/2"])
def test_places_that_are_none_are_refused(where: str) -> None:
    with pytest.raises(ConfigError, match=r"HOST:PORT,RANK/COUNT"):
        form_team(where)


@pytest.mark.slow
@pytest.mark.needs("jax")
def test_all_devices_of_a_machine_share_every_batch() -> None:
    code = "from trainer.training.distribution import form_team; print(form_team('devices').devices)"
    said = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=3"},
    )
    assert said.stdout == "3\n"
    rows = np.arange(20)
    batches = Batches(rows, rows, rows % 2, size=16, classes=2, seed=0, devices=3)
    assert [len(images) for images, _ in batches.epoch(0)] == [15]
    with pytest.raises(ConfigError, match="24 devices, but only 20 images per step; raise --batch-size"):
        Batches(rows, rows, rows % 2, size=32, classes=2, seed=0, devices=24)
