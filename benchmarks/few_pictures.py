"""Compares the accuracy after training only the head with that of the default `edgeloop train`, with few images.

    python -m benchmarks.few_pictures STAMPS [--images 5 15] [--draws 4]

STAMPS is an unpacked Debian package, see benchmarks/support/synthetic_images.py. There are eight classes. The
objects and backgrounds of the test images are not used for training. Each draw creates other images; both ways of
training use the same ones.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from trainer.pipeline import Reading, train
from trainer.training.recipe import Recipe

from .support.figures import record
from .support.synthetic_images import write_frames

SHARES = {"val": 1 / 6, "test": 1 / 3}
TEST = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stamps", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=(5, 15), help="number of training images per class")
    parser.add_argument("--draws", type=int, default=4)
    arguments = parser.parse_args()
    recipes: dict[str, Any] = {"head only": "none", "edgeloop train": "auto"}
    for count in arguments.images:
        found: dict[str, list[float]] = {name: [] for name in recipes}
        counts = {"train": count, "val": max(1, count // 4), "test": TEST}
        for draw in range(arguments.draws):
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                write_frames(folder / "data", arguments.stamps, counts, seed=draw, shares=SHARES)
                for name, fine_tune in recipes.items():
                    recipe = Recipe(seed=draw, fine_tune=fine_tune)
                    reading = Reading(cache=folder / "cache")
                    run = train(folder / "data", folder / name, recipe, console=Console(stderr=True), reading=reading)
                    found[name].append(100 * run.test_accuracy)
        for name, some in found.items():
            record(f"{count} images per class, {name}, test accuracy", statistics.mean(some), "%")
            print(f"  {min(some):.1f} to {max(some):.1f} in {len(some)} draws", flush=True)


if __name__ == "__main__":
    main()
