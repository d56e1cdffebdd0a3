"""What the benchmarks measure with: photographs, runs and bundles, made once into a folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import skimage

from edge_agent.preprocess import Pixels

from .synthetic_images import write_frames

SIZE = (1280, 720)
PACKAGE = "tuxpaint-stamps-default"
# 880 images to train on, 240 to validate, 1,200 to test; a third of the objects is tested with alone.
FRAMES = {"train": 110, "val": 30, "test": 150}
SHARES = {"val": 1 / 6, "test": 1 / 3}


def photographs() -> list[Pixels]:
    """A camera's frames: uint8, 720 x 1280 x BGR."""
    folder = Path(skimage.__file__).parent / "data"
    images = [cv2.imread(str(folder / name)) for name in ("coffee.png", "rocket.jpg", "motorcycle_left.png")]
    return [np.asarray(cv2.resize(image, SIZE), np.uint8) for image in images if image is not None]


def stamps(work: Path) -> Path:
    """The unpacked Debian package of benchmarks/support/synthetic_images.py; needs apt."""
    target = work / "stamps"
    if not target.exists():
        half = work / "stamps.part"
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=half, check=True)
        (package,) = half.glob("*.deb")
        subprocess.run(["dpkg", "-x", package, half], check=True)
        half.rename(target)
    return target


def images(work: Path) -> Path:
    """Frames made of the stamps, as `edgeloop train` takes them."""
    target = work / "pictures"
    if not target.exists():
        half = work / "images.part"
        shutil.rmtree(half, ignore_errors=True)
        write_frames(half, stamps(work), FRAMES, seed=0, shares=SHARES)
        half.rename(target)
    return target


def run(work: Path, backbone: str, *options: str) -> Path:
    """A run on the stamps; ``options`` are those of `edgeloop train`."""
    target = work / f"run-{backbone}"
    if not target.exists():
        edgeloop("train", images(work), "--out", target, "--backbone", backbone, "--cache", work / "cache", *options)
    return target


def bundle(work: Path, backbone: str) -> Path:
    """An int8 bundle of 224 x 224 pixels.

    EfficientNet-Lite0 is the trained run. Another network's weights would be downloaded; as its latency does not depend
    on them they are random, only its head is trained, and the gate's opinion of that is set aside.
    """
    target = work / f"{backbone}-1.edgeloop"
    if not target.exists():
        if backbone == "efficientnet-lite0":
            edgeloop("convert", run(work, backbone), "--out", target, "--allow", "slow")
        else:
            untrained = run(work, backbone, "--weights", "none", "--fine-tune", "none")
            allowed = [word for name in ALLOWED for word in ("--allow", name)]
            edgeloop("convert", untrained, "--out", target, *allowed)
    return target


ALLOWED = ("drop", "class-drop", "agreement", "constant", "slow")


def edgeloop(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "edge_agent.cli", *map(str, arguments)], check=True)
