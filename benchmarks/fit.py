"""Which fit recognises best: stretch, crop or letterbox? The measurement behind the default.

    python -m benchmarks.fit STAMPS

STAMPS is an unpacked Debian package; benchmarks/support/synthetic_images.py says which and how.

Each object is pasted on photographed backgrounds as a 16:9 camera would see it, in four scenes: near
the frame's centre, anywhere, at its sides, and anywhere after training on upright 3:4 images, as
phones take them. Whole objects are held out for the test. Every fit trains on the same frames,
through `edgeloop train`'s own code.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from edge_agent.preprocess import Fit
from trainer.train import Reading, train
from trainer.training.recipe import Recipe

from .support.figures import tell
from .support.synthetic_images import CAMERA, PHONE, write_frames

FITS: tuple[Fit, ...] = ("stretch", "crop", "letterbox")
FRAMES = {"train": 40, "val": 12, "test": 50}


@dataclass(frozen=True)
class Scene:
    """Where objects are: a range of places across the frame, 0 left to 1 right, mirrored at random; and the frames."""

    name: str
    across: tuple[float, float]
    trained_on: tuple[int, int] = CAMERA


SCENES = (
    Scene("near the centre", (0.4, 0.5)),
    Scene("anywhere", (0.0, 0.5)),
    Scene("at the sides", (0.0, 0.15)),
    Scene("anywhere, trained on upright images", (0.0, 0.5), PHONE),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stamps", type=Path)
    parser.add_argument("--seeds", type=int, default=8, help="at least 2")
    arguments = parser.parse_args()
    accuracies: dict[tuple[str, Fit], list[float]] = {}
    jobs = [(scene, seed) for scene in SCENES for seed in range(arguments.seeds)]
    for scene, seed in track(jobs, console=Console(stderr=True)):
        with tempfile.TemporaryDirectory() as scratch:
            folder, sizes = Path(scratch), {"train": scene.trained_on, "val": scene.trained_on}
            write_frames(
                folder / "data",
                arguments.stamps,
                FRAMES,
                seed=seed,
                shares={"test": 1 / 3},
                sizes=sizes,
                across=scene.across,
            )
            for fit in FITS:
                recipe = Recipe(fit=fit, seed=seed, fine_tune="none")
                reading = Reading(cache=folder / "cache")
                run = train(folder / "data", folder / fit, recipe, console=Console(quiet=True), reading=reading)
                accuracies.setdefault((scene.name, fit), []).append(100 * run.test_accuracy)
    print(f"means over {arguments.seeds} draws of objects and frames; differences are from stretch on the same draws")
    for scene in SCENES:
        base = np.array(accuracies[scene.name, "stretch"])
        for fit in FITS:
            gains = np.array(accuracies[scene.name, fit]) - base
            tell(f"object {scene.name}, {fit}, test accuracy", float(np.mean(accuracies[scene.name, fit])), "%")
            print(f"  {gains.mean():+.1f} ± {gains.std(ddof=1) / np.sqrt(len(gains)):.1f}")


if __name__ == "__main__":
    main()
