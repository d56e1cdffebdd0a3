"""Photographs to a run, read top to bottom: data, features, head, fine-tuning, temperature, figures, files."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

import edge_agent
from edge_agent.inference.evaluation import Evaluation
from edge_agent.native_stderr import native_noise_hidden
from edge_agent.preprocess import PreprocessSpec

from .backbones import Backbone, build_backbone, find_backbone, write_saved_model
from .backend import check_tensorboard, has_accelerator, memory_explained, start_keras, tensorboard_logs
from .data import MAX_UNREADABLE, SPLITS, Dataset, data_root, load_dataset, suspicious_labels
from .progress import status, track
from .report import ReportData, figures, write_report
from .run_writer import FORMAT, new_run, read_split, refuse_existing, write_history, write_inputs, write_json
from .training.checkpoint import Checkpoint, check_unfinished, unfinished_training
from .training.distribution import ALONE, Team, agree
from .training.recipe import Plan, Recipe, plan, room_for
from .training.temperature_scaling import fit_temperature, softmax

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class TrainedRun:
    """The directory written, and how good its model is on images it never saw."""

    path: Path
    test_accuracy: float
    test_interval_95: tuple[float, float]
    test_images: int


@dataclass(frozen=True)
class Reading:
    """How the data is read.

    Attributes:
        max_unreadable: share of the images that may be unreadable; those are named and left out.
        group_by: pattern in image paths; images with the same match stay in one split.
        split_from: an earlier run, whose images keep their splits.
        cache: folder of the pixel cache; the user's own cache folder when None.
    """

    max_unreadable: float = MAX_UNREADABLE
    group_by: str | None = None
    split_from: Path | None = None
    cache: Path | None = None


def train(
    data: Path,
    out: Path,
    recipe: Recipe,
    *,
    console: Console,
    reading: Reading = Reading(),
    team: Team = ALONE,
    resume: bool = False,
    tensorboard: Path | None = None,
) -> TrainedRun:
    """Train a classifier and write the run directory.

    Args:
        data: a folder per class, train/val/test folders of those, or a CSV file.
        out: the run directory to make; must not exist.
        recipe: the choices.
        console: where progress goes.
        reading: how the data is read.
        team: the processes that train together; this one leads, the others call `assist`.
        resume: go on with this run's interrupted training.
        tensorboard: where TensorBoard logs go, if anywhere.

    Raises:
        DataError: the data cannot be trained on, ``out`` exists, or there is nothing to resume.
        ConfigError: a choice that cannot be met, such as weights without a network.
        MissingExtraError: a package that is needed is not installed.
        ResourceError: memory ran out, or another process of the team is gone.
    """
    started = time.monotonic()
    refuse_existing(out)
    check_unfinished(out, resume=resume)
    if tensorboard:
        check_tensorboard()
    setup = _set_up(data, recipe, reading, team, console)
    dataset, truth, splits = setup.dataset, setup.truth, setup.splits
    base, head, classifier, batch = setup.base, setup.head, setup.classifier, recipe.batch_size

    from .training.batches import predict
    from .training.features import frozen_features
    from .training.head import fit_head

    choices = {**asdict(recipe), "data": dataset.fingerprint}
    with memory_explained(batch), unfinished_training(out, choices) as unfinished:
        features = frozen_features(
            base, dataset.pixels, len(truth), batch_size=batch, folder=unfinished.path, console=console
        )
        checkpoint = unfinished.load()
        if checkpoint is None:
            losses, rows = fit_head(
                head, features, truth, splits, setup.class_weights, seed=recipe.seed, console=console
            )
            checkpoint = Checkpoint(0, tuple(rows), classifier.get_weights(), losses)
            unfinished.save(checkpoint)
        checkpoint = _fine_tune(setup, checkpoint, console, keep=unfinished.save, tensorboard=tensorboard)
        classifier.set_weights(checkpoint.best)

        val = len(splits["val"])
        with status(console, "Evaluating the model"), native_noise_hidden():
            judged = np.concatenate([splits["val"], splits["test"]])
            # Features are of the backbone as it was; they save a pass over the images where it stayed so.
            network, inputs = (classifier, dataset.pixels) if checkpoint.best_epoch else (head, features)
            logits = predict(network, inputs, judged, batch)
            suspicious = suspicious_labels(features, truth, dataset.photos, dataset.labels, seed=recipe.seed)
        temperature = fit_temperature(logits[:val], truth[splits["val"]])
        scores = softmax(logits / temperature).astype(np.float32)
        model = with_temperature(base, head, temperature)
        took_s = time.monotonic() - started
        story = ReportData(
            dataset=replace(dataset, findings=(*dataset.findings, *([suspicious] if suspicious else []))),
            history=checkpoint.history,
            kept=checkpoint.kept,
            tested=splits["test"],
            test=Evaluation(dataset.labels, truth[splits["test"]], scores[val:]),
            val=Evaluation(dataset.labels, truth[splits["val"]], scores[:val]),
            temperature=temperature,
            features=features,
            model=model,
            subject=f"training of {out.name}",
            recipe=_in_words(setup),
            took_s=took_s,
            channels=setup.spec.channels,
        )
        created = datetime.now(UTC)
        with status(console, "Writing the run and its report"), new_run(out) as folder:
            write_inputs(folder, dataset, setup.spec)
            write_history(folder, checkpoint.history)
            write_json(folder, "metrics.json", figures(story))
            with native_noise_hidden():
                if setup.backbone.self_contained:
                    model.save(folder / "model.keras")
                else:
                    write_saved_model(model, folder / "saved_model")
                write_report(folder / "report.html", story)
            write_json(folder, "run.json", _record(setup, created, data, took_s))
    return TrainedRun(out, story.test.accuracy, story.test.interval_95, len(splits["test"]))


def assist(data: Path, recipe: Recipe, *, team: Team, reading: Reading = Reading()) -> None:
    """Train along with the team's leader, on the same data and recipe; nothing is written here.

    Raises:
        As `train`.
    """
    console = Console(quiet=True)
    setup = _set_up(data, recipe, reading, team, console)
    with memory_explained(recipe.batch_size):
        _fine_tune(
            setup, Checkpoint(0, (), setup.classifier.get_weights(), np.zeros(len(setup.splits["val"]))), console
        )


@dataclass(frozen=True, eq=False)
class _Setup:
    """Data and network, ready to learn."""

    backbone: Backbone
    spec: PreprocessSpec
    dataset: Dataset
    truth: npt.NDArray[np.intp]
    splits: dict[str, npt.NDArray[np.intp]]
    class_weights: npt.NDArray[np.float32]
    plan: Plan
    base: keras.Model
    head: keras.Model
    classifier: keras.Model
    team: Team


def _set_up(data: Path, recipe: Recipe, reading: Reading, team: Team, console: Console) -> _Setup:
    backbone = find_backbone(recipe.backbone)
    side = recipe.image_size or backbone.default_size
    spec = PreprocessSpec((side, side), fit=recipe.fit)
    dataset = load_dataset(
        data,
        spec,
        room=room_for(recipe, backbone, side),
        cache=reading.cache,
        max_unreadable=reading.max_unreadable,
        group_by=reading.group_by,
        frozen=read_split(reading.split_from) if reading.split_from else None,
        console=console,
    )
    _tell_about(dataset, console)
    if backbone.int8:
        console.print(f"{recipe.backbone} in int8: {backbone.int8}", highlight=False)
    truth = np.array([dataset.labels.index(photo.label) for photo in dataset.photos], np.intp)
    splits = {split: np.array(dataset.indices(split), np.intp) for split in SPLITS}

    with status(console, "Starting Keras"):
        keras = start_keras()
    keras.utils.set_random_seed(recipe.seed)
    settled = plan(recipe, backbone, side, len(splits["train"]), accelerated=has_accelerator())
    base = build_backbone(
        recipe.backbone,
        spec.size,
        weights=recipe.weights,
        progress=lambda chunks, count: track(chunks, "Downloading weights", total=count, console=console),
    )
    from .training.head import new_head

    head = new_head(base.output.shape[-1], len(dataset.labels))
    classifier = keras.Model(base.input, head(base.output), name="classifier")
    weights = class_weights(truth[splits["train"]], len(dataset.labels))
    return _Setup(backbone, spec, dataset, truth, splits, weights, settled, base, head, classifier, team)


def _fine_tune(
    setup: _Setup,
    checkpoint: Checkpoint,
    console: Console,
    *,
    keep: Callable[[Checkpoint], None] = lambda _: None,
    tensorboard: Path | None = None,
) -> Checkpoint:
    """The fine-tuning that is left to do after a checkpoint of the leader's."""
    from .training.fine_tune import fine_tune

    checkpoint = agree(setup.team, checkpoint, setup.dataset.fingerprint)
    setup.classifier.set_weights(checkpoint.best)
    roomy, settled = setup.dataset.roomy, setup.plan
    if roomy is None or checkpoint.epoch >= settled.epochs or checkpoint.epochs_since_best >= settled.patience:
        return checkpoint
    with setup.team.watched():
        return fine_tune(
            setup.classifier,
            setup.base,
            setup.head,
            settled,
            roomy=roomy,
            pixels=setup.dataset.pixels,
            truth=setup.truth,
            splits=setup.splits,
            class_weights=setup.class_weights,
            team=setup.team,
            start=checkpoint,
            keep=keep,
            callbacks=[tensorboard_logs(tensorboard)] if tensorboard else [],
            console=console,
        )


