"""Compares the speed of reading images into the cache with that of bare decoding and resizing on all cores.

    python -m benchmarks.ingest [--images 1000]

Bare means that one thread per core decodes and resizes the images, and discards the result. Images are resized with
OpenCV's bilinear `resize` or with the device's preprocessing. With room for augmentation, every image is resized to two
sizes. Reading also hashes the images, searches for duplicates and writes the cache. All variants take turns on the same
files.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import skimage

from edge_agent.images import read_image
from edge_agent.inference.interpreter import cores
from edge_agent.preprocessing import Pixels, PreprocessSpec, preprocess
from trainer.data import load_dataset

from .support.figures import record

SPEC, ROOMY = PreprocessSpec((224, 224)), PreprocessSpec((256, 256))
SIZES = ((640, 360), (1280, 720))


def write_photographs(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """Write random parts of photographs as JPEG files in two folders and return their paths."""
    random = np.random.default_rng(0)
    sources = [
        read_image(Path(skimage.__file__).parent / "data" / name)
        for name in ("coffee.png", "rocket.jpg", "motorcycle_left.png", "gravel.png")
    ]
    paths = []
    for number in range(count):
        path = folder / ("even", "odd")[number % 2] / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        source = sources[number % len(sources)]
        side = int(random.integers(120, 240))
        top, left = (int(random.integers(0, limit - side)) for limit in source.shape[:2])
        cv2.imwrite(str(path), cv2.resize(source[top : top + side, left : left + side], size))
        paths.append(path)
    return paths


def bare(paths: list[Path], resize: Callable[[Pixels], object]) -> None:
    def one(path: Path) -> None:
        frame = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        assert frame is not None
        resize(frame.astype(np.uint8, copy=False))

    with ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(one, paths):
            pass


def seconds(paths: list[Path], data: Path, scratch: Path, rounds: int) -> dict[str, float]:
    """Measure each way to read the images, and return the median times in seconds.

    Args:
        paths: files of the images.
        data: folder that contains these files.
        scratch: folder for the caches, which are deleted again.
        rounds: number of times to measure each way.
    """
    ways: dict[str, Callable[[Path], object]] = {
        "bilinear": lambda _: bare(paths, lambda frame: cv2.resize(frame, SPEC.size)),
        "bare": lambda _: bare(paths, lambda frame: preprocess(frame, SPEC)),
        "bare, room": lambda _: bare(paths, lambda frame: (preprocess(frame, SPEC), preprocess(frame, ROOMY))),
        "read": lambda cache: load_dataset(data, SPEC, cache=cache),
        "read, room": lambda cache: load_dataset(data, SPEC, room=ROOMY.size, cache=cache),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way(scratch / f"{name}{turn}")
            times[name].append(time.perf_counter() - start)
            shutil.rmtree(scratch / f"{name}{turn}", ignore_errors=True)
    return {name: statistics.median(some) for name, some in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for size in SIZES:
        with tempfile.TemporaryDirectory() as scratch:
            paths = write_photographs(Path(scratch) / "data", arguments.images, size)
            took = seconds(paths, Path(scratch) / "data", Path(scratch), arguments.rounds)
        for way in ("", ", room"):
            read_s = took[f"read{way}"]
            of = f"reading JPEGs of {size[0]}x{size[1]}{', with room for augmentation' if way else ''}"
            record(of, len(paths) / read_s, "images/s")
            record(f"{of}, over the bare rate", took[f"bare{way}"] / read_s, at_least=0.8)
            record(f"{of}, over the bare rate with bilinear resizing", took["bilinear"] / read_s)


if __name__ == "__main__":
    main()
