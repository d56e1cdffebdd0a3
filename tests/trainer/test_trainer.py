"""Training as a whole: what a run holds, that it learns what is there and nothing else, on every backend."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_agent.errors import ConfigError, DataError, MissingExtraError, ResourceError
from edge_agent.native_stderr import native_noise_hidden
from trainer.backbones import find_backbone
from trainer.backend import memory_explained
from trainer.evaluation import evaluate
from trainer.pipeline import Reading, class_weights, train
from trainer.training.recipe import Recipe, plan, room_for

from ..conftest import CLASSES, QUIET, Run
from ..support.small_network import small_backbone

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small() -> Iterator[dict[str, Any]]:
    """Arguments of a `Recipe` for a network that is trained in seconds."""
    with small_backbone() as name:
        yield {"backbone": name, "weights": "none", "image_size": 32}


# --- the run ---


@pytest.mark.slow
def test_a_run_holds_everything_the_design_promises(efficientnet_run: Path, photo_folder: Path) -> None:
    assert sorted(os.listdir(efficientnet_run)) == [
        "history.csv",
        "labels.txt",
        "metrics.json",
        "model.keras",
        "preprocess.json",
        "report.html",
        "run.json",
        "split.csv",
    ]
    assert (efficientnet_run / "labels.txt").read_text() == "brick\ngrass\nstars\n"
    record = json.loads((efficientnet_run / "run.json").read_text())
    assert record["backbone"] == "efficientnet-lite0"
    assert record["parent"] is None
    assert record["data"]["pictures"] == 60
    with (efficientnet_run / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    for row in rows[::7]:
        assert hashlib.sha256((photo_folder / row["path"]).read_bytes()).hexdigest() == row["sha256"]
    assert json.loads((efficientnet_run / "metrics.json").read_text())["test"]["accuracy"] >= 0.8
    with (efficientnet_run / "history.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file) if row["phase"] == "head"]
    assert losses[-1] < losses[0] / 2


def test_an_existing_run_is_never_overwritten(photo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").touch()
    with pytest.raises(DataError, match="already exists"):
        train(photo_folder, tmp_path / "run", Recipe(), console=QUIET)
    assert os.listdir(tmp_path / "run") == ["precious"]


@pytest.mark.long
def test_a_training_that_fails_at_its_end_keeps_what_it_learnt(
    small: dict[str, Any], photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    recipe = Recipe(**small, fine_tune="none")
    with monkeypatch.context() as patch:
        patch.setattr("trainer.pipeline.write_report", full)
        with pytest.raises(OSError, match="No space"):
            train(photo_folder, tmp_path / "run", recipe, console=QUIET)
    assert os.listdir(tmp_path) == [".run.unfinished"]
    train(photo_folder, tmp_path / "run", recipe, console=QUIET, resume=True)
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.long
def test_the_same_seed_trains_the_same_model(small: dict[str, Any], photo_folder: Path, tmp_path: Path) -> None:
    histories = []
    for name in ("one", "two"):
        train(photo_folder, tmp_path / name, Recipe(**small, epochs=2, seed=4), console=QUIET)
        histories.append((tmp_path / name / "history.csv").read_text())
    assert histories[0] == histories[1]
    assert histories[0].count("fine-tune") == 2


@pytest.mark.long
def test_the_figures_of_a_fine_tuned_run_are_those_of_the_model_it_holds(
    small: dict[str, Any], photo_folder: Path, tmp_path: Path
) -> None:
    train(photo_folder, tmp_path / "run", Recipe(**small, epochs=4, batch_size=8), console=QUIET)
    said = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    found = evaluate(tmp_path / "run", photo_folder, console=QUIET)
    assert found.evaluation.accuracy == said["accuracy"]
    assert found.evaluation.log_loss == pytest.approx(said["log_loss"], rel=1e-4)


def test_the_command_line_refuses_bad_data_in_one_line(edgeloop: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    ran = edgeloop("train", tmp_path / "data", "--out", tmp_path / "run")
    assert ran.code == 1
    assert "no class folders" in ran.line
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.long
def test_a_run_may_keep_the_split_of_an_earlier_one(
    small: dict[str, Any], run_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(photo_folder, tmp_path / "data"))
    for label in CLASSES:
        image = cv2.imread(str(data / label / "00.jpg"))
        assert image is not None
        cv2.imwrite(str(data / label / "new.png"), image[::-1])
    recipe = Recipe(**small, fine_tune="none")
    train(data, tmp_path / "run", recipe, console=QUIET, reading=Reading(split_from=run_folder))
    earlier, later = (split_of(run) for run in (run_folder, tmp_path / "run"))
    assert len(later) == len(earlier) + 3
    assert earlier.items() <= later.items()


def split_of(run: Path) -> dict[str, str]:
    with (run / "split.csv").open(newline="") as file:
        return {row["sha256"]: row["split"] for row in csv.DictReader(file)}


# --- what is learnt ---


def write_noise(folder: Path, split: str, label: str, number: int, *, lighter: int = 0) -> None:
    """An image of noise that nothing but its number decides."""
    target = folder / split / label
    target.mkdir(parents=True, exist_ok=True)
    rough = np.random.default_rng(number).integers(20, 200, (8, 8, 3), np.uint8) + np.uint8(lighter)
    cv2.imwrite(str(target / f"{number}.png"), cv2.resize(rough, (40, 40), interpolation=cv2.INTER_NEAREST))


@pytest.mark.long
def test_32_images_can_be_learnt_by_heart() -> None:
    with native_noise_hidden():
        import keras

        from trainer.backbones import build_backbone
        from trainer.training.batches import Batches
        from trainer.training.fine_tune import compiled_student
        from trainer.training.head import new_head

    recipe = Recipe(augment=0, learning_rate=1e-3, batch_size=16, epochs=40)
    settled = plan(recipe, find_backbone(recipe.backbone), 32, 32, accelerated=False)
    rough = np.random.default_rng(0).integers(0, 256, (32, 6, 6, 3), np.uint8)
    images = np.stack([cv2.resize(one, settled.room, interpolation=cv2.INTER_NEAREST) for one in rough])
    batches = Batches(images, np.arange(32), np.arange(32) % 2, size=16, classes=2, seed=0)
    keras.utils.set_random_seed(0)
    with native_noise_hidden():
        base = build_backbone(recipe.backbone, settled.size)
        student, *_ = compiled_student(base, new_head(1280, 2), settled, np.ones(2, np.float32), steps_per_epoch=2)
        fitted = student.fit(batches.for_fit(0), steps_per_epoch=2, epochs=40, shuffle=False, verbose=0)
    # Smoothed labels, 0.95 and 0.05, cannot be met with less than their entropy, 0.199.
    losses = fitted.history["loss"]
    assert losses[0] > 0.5
    assert 0.198 < losses[-1] < 0.3


@pytest.mark.long
def test_what_is_learnt_is_smoothed_mixed_and_weighed_by_class() -> None:
    with native_noise_hidden():
        from trainer.backbones import build_backbone
        from trainer.training.fine_tune import compiled_student
        from trainer.training.head import new_head

    weights = np.array([0.5, 2], np.float32)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 37, 37, 3), np.uint8)
    truth = np.eye(2, dtype=np.float32)[np.arange(16) % 2]
    smooth = (truth * 0.9 + 0.05) * weights
    base, head = build_backbone("efficientnet-lite0", (32, 32), weights="none"), new_head(1280, 2)
    for augment in (0.0, 1.0):
        settled = plan(Recipe(augment=augment), find_backbone("efficientnet-lite0"), 32, 16, accelerated=False)
        student, *_ = compiled_student(base, head, settled, weights, steps_per_epoch=1)
        outputs = [np.asarray(student({"pixels": pixels, "truth": truth}, training=True)) for _ in range(6)]
        assert outputs[0].shape == (16, 4)
        plain = [np.allclose(one[:, 2:], smooth, atol=1e-6) for one in outputs]
        # Mixed in half of the batches, with a neighbour, which here is of the other class.
        assert all(plain) if not augment else 0 < sum(plain) < 6
        assert all((one[:, 2:] / weights).sum(axis=1) == pytest.approx(1, abs=1e-5) for one in outputs)


@pytest.mark.long
def test_a_leak_into_the_test_stands_in_the_verdict(small: dict[str, Any], photo_folder: Path, tmp_path: Path) -> None:
    for label in CLASSES:
        for number, path in enumerate(sorted((photo_folder / label).iterdir())):
            split = "val" if number % 4 == 0 else "train"
            (tmp_path / "data" / split / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "data" / split / label)
            if split == "train" and number < 10:
                (tmp_path / "data" / "test" / label).mkdir(parents=True, exist_ok=True)
                image = cv2.imread(str(path))
                assert image is not None
                # A little lighter, so no exact copy.
                cv2.imwrite(str(tmp_path / "data" / "test" / label / path.name), cv2.convertScaleAbs(image, alpha=1.1))
    train(tmp_path / "data", tmp_path / "run", Recipe(**small, fine_tune="none"), console=QUIET)
    verdict = (tmp_path / "run" / "report.html").read_text().split("<h2", 1)[0]
    assert "21" in verdict
    assert "near duplicate" in verdict


@pytest.mark.long
def test_labels_that_mean_nothing_teach_nothing(small: dict[str, Any], tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    for split, count in (("train", 120), ("val", 30), ("test", 150)):
        for number in range(count):
            write_noise(tmp_path / "data", split, f"class{random.integers(3)}", hash((split, number)) % 2**32)
    run = train(tmp_path / "data", tmp_path / "run", Recipe(**small, epochs=2), console=QUIET)
    # Chance is a third; three standard deviations of it on 150 images are 0.12.
    assert 1 / 3 - 0.12 < run.test_accuracy < 1 / 3 + 0.12


def test_scores_are_calibrated_by_the_time_they_are_saved(run_folder: Path) -> None:
    with native_noise_hidden():
        import keras

        model = keras.saving.load_model(run_folder / "model.keras")
    names = [layer.name for layer in model.layers]
    assert names[-2:] == ["features", "scores"], "no dropout, no augmentation, no temperature layer"
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert metrics["temperature"] != 1


@pytest.mark.parametrize("backend", [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("jax", "torch")])
def test_other_backends_train_as_well_and_their_model_says_the_same_here(
    backend: str, photo_folder: Path, small_weights: Path, tmp_path: Path, edgeloop: Run
) -> None:
    run = tmp_path / "run"
    arguments = ("train", photo_folder, "--out", run, "--backbone", "small-network", "--weights", small_weights)
    trained = subprocess.run(
        [sys.executable, "-m", "tests.support.small_network", *map(str, arguments), "--fine-tune", "none"],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert trained.returncode == 0, trained.stderr
    assert json.loads((run / "run.json").read_text())["versions"]["backend"].startswith(backend)
    there = json.loads((run / "metrics.json").read_text())["test"]
    assert there["accuracy"] >= 8 / 9
    ran = edgeloop("evaluate", run, photo_folder, "--json")
    assert ran.code == 0, ran.err
    here = json.loads(ran.out)
    assert here["accuracy"] == there["accuracy"]
    assert here["log_loss"] == pytest.approx(there["log_loss"], abs=2e-3)


# --- the choices ---


@pytest.mark.parametrize(("images", "epochs"), [(20, 20), (400, 20), (800, 10), (2_000, 4), (300_000, 4)])
def test_how_long_is_trained_follows_from_the_number_of_images(images: int, epochs: int) -> None:
    settled = plan(Recipe(), find_backbone("efficientnet-lite0"), 224, images, accelerated=False)
    assert settled.epochs == epochs
    assert 3 <= settled.patience <= 10
    assert settled.room == (256, 256)
    assert not settled.mixed


def test_what_is_not_fine_tuned_needs_no_room() -> None:
    lite0 = find_backbone("efficientnet-lite0")
    assert room_for(Recipe(fine_tune="none"), lite0, 224) is None
    assert plan(Recipe(fine_tune="none"), lite0, 224, 100, accelerated=False).epochs == 0
    assert room_for(Recipe(fine_tune="none", weights="none"), lite0, 224) == (256, 256)


def test_rare_classes_count_as_much_as_common_ones() -> None:
    truth = np.array([0] * 30 + [1] * 10)
    weights = class_weights(truth, 2)
    assert weights[0] * 30 == pytest.approx(weights[1] * 10)
    assert weights[truth].mean() == pytest.approx(1)


@pytest.fixture(scope="module")
def thaw() -> Any:
    with native_noise_hidden():
        from trainer.training.fine_tune import thaw as function
    return function


@pytest.mark.parametrize(("share", "batch_norms"), [(1.0, False), (0.5, False), (0.0, False), (1.0, True)])
def test_layers_learn_from_the_top_and_batch_norms_rest(thaw: Any, share: float, *, batch_norms: bool) -> None:
    import keras

    inside = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()])
    base = keras.Sequential(
        [keras.Input((8, 8, 3)), inside, keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()]
    )
    thaw(base, share, batch_norms=batch_norms)
    convolutions = [inside.layers[0].trainable, base.layers[1].trainable]
    assert convolutions == [share == 1, share > 0]
    assert [inside.layers[1].trainable, base.layers[2].trainable] == [batch_norms, batch_norms]


def test_no_such_backbone_is_wrong_use(photo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="efficientnet-lite0"):
        train(photo_folder, tmp_path / "run", Recipe(backbone="efficientnet-light0"), console=QUIET)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.needs("tensorboard")
def test_tensorboard_gets_the_figures_of_every_epoch(small: dict[str, Any], photo_folder: Path, tmp_path: Path) -> None:
    train(photo_folder, tmp_path / "run", Recipe(**small, epochs=2), console=QUIET, tensorboard=tmp_path / "logs")
    wanted = {"train": (b"epoch_loss", b"epoch_learning_rate"), "validation": (b"epoch_loss", b"epoch_accuracy")}
    for folder, names in wanted.items():
        (events,) = (tmp_path / "logs" / folder).iterdir()
        assert [events.read_bytes().count(name) for name in names] == [2, 2], folder


def test_tensorboard_is_asked_for_before_anything_is_trained(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.backend.find_spec", lambda name: None if name == "tensorboard" else object())
    with pytest.raises(MissingExtraError, match=r"edgeloop\[tensorboard\]"):
        train(photo_folder, tmp_path / "run", Recipe(), console=QUIET, tensorboard=tmp_path / "logs")
    assert os.listdir(tmp_path) == []


# --- memory ---


def test_out_of_memory_names_the_flag() -> None:
    with native_noise_hidden():
        import keras

    with pytest.raises(ResourceError, match="40 images per step; use a smaller --batch-size"), memory_explained(40):
        keras.ops.ones((2**24, 2**24))


def test_other_failures_are_not_called_out_of_memory() -> None:
    with pytest.raises(KeyError), memory_explained(8):
        raise KeyError("x")
    with pytest.raises(ResourceError, match="8 images per step"), memory_explained(8):
        raise MemoryError
    with pytest.raises(ResourceError, match="batch-size"), memory_explained(8):
        raise ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
