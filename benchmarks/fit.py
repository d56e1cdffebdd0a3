"""Which fit recognises best: stretch, crop or letterbox? The measurement behind the default.

    python benchmarks/fit.py STAMPS

STAMPS is the unpacked Debian package `tuxpaint-stamps-default`, whose photographs of animals, food
and tools come cut out, with transparency:

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb stamps

Each object is pasted on photographed backgrounds as a 16:9 camera would see it, in four scenes: near
the frame's centre, anywhere, at its sides, and anywhere after training on upright 3:4 pictures, as
phones take them. Whole objects are held out for the test. Every fit trains on the same frames,
through `edgeloop train`'s own code.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import skimage
from rich.console import Console
from rich.progress import track

from edge_agent.pictures import read_picture
from edge_agent.preprocess import Fit, Pixels
from trainer.train import Recipe, train

CLASSES = {
    "birds": "animals/birds",
    "insects": "animals/insects",
    "fish": "animals/fish",
    "mammals": "animals/mammals",
    "fruit": "food/fruit",
    "vegetables": "food/vegetables",
    "flowers": "plants/flowers",
    "tools": "household/tools",
}
FITS: tuple[Fit, ...] = ("stretch", "crop", "letterbox")
CAMERA, PHONE = (360, 640), (640, 480)
FRAMES = {"train": 40, "val": 12, "test": 50}
BACKGROUNDS = {
    "train": ("brick.png", "gravel.png", "coffee.png"),
    "test": ("grass.png", "rocket.jpg", "motorcycle_left.png"),
}


def cut_outs(stamps: Path, folder: str) -> list[Path]:
    """Photographs of one class; drawings lie in folders of their own."""
    root = stamps / "usr/share/tuxpaint/stamps" / folder
    return sorted(path for path in root.rglob("*.png") if "cartoon" not in path.parts and "_mirror" not in path.stem)


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
    Scene("anywhere, trained on upright pictures", (0.0, 0.5), PHONE),
)


def compose(
    stamp: Path, background: Pixels, size: tuple[int, int], across: tuple[float, float], random: np.random.Generator
) -> Pixels:
    """One frame with the object at 35 to 80 % of the frame's shorter side."""
    rows, columns = size
    frame = cv2.resize(background, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float32)
    picture = cv2.imread(str(stamp), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    scale = random.uniform(0.35, 0.8) * min(size) / max(picture.shape[:2])
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.float32)
    height, width = picture.shape[:2]
    place = random.uniform(*across)
    left = round((columns - width) * (place if random.random() < 0.5 else 1 - place))
    top = round((rows - height) * random.random())
    alpha = picture[..., 3:] / 255
    area = frame[top : top + height, left : left + width]
    area[...] = alpha * picture[..., :3] + (1 - alpha) * area
    lit: Pixels = np.clip(frame * random.uniform(0.7, 1.2), 0, 255).astype(np.uint8)
    return lit


def write_frames(folder: Path, stamps: Path, scene: Scene, seed: int) -> None:
    """train/val/test folders of classes; a third of each class's objects is for the test alone."""
    random = np.random.default_rng(seed)
    pictures = Path(skimage.__file__).parent / "data"
    for label, place in CLASSES.items():
        objects = cut_outs(stamps, place)
        order = random.permutation(len(objects))
        held_out = {objects[i] for i in order[: max(2, len(objects) // 3)]}
        for split, count in FRAMES.items():
            target = folder / split / label
            target.mkdir(parents=True)
            testing = split == "test"
            choice = sorted(held_out if testing else set(objects) - held_out)
            backgrounds = BACKGROUNDS["test" if testing else "train"]
            size = CAMERA if testing else scene.trained_on
            for number in range(count):
                background = read_picture(pictures / backgrounds[int(random.integers(len(backgrounds)))])
                frame = compose(choice[int(random.integers(len(choice)))], background, size, scene.across, random)
                cv2.imwrite(str(target / f"{number:03d}.jpg"), frame)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stamps", type=Path)
    parser.add_argument("--seeds", type=int, default=8, help="at least 2")
    arguments = parser.parse_args()
    accuracies: dict[tuple[str, Fit], list[float]] = {}
    jobs = [(scene, seed) for scene in SCENES for seed in range(arguments.seeds)]
    for scene, seed in track(jobs, console=Console(stderr=True)):
        with tempfile.TemporaryDirectory() as scratch:
            write_frames(Path(scratch) / "data", arguments.stamps, scene, seed)
            for fit in FITS:
                recipe = Recipe(fit=fit, seed=seed)
                run = train(Path(scratch) / "data", Path(scratch) / fit, recipe, console=Console(quiet=True))
                accuracies.setdefault((scene.name, fit), []).append(100 * run.test_accuracy)
    print(
        f"Test accuracy in %, mean over {arguments.seeds} draws of objects and frames; in brackets the mean difference"
    )
    print("from stretch on the same draws, with its standard error\n")
    print(f"| object | {' | '.join(FITS)} |")
    print("| --- |" + " --- |" * len(FITS))
    for scene in SCENES:
        base = np.array(accuracies[scene.name, "stretch"])
        cells = [f"{base.mean():.1f}"]
        for fit in FITS[1:]:
            gains = np.array(accuracies[scene.name, fit]) - base
            error = gains.std(ddof=1) / np.sqrt(len(gains))
            cells.append(f"{np.mean(accuracies[scene.name, fit]):.1f} ({gains.mean():+.1f} ± {error:.1f})")
        print(f"| {scene.name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
