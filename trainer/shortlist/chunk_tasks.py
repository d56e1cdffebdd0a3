"""Tasks of the workers: compute the embeddings of a chunk, project them, and compare them with other points.

The result for a chunk does not depend on other chunks, so any worker can compute it, in any order. Each function takes
the work folder first, then the arguments that are the same for all chunks, and the chunk last.
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
from ..active_learning.embeddings import Network, batches, load_network, predict, rounded
from ..active_learning.feature_space import (
    Floats,
    Indices,
    Projection,
    distances_to_known,
    neighbour_distances,
    squared_distances,
)
from ..active_learning.ranking import uncertainty
from .chunks import Chunk, ChunkEmbeddings, read_embeddings, read_points, write_embeddings, write_points

Mask = npt.NDArray[np.bool_]
_BLOCK = 256
"""Number of picks compared with a chunk at a time, so that the distances fit into the CPU cache."""


@dataclass(frozen=True, eq=False)
class ChunkSummary:
    """What the main process needs to know about a chunk of n images.

    Attributes:
        hashes: (n, 32) uint8, SHA-256 of the images.
        guess: (n,) int, predicted class.
        score: (n,) float32, score of that class.
        failed: (n,) True for images that could not be read.
        problems: see `ChunkEmbeddings`.
    """

    hashes: npt.NDArray[np.uint8]
    guess: Indices
    score: Floats
    failed: Mask
    problems: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Part:
    """Masks of the frames of a chunk.

    Attributes:
        name: name of the chunk.
        usable: (n,) True for readable frames, each content only once.
        free: (n,) True for usable frames without annotation, which may be picked.
    """

    name: str
    usable: Mask
    free: Mask


def chunk_embedder(work: Path, store: Path, run: Path | None) -> Callable[[Chunk], ChunkSummary]:
    """Return a function that computes and stores the embeddings of a chunk if they have not already been stored.

    The network is loaded only once, when the first chunk needs it.
    """
    network = cache(partial(load_network, run))

    def embed_chunk(chunk: Chunk) -> ChunkSummary:
        embeddings = read_embeddings(work, chunk.name)
        if embeddings is None:
            embeddings = _embed(network(), store, chunk)
            try:
                write_embeddings(work, chunk.name, embeddings)
            except OSError as error:
                raise _no_room(work, error) from error
        hashes = b"".join(bytes.fromhex(frame.sha256) for frame in embeddings.frames)
        return ChunkSummary(
            np.frombuffer(hashes, np.uint8).reshape(-1, 32),
            # Without classes the scores have no columns.
            embeddings.scores.argmax(axis=1) if embeddings.scores.size else np.zeros(len(embeddings.frames), np.intp),
            embeddings.scores.max(axis=1, initial=0),
            embeddings.failed,
            embeddings.problems,
        )

    return embed_chunk


def _embed(network: Network, store: Path, chunk: Chunk) -> ChunkEmbeddings:
    if not store.is_dir():
        raise DataError(f"{store}: does not exist on this machine; every worker needs the captures at this path")
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
    for indices, pixels in batches(network, images, range(len(frames)), failed, "", Console(quiet=True)):
        batch_features, scores[indices] = predict(network, pixels)
        features[indices] = rounded(batch_features)
    bad = np.zeros(len(frames), np.bool_)
    bad[list(failed)] = True
    unreadable = [message for message in failed.values() if message not in problems]
    return ChunkEmbeddings(tuple(frames), features, scores, bad, (*problems, *unreadable))


def select_features(work: Path, item: tuple[str, Indices]) -> Floats:
    """Return the (k, f) float32 features of some frames, given the name of the chunk and k indices in it."""
    name, indices = item
    return _stored_embeddings(work, name).features[indices].astype(np.float32)


def select_points(work: Path, item: tuple[str, Indices]) -> Floats:
    """Return the (k, d) points of some frames, given the name of the chunk and k indices in it."""
    name, indices = item
    points: Floats = read_points(work, name)["points"][indices]
    return points


def project_chunk(work: Path, projection: Projection, known: Floats, part: Part) -> Floats:
    """Compute and store the points of a chunk's frames and their distances to known points.

    Args:
        work: the work folder.
        projection: projection from features to points.
        known: (m, d) points of the training images and of annotated frames.
        part: masks of the chunk.

    Returns:
        (n,) `uncertainty` of the frames.
    """
    embeddings = _stored_embeddings(work, part.name)
    points = projection.project(embeddings.features.astype(np.float32))
    nearest = distances_to_known(points, known)
    try:
        write_points(work, part.name, {"points": points, "nearest": nearest, "usable": part.usable, "free": part.free})
    except OSError as error:
        raise _no_room(work, error) from error
    return uncertainty(embeddings.scores)


def chunk_neighbour_distances(work: Path, points: Floats, name: str) -> Floats:
    """Return the `neighbour_distances` of (k, d) points to the usable frames of a chunk."""
    chunk = read_points(work, name)
    return neighbour_distances(points, chunk["points"][chunk["usable"]])


def distances_to_picks(work: Path, picks: Floats, similar_distance: float, name: str) -> Floats:
    """Return the squared distance of a chunk's frames to the nearest known point or pick.

    Args:
        work: the work folder.
        picks: (p, d) points of the picks.
        similar_distance: squared distance up to which a frame is similar to a pick, and cannot be picked any more.
        name: name of the chunk.

    Returns:
        (n,) float32; -1 for frames that cannot be picked.
    """
    chunk = read_points(work, name)
    nearest, free = chunk["nearest"], chunk["free"]
    for start in range(0, len(picks), _BLOCK):
        closest = squared_distances(chunk["points"], picks[start : start + _BLOCK]).min(axis=1)
        free &= closest > similar_distance
        np.minimum(nearest, closest, out=nearest)
    return np.where(free, nearest, np.float32(-1))


def similar_frames(work: Path, picks: Floats, similar_distance: float, name: str) -> tuple[Indices, Indices, Floats]:
    """Find the free frames of a chunk that are similar to a pick.

    The arguments are those of `distances_to_picks`, with at least one pick.

    Returns:
        (k,) indices of the frames, (k,) index of the first pick each is similar to, and (k,) squared distance to it.
    """
    chunk = read_points(work, name)
    left = chunk["free"]
    indices, firsts, distances = [], [], []
    for start in range(0, len(picks), _BLOCK):
        block = squared_distances(chunk["points"], picks[start : start + _BLOCK])
        new = np.flatnonzero(left & (block.min(axis=1) <= similar_distance))
        first = (block[new] <= similar_distance).argmax(axis=1)
        left[new] = False
        indices.append(new)
        firsts.append(start + first)
        distances.append(block[new, first])
    return np.concatenate(indices), np.concatenate(firsts), np.concatenate(distances)


def _stored_embeddings(work: Path, name: str) -> ChunkEmbeddings:
    embeddings = read_embeddings(work, name)
    if embeddings is None:
        raise DataError(f"{work}: the embeddings of chunk {name} are missing or damaged; run the same command again")
    return embeddings


def _no_room(work: Path, error: OSError) -> DataError:
    return DataError(f"{work}: results cannot be stored: {error.strerror}; make room, or name another --out")
