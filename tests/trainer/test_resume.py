"""A training that is interrupted, by whatever, goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edge_agent.errors import DataError
from trainer.training.checkpoint import Checkpoint, Unfinished, check_unfinished, unfinished_path, unfinished_training

from ..support.processes import interruptible

ROOT = Path(__file__).parents[2]

ARGUMENTS = (
    *("--backbone", "small-network", "--weights", "none", "--image-size", 32),
    *("--epochs", 8, "--seed", 4, "--batch-size", 4),
)
COMMAND = [sys.executable, "-m", "tests.support.small_network", "train"]


def checkpoint(epoch: int = 0, **changes: object) -> Checkpoint:
    row = {"phase": "head", "loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5}
    start = Checkpoint(0, (row,), [np.ones(3, np.float32)], np.ones(4))
    for number in range(1, epoch + 1):
        later = {**row, "phase": "fine-tune", "val_loss": 1.0 - 0.1 * number, **changes}
        losses = np.full(4, later["val_loss"])
        start = start.after(number, later, losses, [np.full(2, number)], [np.full(3, number, np.float32)])
    return start


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    unfinished_path(tmp_path / "run").mkdir()
    Unfinished(unfinished_path(tmp_path / "run")).save(checkpoint(2))
    with unfinished_training(tmp_path / "run", {"seed": 1}) as unfinished:
        found = unfinished.load()
        assert found is not None
        assert (found.epoch, found.best_epoch, found.lowest.tolist()) == (2, 2, [0.8] * 4)
        assert [row["phase"] for row in found.history] == ["head", "fine-tune", "fine-tune"]
        assert found.best[0].tolist() == [2, 2, 2]
        assert found.state[0].tolist() == [2, 2]
    assert not unfinished_path(tmp_path / "run").exists()


def test_a_worse_epoch_does_not_replace_the_best() -> None:
    best = checkpoint(1)
    later = best.after(2, {"phase": "fine-tune", "val_loss": 2.0}, np.full(4, 2.0), [], [np.zeros(3, np.float32)])
    assert (later.epoch, later.best_epoch, later.epochs_since_best) == (2, 1, 1)
    assert later.best[0].tolist() == [1, 1, 1]
    assert later.kept == 1


def after(start: Checkpoint, losses: list[float]) -> Checkpoint:
    row = {"phase": "fine-tune", "val_loss": float(np.mean(losses))}
    return start.after(start.epoch + 1, row, np.array(losses), [], [])


def test_the_latest_epoch_that_validation_cannot_tell_from_the_best_is_kept() -> None:
    best = after(checkpoint(0), [0.2, 0.6, 0.4, 0.6])
    # Worse by 0.1 on average, give or take 0.15: who knows.
    as_good = after(best, [0.7, 0.4, 0.5, 0.6])
    assert as_good.best_epoch == 2
    # Worse by 0.1 on every image: worse; and better by a little: better.
    assert after(best, [0.3, 0.7, 0.5, 0.7]).best_epoch == 1
    assert after(best, [0.19, 0.6, 0.4, 0.6]).best_epoch == 2
    # Small steps down do not add up: each is held against the lowest of all.
    assert after(as_good, [0.8, 0.9, 0.7, 0.9]).best_epoch == 2


def test_two_validation_images_decide_nothing_but_that_a_training_diverged() -> None:
    start = Checkpoint(0, (), [], np.zeros(2))
    assert after(start, [1.0, 1.0]).best_epoch == 1
    diverged = after(start, [np.nan, np.nan])
    assert diverged.best_epoch == 0
    assert diverged.lowest.tolist() == [0, 0]
    assert after(checkpoint(0), [np.nan] * 4).best_epoch == 0


@pytest.mark.parametrize("cut", [0, 10, 300, -20])
def test_a_damaged_checkpoint_is_refused_in_words(tmp_path: Path, cut: int) -> None:
    unfinished = Unfinished(tmp_path)
    unfinished.save(checkpoint(1))
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="damaged checkpoint"):
        unfinished.load()


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    bomb = np.array(Bomb(tmp_path / "exploded"), dtype=object)
    np.savez(tmp_path / "checkpoint.npz", record=bomb)
    with pytest.raises(DataError, match="damaged checkpoint"):
        Unfinished(tmp_path).load()
    assert not (tmp_path / "exploded").exists()


def test_other_choices_are_all_named(tmp_path: Path) -> None:
    unfinished_path(tmp_path / "run").mkdir()
    (unfinished_path(tmp_path / "run") / "choices.json").write_text('{"seed": 1, "fit": "crop", "augment": 1.0}')
    wanted = "seed was 1, is 2, fit was crop, is stretch"
    with (
        pytest.raises(DataError, match=wanted),
        unfinished_training(tmp_path / "run", {"seed": 2, "fit": "stretch", "augment": 1.0}),
    ):
        pass


def test_two_trainings_of_one_run_do_not_meet(tmp_path: Path) -> None:
    with unfinished_training(tmp_path / "run", {}):
        with pytest.raises(DataError, match="another process"), unfinished_training(tmp_path / "run", {}):
            pass
        assert unfinished_path(tmp_path / "run").exists()


def test_nothing_is_resumed_or_overwritten_unasked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to resume"):
        check_unfinished(tmp_path / "run", resume=True)
    unfinished_path(tmp_path / "run").mkdir()
    with pytest.raises(DataError, match="continue with --resume"):
        check_unfinished(tmp_path / "run", resume=False)


def train(photos: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """`edgeloop train` of the small network, in a process of its own."""
    command = [*COMMAND, str(photos), "--out", str(out), *map(str, ARGUMENTS), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="module")
def uninterrupted(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    ran = train(photo_folder, out)
    assert ran.returncode == 0, ran.stderr
    return out


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_an_interrupted_training_goes_on_to_the_same_result(
    how: signal.Signals, uninterrupted: Path, photo_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = interruptible([*COMMAND, str(photo_folder), "--out", str(out), *map(str, ARGUMENTS)])
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    unfinished = Unfinished(unfinished_path(out))
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        reached = unfinished.load()
        if reached is not None and reached.epoch >= 1:
            break
        time.sleep(0.02)
    process.send_signal(how)
    try:
        said = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert not out.exists(), "it was faster than the signal; give it more epochs"
    reached = unfinished.load()
    assert reached is not None
    assert reached.epoch >= 1
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert said.strip().splitlines()[-1] == "edgeloop: interrupted; continue with the same command and --resume"

    refused = train(photo_folder, out)
    assert refused.returncode == 1
    assert "--resume" in refused.stderr.splitlines()[-1]
    ran = train(photo_folder, out, "--resume")
    assert ran.returncode == 0, ran.stderr
    assert os.listdir(tmp_path) == ["run"]
    assert (out / "history.csv").read_text() == (uninterrupted / "history.csv").read_text()
    metrics = [json.loads((path / "metrics.json").read_text())["test"] for path in (out, uninterrupted)]
    assert metrics[0] == metrics[1]
