"""Trains a classifier.

The stages of a training run are: load the data, compute the features, train the head, fine-tune the backbone, fit the
temperature, compute the metrics, and write the files.
"""

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
from edge_agent.preprocessing import PreprocessSpec
from edge_agent.progress_lines import Progress

from .backbones import Backbone, build_backbone, find_backbone, write_saved_model
from .backend import check_tensorboard, has_accelerator, memory_explained, start_keras, tensorboard_logs
from .data import MAX_UNREADABLE, SPLITS, Dataset, data_root, load_dataset, suspicious_labels
from .progress import CallbackConsole, status, track
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
    """A finished run: its directory and its accuracy on the test images, which were not used for training.

    Attributes:
        path: the run directory.
        test_accuracy: share of the test images that are classified correctly, 0 to 1.
        test_interval_95: 95 % confidence interval of the accuracy.
        test_images: number of test images.
    """

    path: Path
    test_accuracy: float
    test_interval_95: tuple[float, float]
    test_images: int


@dataclass(frozen=True)
class Reading:
    """Options for reading the data.

    Attributes:
        max_unreadable: maximum share of unreadable images, 0 to 1. Unreadable images are reported and left out; if
            there are more than this share, an error is raised.
        group_by: regular expression that is searched for in each image path; images with the same matched text are
            put into the same split.
        split_from: an earlier run. Images that it contains keep the split they had in that run.
        cache: folder of the pixel cache; None for the user's cache folder.
    """

    max_unreadable: float = MAX_UNREADABLE
    group_by: str | None = None
    split_from: Path | None = None
    cache: Path | None = None


def train(
    data: str | Path,
    out: str | Path,
    recipe: Recipe = Recipe(),
    *,
    console: Console | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    on_message: Callable[[str], object] | None = None,
    reading: Reading = Reading(),
    team: Team = ALONE,
    resume: bool = False,
    tensorboard: Path | None = None,
) -> TrainedRun:
    """Train a classifier and write the run directory.

    Args:
        data: a folder that contains a folder for each class; a folder with the subfolders train, val and test, each
            of which contains a folder for each class; or a CSV file.
        out: the run directory to create; must not exist.
        recipe: training options.
        console: Rich console that shows progress and messages. If given, ``on_progress`` and ``on_message`` are not
            called.
        on_progress: called with the progress of each stage.
        on_message: called with each message, for example a finding about the images. A message is one line of plain
            text.
        reading: options for reading the data.
        team: the processes that train together. This process must be the leader; the other processes call `assist`.
        resume: continue the interrupted training of this run.
        tensorboard: folder for TensorBoard logs; None for no logs.

    Raises:
        DataError: a model cannot be trained on the data, ``out`` exists, or there is nothing to resume.
        ConfigError: an option cannot be fulfilled, for example because the backbone does not have the requested
            weights.
        MissingExtraError: a required package is not installed.
        ResourceError: out of memory, or another process of the team was lost.
    """
    started = time.monotonic()
    data, out = Path(data), Path(out)
    console = console or CallbackConsole(on_progress, on_message)
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
            indices = np.concatenate([splits["val"], splits["test"]])
            # The features come from the pretrained backbone. If fine-tuning did not improve the classifier, the
            # backbone is unchanged, and the head can be applied to these features directly.
            network, inputs = (classifier, dataset.pixels) if checkpoint.best_epoch else (head, features)
            logits = predict(network, inputs, indices, batch)
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
            recipe=_recipe_summary(setup),
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
    """Train together with the team's leader, using the same data and recipe. This process writes no files.

    Raises:
        The same errors as `train`.
    """
    console = Console(quiet=True)
    setup = _set_up(data, recipe, reading, team, console)
    with memory_explained(recipe.batch_size):
        _fine_tune(
            setup, Checkpoint(0, (), setup.classifier.get_weights(), np.zeros(len(setup.splits["val"]))), console
        )


@dataclass(frozen=True, eq=False)
class _Setup:
    """The data and the network, ready for training."""

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
    _print_summary(dataset, console)
    if backbone.int8:
        _print_line(console, f"{recipe.backbone}: {backbone.int8}")
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
    """Continue fine-tuning from the leader's checkpoint, and return the last checkpoint."""
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
    """Return the weight in the loss of one image of each class.

    An image of a rare class gets a larger weight, so that the total weight of the images is the same for every class.
    The mean weight over all images is 1.

    Args:
        truth: (n,) int, class index of each training image.
        classes: number of classes.

    Returns:
        (classes,) float32.
    """
    counts = np.bincount(truth, minlength=classes)
    weights: npt.NDArray[np.float32] = (counts.sum() / (classes * counts)).astype(np.float32)
    return weights


def with_temperature(base: keras.Model, head: keras.Model, temperature: float) -> keras.Model:
    """Return the final model, which maps pixels to softmax scores.

    The weights of its last layer are divided by the temperature, so that the scores are calibrated.
    """
    import keras

    kernel, bias = head.get_layer("logits").get_weights()
    scores = keras.layers.Dense(len(bias), activation="softmax", name="scores")
    model = keras.Model(base.input, scores(base.output), name="classifier")
    scores.set_weights([kernel / temperature, bias / temperature])
    return model


def _print_summary(dataset: Dataset, console: Console) -> None:
    """Print the number of images and classes of the dataset, and its findings."""
    counts = {split: len(dataset.indices(split)) for split in SPLITS}
    _print_line(
        console,
        f"{len(dataset.photos)} images, {len(dataset.labels)} classes: "
        f"{counts['train']} for training, {counts['val']} for validation, {counts['test']} for testing",
    )
    for finding in dataset.findings:
        _print_line(console, f"{finding.kind}: {finding.message}")


def _print_line(console: Console, line: str) -> None:
    # Rich must not interpret markup, because messages contain names of files and classes.
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _recipe_summary(setup: _Setup) -> dict[str, str]:
    """Return the training options as text for the report."""
    recipe, settled = setup.plan.recipe, setup.plan
    summary = {
        "backbone": recipe.backbone,
        "int8": setup.backbone.int8 or "unknown",
        "input": f"{settled.size[1]}x{settled.size[0]} pixels, {recipe.fit}",
        "trained": f"head, then the top {settled.share:.0%} of the backbone" if settled.epochs else "head only",
    }
    if settled.epochs:
        summary["fine-tuning"] = (
            f"at most {settled.epochs} epochs, {recipe.batch_size} images per step, "
            f"learning rate {settled.learning_rate:g}, augmentation {recipe.augment:g}"
        )
    return summary | {"seed": str(recipe.seed)}


def _record(setup: _Setup, created: datetime, data: Path, took_s: float) -> dict[str, Any]:
    """Return the content of `run.json`, which identifies the run and contains what is needed to reproduce it."""
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
