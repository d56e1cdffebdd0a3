"""A million captures ranked: on one process, on several workers, and as the review page would, frame by frame.

    python -m benchmarks.shortlist [IMAGES] [--frames 1000000] [--picks 1000] [--workers 2]

The frames are made up: features of things that come by in bursts of 5 to 24 frames, as wide as EfficientNet-Lite0's,
and scores of eight classes; 3 GB in a temporary folder. All three rankings have to be the same. With IMAGES, a
folder of images, it also tells how fast images are looked at, which is nearly all of the work in practice.
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
from trainer.active_learning.embeddings import network_of
from trainer.active_learning.feature_space import Floats, nearest_known, space_of
from trainer.active_learning.ranking import propose, uncertainty
from trainer.shortlist.chunk_tasks import Part, looking
from trainer.shortlist.chunks import CHUNK, Looked, chunks_of, read_looked, write_looked
from trainer.shortlist.executor import Spread, here, on_ray
from trainer.shortlist.ranking import Ranking, rank

from .support.figures import tell

FEATURES, CLASSES, KINDS, THINGS, KNOWN = 1280, 8, 60, 5000, 5000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="?")
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--picks", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        random = np.random.default_rng(7)
        things = random.normal(0, 1, (THINGS, KINDS)).astype(np.float32)
        spread_out = random.normal(0, 0.3, (KINDS, FEATURES)).astype(np.float32)
        known = features_of(things[random.integers(0, THINGS // 10, KNOWN)], spread_out, random)
        parts = []
        for number in track(range(-(-given.frames // CHUNK)), "Making frames up", console=console):
            count = min(CHUNK, given.frames - number * CHUNK)
            looked = made_up(number, count, things, spread_out, random)
            write_looked(work, f"{number:06d}", looked)
            parts.append(Part(f"{number:06d}", np.ones(count, np.bool_), np.ones(count, np.bool_)))
        counted = Counted(here(console))
        alone, took = timed(work, parts, known, given.picks, counted)
        tell(f"{given.frames:,} frames ranked on one process", took, "s")
        tell(f"Passes over all frames for {given.picks:,} picks", counted.passes)
        with on_ray(console, workers=given.workers) as spread:
            together, took_together = timed(work, parts, known, given.picks, spread)
        tell(f"{given.frames:,} frames ranked on {given.workers} workers", took_together, "s")
        tell("Several workers over one process", took / took_together, "times as fast")
        tell("Picks that several workers give as one process does", same(alone, together), "", at_least=1)
        start = time.monotonic()
        plain = by_frame(work, parts, known, given.picks, console)
        tell("The same, frame by frame in memory", time.monotonic() - start, "s")
        tell("Picks that are as frame by frame", float(np.mean(alone.numbers == plain)), "", at_least=1)
    if given.images:
        look(given.images.resolve(), given.workers, console)


def made_up(number: int, count: int, things: Floats, spread_out: Floats, random: np.random.Generator) -> Looked:
    """A chunk of frames: things come by, often the same ones."""
    which: list[int] = []
    while len(which) < count:
        which += [int(len(things) * random.random() ** 3)] * int(random.integers(5, 25))
    thing = np.array(which[:count])
    logits = 2 * things[thing, :CLASSES] + random.normal(0, 0.5, (count, CLASSES))
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    frames = tuple(
        CapturedFrame(f"{number}/{i}.jpg", hashlib.sha256(f"{number} {i}".encode()).hexdigest()) for i in range(count)
    )
    return Looked(
        frames,
        features_of(things[thing], spread_out, random).astype(np.float16),
        scores.astype(np.float32),
        np.zeros(count, np.bool_),
        (),
    )


def features_of(things: Floats, spread_out: Floats, random: np.random.Generator) -> Floats:
    seen = things + random.normal(0, 0.15, things.shape)
    return np.asarray(np.maximum(seen @ spread_out, 0), np.float32)


class Counted:
    """A spread that counts the passes that rank."""

    def __init__(self, spread: Spread) -> None:
        self._spread, self.passes = spread, 0

    def __call__(self, work: Callable[..., Any], items: Sequence[Any], what: str, *, loads: bool = False) -> list[Any]:
        """As `Spread`."""
        self.passes += what.startswith("Ranking")
        return self._spread(work, items, what, loads=loads)


def timed(work: Path, parts: Sequence[Part], known: Floats, picks: int, spread: Spread) -> tuple[Ranking, float]:
    start = time.monotonic()
    found = rank(work, parts, known, picks, spread)
    return found, time.monotonic() - start


def same(one: Ranking, other: Ranking) -> float:
    """Share of picks that are the same frame in the same place, worth the same, with the same frames like it."""
    if len(one.numbers) != len(other.numbers):
        return 0.0
    pairs = zip(one.numbers, other.numbers, one.worth, other.worth, one.likes, other.likes, strict=True)
    return float(np.mean([a == b and v == w and np.array_equal(some, others) for a, b, v, w, some, others in pairs]))


def by_frame(work: Path, parts: Sequence[Part], known: Floats, picks: int, console: Console) -> np.ndarray:
    """As the page ranks: all frames in memory, all of them looked at after each pick."""
    features, doubt = [], []
    for part in parts:
        looked = read_looked(work, part.name)
        assert looked is not None
        features.append(looked.features)
        doubt.append(uncertainty(looked.scores))
    with console.status("Frame by frame"):
        space = space_of(np.concatenate(features), known)
        nearest = nearest_known(space.frames, space.known)
        free = np.ones(len(nearest), np.bool_)
        groups = propose(space, np.concatenate(doubt), nearest, free, picks, most=len(nearest))
    return np.array([group[0] for group in groups])


def look(images: Path, workers: int, console: Console) -> None:
    names = images_of(images)
    chunks = chunks_of(images, names, network_of(None).key)
    rates = []
    for what, spreading in (
        ("one process", nullcontext(here(console))),
        (f"{workers} workers", on_ray(console, workers=workers)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            with spreading as spread:
                spread(partial(looking, Path(folder), images, None), chunks, "Looking", loads=True)
            rates.append(len(names) / (time.monotonic() - start))
            tell(f"Images looked at by {what}, start included", rates[-1], "a second")
    tell("Looking, several workers over one process", rates[1] / rates[0], "times as fast")


if __name__ == "__main__":
    main()
