"""Generates camera-like images: cut-out photographs of real objects on photographed backgrounds.

The objects, with transparency, come from the Debian package `tuxpaint-stamps-default`:

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb stamps

Objects of validation and test are not used for training, and the test has other backgrounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import skimage

from edge_agent.images import read_image
from edge_agent.preprocessing import Pixels

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
CAMERA, PHONE = (360, 640), (640, 480)
BACKGROUNDS = {
    "train": ("brick.png", "gravel.png", "coffee.png"),
    "test": ("grass.png", "rocket.jpg", "motorcycle_left.png"),
}


def cut_outs(stamps: Path, label: str) -> list[Path]:
    """Return the photographs of one class; drawings are in other folders."""
    root = stamps / "usr/share/tuxpaint/stamps" / CLASSES[label]
    found = sorted(path for path in root.rglob("*.png") if "cartoon" not in path.parts and "_mirror" not in path.stem)
    if not found:
        raise SystemExit(f"{root}: no stamps found; see the top of benchmarks/support/synthetic_images.py")
    return found


def backgrounds(split: str) -> list[Pixels]:
    """Return the background photographs of a split."""
    folder = Path(skimage.__file__).parent / "data"
    return [read_image(folder / name) for name in BACKGROUNDS["test" if split == "test" else "train"]]


def hold_out(
    objects: Sequence[Path], shares: Mapping[str, float], random: np.random.Generator
) -> dict[str, list[Path]]:
    """Divide the objects into splits: ``shares`` of them, at least one each, and the rest for training."""
    order = [objects[i] for i in random.permutation(len(objects))]
    split: dict[str, list[Path]] = {}
    for name, share in shares.items():
        count = max(1, round(share * len(objects)))
        split[name], order = sorted(order[:count]), order[count:]
    return split | {"train": sorted(order)}


def compose(
    stamp: Path, background: Pixels, size: tuple[int, int], across: tuple[float, float], random: np.random.Generator
) -> Pixels:
    """Compose a frame in which the object covers 35 to 80 % of the frame's shorter side."""
    rows, columns = size
    frame = cv2.resize(background, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float32)
    image = cv2.imread(str(stamp), cv2.IMREAD_UNCHANGED)
    assert image is not None
    scale = random.uniform(0.35, 0.8) * min(size) / max(image.shape[:2])
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.float32)
    height, width = image.shape[:2]
    place = random.uniform(*across)
    left = round((columns - width) * (place if random.random() < 0.5 else 1 - place))
    top = round((rows - height) * random.random())
    alpha = image[..., 3:] / 255
    area = frame[top : top + height, left : left + width]
    area[...] = alpha * image[..., :3] + (1 - alpha) * area
    lit: Pixels = np.clip(frame * random.uniform(0.7, 1.2), 0, 255).astype(np.uint8)
    return lit


def write_frames(
    folder: Path,
    stamps: Path,
    counts: Mapping[str, int],
    *,
    seed: int,
    shares: Mapping[str, float],
    sizes: Mapping[str, tuple[int, int]] | None = None,
    across: tuple[float, float] = (0.0, 0.5),
) -> None:
    """Write frames as ``folder/<split>/<class>/<number>.jpg``.

    Args:
        folder: folder to write to.
        stamps: the unpacked package.
        counts: number of frames per class, by split.
        seed: random seed for objects, positions and light.
        shares: share of the objects held out for a split, by split.
        sizes: height and width of a split's frames in pixels, by split; `CAMERA` by default.
        across: range of horizontal positions of objects, 0 left to 1 right, mirrored at random.
    """
    random = np.random.default_rng(seed)
    behind = {split: backgrounds(split) for split in counts}
    for label in CLASSES:
        objects = hold_out(cut_outs(stamps, label), shares, random)
        for split, count in counts.items():
            target = folder / split / label
            target.mkdir(parents=True)
            choice = objects.get(split, objects["train"])
            size = (sizes or {}).get(split, CAMERA)
            for number in range(count):
                background = behind[split][int(random.integers(len(behind[split])))]
                frame = compose(choice[int(random.integers(len(choice)))], background, size, across, random)
                cv2.imwrite(str(target / f"{number:04d}.jpg"), frame)
