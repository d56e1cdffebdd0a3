"""Measures how much training is slowed down by reading images from the pixel cache.

    python -m benchmarks.train_throughput [--images 2000] [--batch-size 32]

Two ways of training are compared. One reads the images from the cache in shuffled order, as `edgeloop train` does. The
other uses the same batch in memory again and again. Both run the same compiled training step, including augmentation,
with Keras' `fit`. They take turns, and the figure is the median over all rounds of the ratio of the two rates.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from edge_agent.preprocessing import PreprocessSpec
from trainer.backbones import build_backbone, find_backbone
from trainer.backend import has_accelerator, start_keras
from trainer.data import load_dataset
from trainer.training.recipe import Recipe, plan, room_for

from .support.figures import record

SIDE, CLASSES = 224, 8


def write_images(folder: Path, count: int) -> None:
    """Write ``count`` different images of 640x360 pixels into eight folders, one per class."""
    random = np.random.default_rng(0)
    for number in range(count):
        target = folder / f"class{number % CLASSES}"
        target.mkdir(parents=True, exist_ok=True)
        rough = random.integers(0, 256, (18, 32, 3), np.uint8)
        cv2.imwrite(str(target / f"{number:06d}.jpg"), cv2.resize(rough, (640, 360), interpolation=cv2.INTER_CUBIC))


def again(batch: Any) -> Iterator[Any]:
    """Yield the same batch forever. Keras' `fit` needs a generator."""
    while True:
        yield batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4, help="training steps per round")
    arguments = parser.parse_args()
    start_keras()
    from trainer.training.batches import Batches
    from trainer.training.fine_tune import compiled_student
    from trainer.training.head import new_head

    recipe, batch = Recipe(fine_tune="all", batch_size=arguments.batch_size), arguments.batch_size
    backbone = find_backbone(recipe.backbone)
    with tempfile.TemporaryDirectory() as scratch:
        write_images(Path(scratch) / "data", arguments.images)
        dataset = load_dataset(
            Path(scratch) / "data",
            PreprocessSpec((SIDE, SIDE)),
            room=room_for(recipe, backbone, SIDE),
            cache=Path(scratch) / "cache",
            console=Console(stderr=True),
        )
        roomy = dataset.roomy
        assert roomy is not None
        truth = np.array([dataset.labels.index(photo.label) for photo in dataset.photos], np.intp)
        base = build_backbone(recipe.backbone, (SIDE, SIDE))
        settled = plan(recipe, backbone, SIDE, len(truth), accelerated=has_accelerator())
        head = new_head(base.output.shape[-1], CLASSES)
        student, *_ = compiled_student(base, head, settled, np.ones(CLASSES, np.float32), steps_per_epoch=100)

        def batches(places: Any) -> Batches:
            return Batches(roomy, places, truth, size=batch, classes=CLASSES, seed=recipe.seed)

        resident = next(batches(np.arange(batch)).for_fit(0))
        student.fit(again(resident), steps_per_epoch=3, shuffle=False, verbose=0)
        seconds: dict[str, list[float]] = {"cache": [], "resident": []}
        for turn in track(range(arguments.rounds), console=Console(stderr=True)):
            # Rounds are short and their order alternates, so that a slow moment of the machine affects both equally.
            for name in sorted(seconds, reverse=bool(turn % 2)):
                data = batches(np.arange(len(truth))).for_fit(turn) if name == "cache" else again(resident)
                start = time.perf_counter()
                student.fit(data, steps_per_epoch=arguments.steps, shuffle=False, verbose=0)
                seconds[name].append(time.perf_counter() - start)
    rates = {name: arguments.steps * batch / statistics.median(times) for name, times in seconds.items()}
    ratios = [resident / cache for resident, cache in zip(seconds["resident"], seconds["cache"], strict=True)]
    for name, rate in rates.items():
        record(f"training from {'the cache' if name == 'cache' else 'one resident batch'}", rate, "images/s")
    low, middle, high = statistics.quantiles(ratios, n=4)
    record("from the cache over one resident batch", middle, at_least=0.9)
    print(f"middle half of the rounds: {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
