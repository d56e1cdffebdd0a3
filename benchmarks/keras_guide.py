"""Compares `edgeloop train` with the recipe of the Keras guide, on at least 1,000 held-out images.

    python -m benchmarks.keras_guide STAMPS

STAMPS is an unpacked Debian package, see benchmarks/support/synthetic_images.py.

The baseline is the transfer learning recipe of Keras' own guide (keras.io, "Transfer learning & fine-tuning",
end-to-end example), with the same network, weights, images and splits as `edgeloop train`. The recipe uses random flips
and rotations, dropout 0.2 and batches of 32. First, it trains with a frozen backbone in inference mode, with Adam at
0.001 for 20 epochs. Then it trains the whole backbone at 0.00001 for 10 epochs. The images are decoded in advance. The
recipe has no early stopping. Its result here is the best test accuracy after any epoch. This favours the recipe,
because in practice the best epoch cannot be chosen with the test images.

`edgeloop train` runs as users run it, from reading the images to writing the report: once for the head only and once
with fine-tuning. The ratio of times is the time after which the guide's recipe first reaches the same accuracy, divided
by the time of `edgeloop train`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from edge_agent.preprocessing import PreprocessSpec
from trainer.backbones import build_backbone
from trainer.backend import start_keras
from trainer.data import Dataset, load_dataset
from trainer.pipeline import Reading, train
from trainer.training.recipe import Recipe

from .support.figures import record
from .support.inputs import FRAMES, SHARES
from .support.synthetic_images import write_frames

SIDE = 224


def arrays(dataset: Dataset, split: str) -> tuple[Any, Any]:
    places = dataset.indices(split)
    truth = np.array([dataset.labels.index(dataset.photos[i].label) for i in places])
    return dataset.pixels[places], truth


def guide(dataset: Dataset, *, seed: int, head_epochs: int, fine_epochs: int) -> list[tuple[float, float]]:
    """Train with the guide's recipe.

    Returns:
        One pair for each epoch: the seconds from the start to the end of this epoch, without the time spent on testing,
        and the test accuracy in %.
    """
    keras = start_keras()
    keras.utils.set_random_seed(seed)
    train_x, train_y = arrays(dataset, "train")
    test_x, test_y = arrays(dataset, "test")
    start, curve, tested = time.monotonic(), [], 0.0
    base = build_backbone("efficientnet-lite0", (SIDE, SIDE))
    base.trainable = False
    inputs = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.RandomRotation(0.1)(keras.layers.RandomFlip("horizontal")(inputs))
    x = keras.layers.Dropout(0.2)(base(x, training=False))
    model = keras.Model(inputs, keras.layers.Dense(len(dataset.labels))(x))

    def fit(rate: float, epochs: int) -> None:
        nonlocal tested
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(rate), loss=loss)
        for _ in range(epochs):
            model.fit(train_x, train_y, batch_size=32, verbose=0)
            before = time.monotonic()
            accuracy = (model.predict(test_x, verbose=0).argmax(axis=1) == test_y).mean()
            tested += time.monotonic() - before
            curve.append((time.monotonic() - start - tested, 100 * float(accuracy)))

    fit(1e-3, head_epochs)
    base.trainable = True
    fit(1e-5, fine_epochs)
    return curve


def ours(data: Path, folder: Path, *, seed: int, fine_tune: Any) -> tuple[float, float]:
    """Run `edgeloop train`, from reading the images to writing the report. Return seconds and test accuracy in %."""
    start = time.monotonic()
    run = train(
        data,
        folder,
        Recipe(seed=seed, fine_tune=fine_tune),
        console=Console(stderr=True),
        reading=Reading(cache=folder.with_name(f"{folder.name}-cache")),
    )
    return time.monotonic() - start, 100 * run.test_accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stamps", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--head-epochs", type=int, default=20, help="head epochs of the guide's recipe")
    parser.add_argument("--fine-epochs", type=int, default=10, help="fine-tuning epochs of the guide's recipe")
    arguments = parser.parse_args()
    seed = arguments.seed
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_frames(folder / "data", arguments.stamps, FRAMES, seed=seed, shares=SHARES)
        head_s, head = ours(folder / "data", folder / "head", seed=seed, fine_tune="none")
        whole_s, whole = ours(folder / "data", folder / "whole", seed=seed, fine_tune="auto")
        dataset = load_dataset(folder / "data", PreprocessSpec((SIDE, SIDE)), cache=folder / "cache")
        curve = guide(dataset, seed=seed, head_epochs=arguments.head_epochs, fine_epochs=arguments.fine_epochs)
    best = max(accuracy for _, accuracy in curve)
    print(f"{len(dataset.indices('train'))} training images, {len(dataset.indices('test'))} test images")
    rows = {
        "guide, frozen backbone": curve[arguments.head_epochs - 1],
        "guide, last epoch": curve[-1],
        "guide, best epoch": next(point for point in curve if point[1] == best),
        "edgeloop, head only": (head_s, head),
        "edgeloop": (whole_s, whole),
    }
    for name, (seconds, accuracy) in rows.items():
        record(f"{name}, test accuracy", accuracy, "%")
        record(f"{name}, time", seconds, "s")
    record("edgeloop, accuracy above the guide's best epoch", whole - best, "points", at_least=0.0)
    for name, seconds, accuracy in (("head only", head_s, head), ("whole", whole_s, whole)):
        equal = next((s for s, a in curve if a >= accuracy), None)
        if equal:
            record(
                f"the guide's time to the accuracy of edgeloop ({name}), over edgeloop's", equal / seconds, at_least=5.0
            )
        else:
            print(f"the guide's recipe never reaches the {accuracy:.1f} % of edgeloop ({name})")
    print(json.dumps({"curve": [(round(s, 1), round(a, 2)) for s, a in curve]}))


if __name__ == "__main__":
    main()
