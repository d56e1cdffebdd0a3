"""What workers do with a chunk: look at its images, place them in the space, tell what labelling them is worth.

A chunk's result depends on no other chunk, so it does not matter who computes it, or in what order. The work folder
comes first, then what is the same for all chunks, and the chunk last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from edge_agent.errors import DataError, ImageError

from ..active_learning.captured_frames import CapturedFrame, frame_at
from ..active_learning.embeddings import Network, ask, batches, network_of, rounded
from ..active_learning.feature_space import (
    Floats,
    Places,
    Projection,
    nearest_distances,
    nearest_known,
    squared_distances,
)
from ..active_learning.ranking import uncertainty
from .chunks import Chunk, Looked, read_looked, read_points, write_looked, write_points

Mask = npt.NDArray[np.bool_]
_BLOCK = 256
"""Picks compared with a chunk at a time, so that their distances stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class ChunkEmbeddings:
    """Of a chunk's images: (n, 32) uint8 hashes, likeliest classes, their scores, which failed, what was wrong."""

    hashes: npt.NDArray[np.uint8]
    guess: Places
    score: Floats
    failed: Mask
    problems: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Part:
    """A chunk by its name, and its frames: (n,) which are usable, and which of these may be asked."""

    name: str
    usable: Mask
    free: Mask


def looking(work: Path, store: Path, run: Path | None) -> Callable[[Chunk], ChunkEmbeddings]:
    """The pass that looks at a chunk's images and keeps what it saw; what is there already is not looked at.

    The network is loaded once, with the first chunk that needs it.
    """
    network = cache(partial(network_of, run))

    def look(chunk: Chunk) -> ChunkEmbeddings:
        looked = read_looked(work, chunk.name)
        if looked is None:
            looked = _look(network(), store, chunk)
            try:
                write_looked(work, chunk.name, looked)
            except OSError as error:
                raise _no_room(work, error) from error
        hashes = b"".join(bytes.fromhex(frame.sha256) for frame in looked.frames)
        return ChunkEmbeddings(
            np.frombuffer(hashes, np.uint8).reshape(-1, 32),
            # A network without classes has no columns here.
            looked.scores.argmax(axis=1) if looked.scores.size else np.zeros(len(looked.frames), np.intp),
            looked.scores.max(axis=1, initial=0),
            looked.failed,
            looked.problems,
        )

    return look


def _look(network: Network, store: Path, chunk: Chunk) -> Looked:
    if not store.is_dir():
        raise DataError(f"{store}: not on this machine; every worker has to find the captures at this path")
    problems: list[str] = []
    frames: list[CapturedFrame] = []
    for name in chunk.paths:
        path = store / name
        try:
            frames.append(frame_at(path, path.with_suffix(".json"), name, problems))
        except ImageError as error:
            frames.append(CapturedFrame(name, hashlib.sha256(name.encode()).hexdigest()))
            problems.append(str(error))
    width, classes = (shape[-1] for shape in network.model.output_shape)
    features = np.zeros((len(frames), width), np.float16)
    scores = np.zeros((len(frames), classes), np.float32)
    images = [(frame.sha256, store / frame.path) for frame in frames]
    failed: dict[int, str] = {}
    for places, pixels in batches(network, images, range(len(frames)), failed, "", Console(quiet=True)):
        seen, said = ask(network, pixels)
        features[places], scores[places] = rounded(seen), said
    bad = np.zeros(len(frames), np.bool_)
    bad[list(failed)] = True
    told = [message for message in failed.values() if message not in problems]
    return Looked(tuple(frames), features, scores, bad, (*problems, *told))


def features_of(work: Path, item: tuple[str, Places]) -> Floats:
    """(k, f) float32 features of some frames of a chunk, by its name and their places in it."""
    name, places = item
    return _looked(work, name).features[places].astype(np.float32)


def points_of(work: Path, item: tuple[str, Places]) -> Floats:
    """(k, d) points of some frames of a chunk, by its name and their places in it."""
    name, places = item
    found: Floats = read_points(work, name)["points"][places]
    return found


def place(work: Path, projection: Projection, known: Floats, part: Part) -> Floats:
    """Keep where the frames of a chunk lie and how far from what is known.

    Args:
        work: the work folder.
        projection: features to points.
        known: (m, d) points of the training images and of frames that are labelled.
        part: the chunk.

    Returns:
        (n,) `uncertainty` of its frames.
    """
    looked = _looked(work, part.name)
    points = projection.place(looked.features.astype(np.float32))
    nearest = nearest_known(points, known)
    try:
        write_points(work, part.name, {"points": points, "nearest": nearest, "usable": part.usable, "free": part.free})
    except OSError as error:
        raise _no_room(work, error) from error
    return uncertainty(looked.scores)


def neighbours(work: Path, asked: Floats, name: str) -> Floats:
    """`nearest_distances` of (k, d) points among the usable frames of a chunk."""
    found = read_points(work, name)
    return nearest_distances(asked, found["points"][found["usable"]])


def apart(work: Path, picks: Floats, alike: float, name: str) -> Floats:
    """(n,) squared distance of a chunk's frames to the nearest that is known or picked; -1 for what is not to be asked.

    Args:
        work: the work folder.
        picks: (p, d) points of the picks.
        alike: squared distance under which a frame is like a pick, and not asked any more.
        name: of the chunk.
    """
    found = read_points(work, name)
    nearest, free = found["nearest"], found["free"]
    for start in range(0, len(picks), _BLOCK):
        closest = squared_distances(found["points"], picks[start : start + _BLOCK]).min(axis=1)
        free &= closest > alike
        np.minimum(nearest, closest, out=nearest)
    return np.where(free, nearest, np.float32(-1))


def likes(work: Path, picks: Floats, alike: float, name: str) -> tuple[Places, Places, Floats]:
    """Free frames of a chunk that are like a pick: their places, the first pick each is like, squared distance to it.

    Arguments as for `apart`; there is at least one pick.
    """
    found = read_points(work, name)
    left = found["free"]
    places, firsts, distances = [], [], []
    for start in range(0, len(picks), _BLOCK):
        block = squared_distances(found["points"], picks[start : start + _BLOCK])
        new = np.flatnonzero(left & (block.min(axis=1) <= alike))
        first = (block[new] <= alike).argmax(axis=1)
        left[new] = False
        places.append(new)
        firsts.append(start + first)
        distances.append(block[new, first])
    return np.concatenate(places), np.concatenate(firsts), np.concatenate(distances)


def _looked(work: Path, name: str) -> Looked:
    found = read_looked(work, name)
    if found is None:
        raise DataError(f"{work}: what was seen of {name} is damaged; run the same command again")
    return found


def _no_room(work: Path, error: OSError) -> DataError:
    return DataError(f"{work}: what was found out cannot be kept: {error.strerror}; make room, or name another --out")
