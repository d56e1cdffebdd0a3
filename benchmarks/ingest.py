"""How near does reading pictures into the cache come to bare decoding and resizing on all cores?

    python -m benchmarks.ingest [--pictures 1000]

Bare is OpenCV's `imdecode` and its bilinear `resize` to 224x224 in one thread a core, the result
thrown away. Reading hashes, decodes, preprocesses as the device does, looks for duplicates and writes the
cache; with room, it preprocesses every picture twice. They take turns on the same files.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import skimage

from edge_agent.pictures import read_picture
from edge_agent.preprocess import PreprocessSpec
from trainer.data import load_dataset

SIDE, ROOM = 224, 256
SIZES = ((640, 360), (1280, 720))


def write_photographs(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """Random parts of photographs, as JPEG files in two folders."""
    random = np.random.default_rng(0)
    sources = [
        read_picture(Path(skimage.__file__).parent / "data" / name)
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


def bare(paths: list[Path]) -> None:
    def one(path: Path) -> None:
        frame = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        assert frame is not None
        cv2.resize(frame, (SIDE, SIDE))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(one, paths):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print("| pictures | bare, pictures/s | reading | ratio | with room | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in SIZES:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            paths = write_photographs(folder / "data", arguments.pictures, size)
            seconds: dict[str, list[float]] = {"bare": [], "reading": [], "with room": []}
            for turn in range(arguments.rounds):
                for name, times in seconds.items():
                    start = time.perf_counter()
                    if name == "bare":
                        bare(paths)
                    else:
                        room = (ROOM, ROOM) if name == "with room" else None
                        cache = folder / f"{name}{turn}"
                        load_dataset(folder / "data", PreprocessSpec((SIDE, SIDE)), room=room, cache=cache)
                    times.append(time.perf_counter() - start)
        rates = {name: len(paths) / statistics.median(times) for name, times in seconds.items()}
        cells = " | ".join(
            f"{rates[name]:.0f} | {rates[name] / rates['bare']:.2f}" for name in ("reading", "with room")
        )
        print(f"| {size[0]}x{size[1]} | {rates['bare']:.0f} | {cells} |")


if __name__ == "__main__":
    main()
