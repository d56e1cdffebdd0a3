"""Measures the response time of the review page, and whether annotations are lost when the server is killed.

    python -m benchmarks.review RUN [--frames 1000]

A thousand frames, which are parts of the demo's photographs, are annotated in Chromium. The response time is the time
from a key event until the image of the next frame is decoded and ready to be painted. The server, the browser and the
training of the head share the cores. The measurement is done twice: with keys sent as fast as frames appear, which is
hundreds per second, and with ten keys per second, which is faster than any person.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploy.pipelines.demo.photographs import load_areas
from edge_agent.preprocessing import Pixels
from tests.support.browser import Browser
from tests.support.captured import keep
from tests.trainer.review.test_review_browser import REVIEW, SHOWN
from trainer.active_learning.annotations import Annotations

from .support.figures import record

SIDE = 120
PACE_MS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--frames", type=int, default=1000)
    arguments = parser.parse_args()
    random, areas = np.random.default_rng(0), load_areas()
    names = sorted(areas)
    images = []
    for number in range(arguments.frames):
        area = areas[names[number % len(names)]]["video"]
        top, left = (int(random.integers(0, limit - SIDE)) for limit in area.shape[:2])
        images.append(np.ascontiguousarray(area[top : top + SIDE, left : left + SIDE]))
    for pace_ms, pace in ((0, "keys without a pause"), (PACE_MS, f"{1000 // PACE_MS} keys per second")):
        measure(images, names, arguments.run, pace_ms, pace)


def measure(images: Sequence[Pixels], names: Sequence[str], run: Path, pace_ms: int, pace: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        captures = Path(folder) / "captures"
        frames = set(keep(captures, images, [names[0]] * len(images), classes=names))
        command = [sys.executable, "-m", "edge_agent.cli", "review", str(captures), "--run", str(run)]
        with subprocess.Popen([*command, "--port", "0", "--no-open"], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            address = next(line for line in server.stdout if "label them at" in line).split()[-1]
            with Browser(Path(folder) / "profile") as browser:
                start = time.perf_counter()
                browser.open(address)
                while not browser.evaluate(SHOWN):
                    time.sleep(0.01)
                record(f"{pace}: until the page shows its first frames", time.perf_counter() - start, "s", at_most=2.0)
                measured = json.loads(str(browser.evaluate(f"{REVIEW}({pace_ms})")))
                server.kill()
        lost = frames - set(Annotations(captures).latest)
    record(f"{pace}: from a key to the next frame, median", measured["median_ms"], "ms")
    record(f"{pace}: from a key to the next frame, p99", measured["p99_ms"], "ms")
    record(f"{pace}: from a key to the next frame, maximum", measured["most_ms"], "ms", at_most=50.0)
    record(f"{pace}: annotations lost when the server was killed", len(lost), at_most=0)


if __name__ == "__main__":
    main()
