"""Compares the time for preprocessing a frame with that of OpenCV's `resize`, in one run on one core.

python -m benchmarks.preprocess
"""

from __future__ import annotations

import time
from collections.abc import Callable

import cv2
import numpy as np

from edge_agent.preprocessing import PreprocessSpec, preprocess

from .support.figures import record

ROUNDS = 400
FRAME = (720, 1280)
SIZE = (224, 224)


def main() -> None:
    cv2.setNumThreads(1)
    frame = np.random.default_rng(0).integers(0, 256, (*FRAME, 3), np.uint8)
    out = np.empty((*SIZE, 3), np.uint8)
    contenders: dict[str, Callable[[], object]] = {
        "edgeloop, stretch": lambda: preprocess(frame, PreprocessSpec(SIZE, "stretch"), out),
        "edgeloop, crop": lambda: preprocess(frame, PreprocessSpec(SIZE, "crop"), out),
        "edgeloop, letterbox": lambda: preprocess(frame, PreprocessSpec(SIZE, "letterbox"), out),
        "cv2.resize, INTER_AREA (stretch)": lambda: cv2.resize(frame, SIZE, interpolation=cv2.INTER_AREA),
        "cv2.resize, INTER_LINEAR (stretch, aliases)": lambda: cv2.resize(frame, SIZE, interpolation=cv2.INTER_LINEAR),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    # Measure all of them in turn, so that a temporary slowdown of the machine affects them equally.
    for _ in range(ROUNDS):
        for name, prepare in contenders.items():
            start = time.perf_counter()
            prepare()
            times[name].append(1000 * (time.perf_counter() - start))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    reference = medians["cv2.resize, INTER_AREA (stretch)"]
    print(f"{FRAME[1]}x{FRAME[0]} to {SIZE[1]}x{SIZE[0]}, OpenCV {cv2.__version__}, medians of {ROUNDS}")
    for name, median in medians.items():
        record(name, median, "ms")
        record(f"{name}, over cv2.resize with INTER_AREA", median / reference)


if __name__ == "__main__":
    main()
