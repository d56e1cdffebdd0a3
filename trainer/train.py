"""Photographs to a run, read top to bottom: data, features, head, figures, files."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn, track

import edge_agent
from edge_agent.errors import MissingExtraError
from edge_agent.evaluation import Evaluation
from edge_agent.preprocess import DEFAULT_FIT, Fit, PreprocessSpec
from edge_agent.quiet import native_noise_hidden

from .backbones import BACKBONES
from .data import Dataset, load_dataset
from .report import write_report
from .run import FORMAT, new_run, refuse_existing, write_history, write_inputs, write_json

if TYPE_CHECKING:
    import keras

BATCH = 32
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-3
DROPOUT = 0.2
PATIENCE = 15


@dataclass(frozen=True)
class Recipe:
    """What a user may choose about a training.

    Attributes:
        backbone: a name in `trainer.backbones.BACKBONES`.
        image_size: side of the square model input, pixels; the backbone's own when None.
        fit: how frames are brought to that square; see `edge_agent.preprocess`.
        epochs: at most this many passes over the training features.
        seed: of the head's first weights, dropout and the order of pictures.
    """

    backbone: str = "efficientnet-lite0"
    image_size: int | None = None
    fit: Fit = DEFAULT_FIT
    epochs: int = 100
    seed: int = 0


@dataclass(frozen=True)
class TrainedRun:
    """The directory written, and how good its model is on pictures it never saw."""

    path: Path
    test_accuracy: float
    test_pictures: int


def train(data: Path, out: Path, recipe: Recipe, *, console: Console, skip_unreadable: bool = False) -> TrainedRun:
    """Train a head on a frozen backbone and write the run directory.

    Args:
        data: a folder per class, or train/val/test folders of those.
        out: the run directory to make; must not exist.
        recipe: the choices.
        console: where progress goes.
        skip_unreadable: leave out pictures that cannot be read instead of refusing the data.

    Raises:
        DataError: the data cannot be trained on, or ``out`` exists. Nothing is left behind.
        MissingExtraError: Keras or the weights are not installed.
    """
    started = time.monotonic()
    refuse_existing(out)
    backbone = BACKBONES[recipe.backbone]
    side = recipe.image_size or backbone.default_size
    spec = PreprocessSpec((side, side), fit=recipe.fit)
    dataset = load_dataset(
        data,
        spec,
        skip_unreadable=skip_unreadable,
        progress=lambda photos, count: track(photos, "Reading pictures", total=count, console=console),
    )
    _tell_about(dataset, console)

    with console.status("Starting Keras and loading the backbone"):
        keras = _import_keras()
        keras.utils.set_random_seed(recipe.seed)
        base = backbone.build(spec.size)
    features = _features(base, dataset, console)
    truth = np.array([dataset.labels.index(photo.label) for photo in dataset.photos], np.intp)
    splits = {split: dataset.indices(split) for split in ("train", "val", "test")}

    head = keras.Sequential(
        [
            keras.layers.Input(features.shape[1:]),
            keras.layers.Dropout(DROPOUT),
            keras.layers.Dense(len(dataset.labels), activation="softmax", name="scores"),
        ],
        name="head",
    )
    history = _fit_head(keras, head, features, truth, splits, recipe.epochs, console)

    tested = splits["test"]
    test = Evaluation(dataset.labels, truth[tested], head.predict(features[tested], verbose=0))
    metrics = {
        "test": {"pictures": len(tested), "accuracy": test.accuracy, "per_class": test.recall()},
        "val": {"pictures": len(splits["val"]), "accuracy": max(history["val_accuracy"])},
    }
    model = keras.Model(base.input, head(base.output), name="classifier")

    created = datetime.now(UTC)
    with new_run(out) as folder:
        write_inputs(folder, dataset, spec)
        write_history(folder, history)
        write_json(folder, "metrics.json", metrics)
        with native_noise_hidden():
            model.save(folder / "model.keras")
        write_report(folder / "report.html", dataset, history, tested, test)
        write_json(folder, "run.json", _record(dataset, recipe, side, created, data, time.monotonic() - started))
    return TrainedRun(out, test.accuracy, len(tested))


def _import_keras() -> Any:
    try:
        with native_noise_hidden():
            import keras
    except ImportError as error:
        raise MissingExtraError("training", "train", error.name) from error
    return keras


def _tell_about(dataset: Dataset, console: Console) -> None:
    counts = {split: len(dataset.indices(split)) for split in ("train", "val", "test")}
    console.print(
        f"{len(dataset.photos)} pictures, {len(dataset.labels)} classes: "
        f"{counts['train']} to train, {counts['val']} to validate, {counts['test']} to test"
    )
    for reason in dataset.skipped:
        console.print(f"left out: {reason}", highlight=False, markup=False)
    if dataset.duplicates:
        console.print(f"{dataset.duplicates} exact copies left out")


def _features(base: keras.Model, dataset: Dataset, console: Console) -> npt.NDArray[np.float32]:
    """Pooled features of every picture, (pictures, features) float32, computed once: the backbone is frozen."""
    features = np.empty((len(dataset.photos), base.output.shape[-1]), np.float32)
    starts = range(0, len(features), BATCH)
    for start in track(starts, "Computing features", console=console):
        batch = dataset.pixels[start : start + BATCH].astype(np.float32)
        # Every batch of the same shape: a shorter last one would compile the network again.
        padded = np.pad(batch, ((0, BATCH - len(batch)), (0, 0), (0, 0), (0, 0)))
        with native_noise_hidden():
            features[start : start + len(batch)] = np.asarray(base.predict_on_batch(padded))[: len(batch)]
    return features


def _fit_head(
    keras: Any,
    head: keras.Model,
    features: npt.NDArray[np.float32],
    truth: npt.NDArray[np.intp],
    splits: dict[str, list[int]],
    epochs: int,
    console: Console,
) -> dict[str, list[float]]:
    """Fit the head on cached features, classes weighted by their rarity; the best validation loss is kept."""
    head.compile(
        keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    counts = np.bincount(truth[splits["train"]], minlength=int(truth.max()) + 1)
    columns = (*Progress.get_default_columns()[:-1], TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, native_noise_hidden():
        bar = progress.add_task("Training the head", total=epochs)
        history = head.fit(
            features[splits["train"]],
            truth[splits["train"]],
            validation_data=(features[splits["val"]], truth[splits["val"]]),
            batch_size=BATCH,
            epochs=epochs,
            class_weight={i: counts.sum() / (len(counts) * count) for i, count in enumerate(counts)},
            callbacks=[
                keras.callbacks.EarlyStopping("val_loss", min_delta=1e-4, patience=PATIENCE, restore_best_weights=True),
                keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: progress.advance(bar)),
            ],
            verbose=0,
        ).history
        progress.update(bar, total=len(history["loss"]))
    return {name: [float(value) for value in values] for name, values in history.items()}


def _record(
    dataset: Dataset, recipe: Recipe, side: int, created: datetime, data: Path, took_s: float
) -> dict[str, Any]:
    """`run.json`: enough to know what this run is, and to make it again."""
    import keras

    return {
        "format": FORMAT,
        "id": f"{created:%Y%m%dT%H%M%SZ}-{dataset.fingerprint[:8]}",
        "created": f"{created:%Y-%m-%dT%H:%M:%SZ}",
        "took_s": round(took_s, 1),
        "backbone": recipe.backbone,
        "arguments": {"image_size": side, "fit": recipe.fit, "epochs": recipe.epochs, "seed": recipe.seed},
        "data": {
            "root": os.fspath(data.resolve()),
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