def class_weights(truth: npt.NDArray[np.intp], classes: int) -> npt.NDArray[np.float32]:
    """What an image of each class counts, so that rare classes count as much as common ones; mean 1 over images."""
    counts = np.bincount(truth, minlength=classes)
    weights: npt.NDArray[np.float32] = (counts.sum() / (classes * counts)).astype(np.float32)
    return weights


def with_temperature(base: keras.Model, head: keras.Model, temperature: float) -> keras.Model:
    """The model to keep: pixels to softmax scores, the temperature folded into the last layer's weights."""
    import keras

    kernel, bias = head.get_layer("logits").get_weights()
    scores = keras.layers.Dense(len(bias), activation="softmax", name="scores")
    model = keras.Model(base.input, scores(base.output), name="classifier")
    scores.set_weights([kernel / temperature, bias / temperature])
    return model


def _tell_about(dataset: Dataset, console: Console) -> None:
    """What there is to learn from, and what is wrong with it."""
    counts = {split: len(dataset.indices(split)) for split in SPLITS}
    console.print(
        f"{len(dataset.photos)} images, {len(dataset.labels)} classes: "
        f"{counts['train']} to train, {counts['val']} to validate, {counts['test']} to test"
    )
    for finding in dataset.findings:
        console.print(f"{finding.kind}: {finding.message}", highlight=False, markup=False)


