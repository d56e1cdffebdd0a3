"""Compares the accuracy of models with the fits stretch, crop and letterbox. These results decided the default.

    python -m benchmarks.fit STAMPS

STAMPS is an unpacked Debian package, see benchmarks/support/synthetic_images.py.

The frames are those of a 16:9 camera: photographed backgrounds with an object on them. There are four scenes. In the
first three, objects are near the centre of the frame, anywhere in it, or near its sides. In the fourth they are
anywhere, but the model is trained on upright 3:4 images, as phones take them. The objects of the test are not used for
training. Every fit is trained on the same frames, with the code of `edgeloop train`.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from edge_agent.preprocessing import Fit
from trainer.pipeline import Reading, train
from trainer.training.recipe import Recipe

from .support.figures import record
from .support.synthetic_images import CAMERA, PHONE, write_frames

FITS: tuple[Fit, ...] = ("stretch", "crop", "letterbox")
FRAMES = {"train": 40, "val": 12, "test": 50}


@dataclass(frozen=True)
class Scene:
    """Where objects appear in the frames of a scene, and the size of its training frames.

    Attributes:
        name: name of the scene.
        across: range of the horizontal positions of objects, from 0 (left edge) to 1 (right edge). A random half of the
            positions is mirrored.
        trained_on: height and width of the training frames, in pixels.
    """

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
    print(f"means over {arguments.seeds} draws of objects and frames; differences are relative to stretch, same draws")
    for scene in SCENES:
        base = np.array(accuracies[scene.name, "stretch"])
        for fit in FITS:
            gains = np.array(accuracies[scene.name, fit]) - base
            record(f"object {scene.name}, {fit}, test accuracy", float(np.mean(accuracies[scene.name, fit])), "%")
            print(f"  {gains.mean():+.1f} ± {gains.std(ddof=1) / np.sqrt(len(gains)):.1f}")


if __name__ == "__main__":
    main()
