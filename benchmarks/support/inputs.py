"""Inputs of the benchmarks: photographs, runs and bundles, created once in a folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import skimage

from edge_agent.preprocessing import Pixels

from .synthetic_images import write_frames

SIZE = (1280, 720)
PACKAGE = "tuxpaint-stamps-default"
# 880 images for training, 240 for validation, 1,200 for testing; a third of the objects is used only for testing.
FRAMES = {"train": 110, "val": 30, "test": 150}
SHARES = {"val": 1 / 6, "test": 1 / 3}


def photographs() -> list[Pixels]:
    """Return photographs as camera frames: (720, 1280, 3) uint8 BGR."""
    folder = Path(skimage.__file__).parent / "data"
    images = [cv2.imread(str(folder / name)) for name in ("coffee.png", "rocket.jpg", "motorcycle_left.png")]
    return [np.asarray(cv2.resize(image, SIZE), np.uint8) for image in images if image is not None]


def stamps(work: Path) -> Path:
    """Download and unpack the Debian package of benchmarks/support/synthetic_images.py; needs apt."""
    target = work / "stamps"
    if not target.exists():
        unfinished = work / "stamps.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=unfinished, check=True)
        (package,) = unfinished.glob("*.deb")
        subprocess.run(["dpkg", "-x", package, unfinished], check=True)
        unfinished.rename(target)
    return target


def images(work: Path) -> Path:
    """Create frames from the stamps, in the layout that `edgeloop train` reads."""
    target = work / "pictures"
    if not target.exists():
        unfinished = work / "images.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        write_frames(unfinished, stamps(work), FRAMES, seed=0, shares=SHARES)
        unfinished.rename(target)
    return target


def run(work: Path, backbone: str, *options: str) -> Path:
    """Train a run on the stamps; ``options`` are options of `edgeloop train`."""
    target = work / f"run-{backbone}"
    if not target.exists():
        edgeloop("train", images(work), "--out", target, "--backbone", backbone, "--cache", work / "cache", *options)
    return target


def bundle(work: Path, backbone: str) -> Path:
    """Create an int8 bundle with an input of 224x224 pixels.

    EfficientNet-Lite0 is trained. The weights of other networks would have to be downloaded; since latency does not
    depend on them, they stay random, only the head is trained, and all checks of the gate are allowed to fail.
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