def _in_words(setup: _Setup) -> dict[str, str]:
    """The choices, for people."""
    recipe, settled = setup.plan.recipe, setup.plan
    said = {
        "backbone": recipe.backbone,
        "in int8": setup.backbone.int8 or "not known",
        "input": f"{settled.size[1]}x{settled.size[0]} pixels, {recipe.fit}",
        "learned": f"head, then the top {settled.share:.0%} of the backbone" if settled.epochs else "head only",
    }
    if settled.epochs:
        said["fine-tuning"] = (
            f"{settled.epochs} epochs at most, {recipe.batch_size} images a step, "
            f"learning rate {settled.learning_rate:g}, augmentation {recipe.augment:g}"
        )
    return said | {"seed": str(recipe.seed)}


def _record(setup: _Setup, created: datetime, data: Path, took_s: float) -> dict[str, Any]:
    """`run.json`: enough to know what this run is, and to make it again."""
    import keras

    dataset, recipe = setup.dataset, setup.plan.recipe
    return {
        "format": FORMAT,
        "id": f"{created:%Y%m%dT%H%M%SZ}-{dataset.fingerprint[:8]}",
        "created": f"{created:%Y-%m-%dT%H:%M:%SZ}",
        "took_s": round(took_s, 1),
        "backbone": recipe.backbone,
        "arguments": asdict(recipe),
        "plan": {name: value for name, value in asdict(setup.plan).items() if name != "recipe"},
        "data": {
            "root": os.fspath(data_root(data).resolve()),
            "pictures": len(dataset.photos),
            "fingerprint": dataset.fingerprint,
        },
        "parent": None,
        "versions": {
            "edgeloop": edge_agent.__version__,
            "python": platform.python_version(),
            "keras": version("keras"),
            "backend": f"{keras.backend.backend()} {version(keras.backend.backend())}",
            "numpy": version("numpy"),
            "opencv": version("opencv-python-headless"),
        },
    }
