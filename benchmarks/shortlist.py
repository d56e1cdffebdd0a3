"""Measures the time to rank a million captures: in one process, with several workers, and as on the review page.

    python -m benchmarks.shortlist [IMAGES] [--frames 1000000] [--picks 1000] [--workers 2]

The captures are synthetic, and need 3 GB in a temporary folder. Objects appear in bursts of 5 to 24 frames. Each frame
has scores of eight classes and features with the dimension of EfficientNet-Lite0's features. All rankings must be
equal.

If IMAGES, a folder of images, is given, the benchmark also measures how fast embeddings are computed. In practice, this
is most of the work.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from trainer.active_learning.captured_frames import CapturedFrame, images_of
from trainer.active_learning.embeddings import load_network
from trainer.active_learning.feature_space import Floats, build_space, distances_to_known
from trainer.active_learning.ranking import propose, uncertainty
from trainer.shortlist.chunk_tasks import Part, chunk_embedder
from trainer.shortlist.chunks import CHUNK, ChunkEmbeddings, chunks_of, read_embeddings, write_embeddings
from trainer.shortlist.executor import Executor, local_executor, ray_executor
from trainer.shortlist.ranking import Ranking, rank

from .support.figures import record

FEATURES, CLASSES, KINDS, THINGS, KNOWN = 1280, 8, 60, 5000, 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--picks", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        random = np.random.default_rng(7)
        things = random.normal(0, 1, (THINGS, KINDS)).astype(np.float32)
        spread_out = random.normal(0, 0.3, (KINDS, FEATURES)).astype(np.float32)
        known = features_of(things[random.integers(0, THINGS // 10, KNOWN)], spread_out, random)
        parts = []
        for number in track(range(-(-arguments.frames // CHUNK)), "Creating frames", console=console):
            count = min(CHUNK, arguments.frames - number * CHUNK)
            embeddings = made_up(number, count, things, spread_out, random)
            write_embeddings(work, f"{number:06d}", embeddings)
            parts.append(Part(f"{number:06d}", np.ones(count, np.bool_), np.ones(count, np.bool_)))
        counted = Counted(local_executor(console))
        alone, took = timed(work, parts, known, arguments.picks, counted)
        record(f"{arguments.frames:,} frames ranked on one process", took, "s")
        record(f"Passes over all frames for {arguments.picks:,} picks", counted.passes)
        with ray_executor(console, workers=arguments.workers) as executor:
            together, took_together = timed(work, parts, known, arguments.picks, executor)
        record(f"{arguments.frames:,} frames ranked on {arguments.workers} workers", took_together, "s")
        record("Speedup of several workers over one process", took / took_together)
        record("Share of picks equal with several workers and one process", same(alone, together), "", at_least=1)
        start = time.monotonic()
        plain = by_frame(work, parts, known, arguments.picks, console)
        record("Ranked frame by frame in memory", time.monotonic() - start, "s")
        record("Share of picks equal to frame by frame", float(np.mean(alone.numbers == plain)), "", at_least=1)
    if arguments.images:
        look(arguments.images.resolve(), arguments.workers, console)


def made_up(
    number: int, count: int, things: Floats, spread_out: Floats, random: np.random.Generator
) -> ChunkEmbeddings:
    """Create a chunk of synthetic frames. Some objects appear in many more frames than others.

    Args:
        number: number of the chunk.
        count: number of frames in the chunk.
        things: (objects, kinds) float32, properties of the objects.
        spread_out: (kinds, features) float32, matrix that converts these properties into features.
        random: random number generator.
    """
    which: list[int] = []
    while len(which) < count:
        which += [int(len(things) * random.random() ** 3)] * int(random.integers(5, 25))
    thing = np.array(which[:count])
    logits = 2 * things[thing, :CLASSES] + random.normal(0, 0.5, (count, CLASSES))
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    frames = tuple(
        CapturedFrame(f"{number}/{i}.jpg", hashlib.sha256(f"{number} {i}".encode()).hexdigest()) for i in range(count)
    )
    return ChunkEmbeddings(
        frames,
        features_of(things[thing], spread_out, random).astype(np.float16),
        scores.astype(np.float32),
        np.zeros(count, np.bool_),
        (),
    )


def features_of(things: Floats, spread_out: Floats, random: np.random.Generator) -> Floats:
    noisy = things + random.normal(0, 0.15, things.shape)
    return np.asarray(np.maximum(noisy @ spread_out, 0), np.float32)


class Counted:
    """An executor that counts the ranking passes over all frames."""

    def __init__(self, executor: Executor) -> None:
        self._executor, self.passes = executor, 0

    def __call__(
        self, function: Callable[..., Any], items: Sequence[Any], description: str, *, factory: bool = False
    ) -> list[Any]:
        """Count the call if it is a ranking pass, and pass it to the other executor; see `Executor`."""
        self.passes += description.startswith("Ranking")
        return self._executor(function, items, description, factory=factory)


def timed(work: Path, parts: Sequence[Part], known: Floats, picks: int, executor: Executor) -> tuple[Ranking, float]:
    start = time.monotonic()
    found = rank(work, parts, known, picks, executor)
    return found, time.monotonic() - start


def same(one: Ranking, other: Ranking) -> float:
    """Return the share of picks that have the same frame, value and similar frames in both rankings.

    Return 0 if the rankings have different lengths.
    """
    if len(one.numbers) != len(other.numbers):
        return 0.0
    pairs = zip(one.numbers, other.numbers, one.worth, other.worth, one.similar, other.similar, strict=True)
    return float(np.mean([a == b and v == w and np.array_equal(some, others) for a, b, v, w, some, others in pairs]))


def by_frame(work: Path, parts: Sequence[Part], known: Floats, picks: int, console: Console) -> np.ndarray:
    """Rank as the review page does: keep all frames in memory, and update all of them after each pick."""
    features, doubt = [], []
    for part in parts:
        embeddings = read_embeddings(work, part.name)
        assert embeddings is not None
        features.append(embeddings.features)
        doubt.append(uncertainty(embeddings.scores))
    with console.status("Frame by frame"):
        space = build_space(np.concatenate(features), known)
        nearest = distances_to_known(space.frames, space.known)
        free = np.ones(len(nearest), np.bool_)
        groups = propose(space, np.concatenate(doubt), nearest, free, picks, most=len(nearest))
    return np.array([group[0] for group in groups])


def look(images: Path, workers: int, console: Console) -> None:
    names = images_of(images)
    chunks = chunks_of(images, names, load_network(None).key)
    rates = []
    for what, executors in (
        ("one process", nullcontext(local_executor(console))),
        (f"{workers} workers", ray_executor(console, workers=workers)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            with executors as executor:
                executor(partial(chunk_embedder, Path(folder), images, None), chunks, "Embeddings", factory=True)
            rates.append(len(names) / (time.monotonic() - start))
            record(f"Embeddings computed by {what}, including the start", rates[-1], "images/s")
    record("Speedup of embeddings, several workers over one process", rates[1] / rates[0])


if __name__ == "__main__":
    main()
