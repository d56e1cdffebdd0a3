"""Chunks of a large folder of captures, and the files with the results of each chunk.

A worker processes one chunk at a time. Results are files in the work folder, which all workers can access. So little
data is sent between processes, and an interrupted run can be resumed.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import msgspec
import numpy as np
import numpy.typing as npt

from edge_agent.atomic_files import replacing
from edge_agent.errors import DataError

from ..active_learning.captured_frames import CapturedFrame
from ..active_learning.feature_space import Floats

CHUNK = 256
"""Average number of images in a chunk: seconds of work for a network, and not too many files for a million images."""
MAX_CHUNK = 4 * CHUNK

_frames = msgspec.json.Decoder(tuple[CapturedFrame, ...])
_DAMAGED = (OSError, ValueError, KeyError, EOFError, BadZipFile, msgspec.MsgspecError)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some images of the store.

    Attributes:
        name: base name of the chunk's files; a hash of the network and of the images' paths, sizes and times.
        paths: sorted paths of the images, relative to the store, with forward slashes.
    """

    name: str
    paths: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ChunkEmbeddings:
    """Embeddings and scores of a chunk.

    Attributes:
        frames: the n frames.
        features: (n, f) float16.
        scores: (n, classes) float32, softmax.
        failed: (n,) True for images that could not be read; their rows are zeros.
        problems: error messages of these images, and other problems of the chunk.
    """

    frames: tuple[CapturedFrame, ...]
    features: npt.NDArray[np.float16]
    scores: Floats
    failed: npt.NDArray[np.bool_]
    problems: tuple[str, ...]


def chunks_of(store: Path, names: Sequence[str], key: str) -> list[Chunk]:
    """Divide images into chunks, in order.

    The checksums of the image names determine where chunks end, so that new images change only the chunks they belong
    to.

    Args:
        store: the folder.
        names: its images, as returned by `images_of`.
        key: key of the network, see `Network`.
    """
    return [_chunk(store, key, some) for some in _cut(names)]


def _cut(names: Sequence[str]) -> Iterator[Sequence[str]]:
    start = 0
    for end, name in enumerate(names, 1):
        if end - start == MAX_CHUNK or zlib.crc32(os.fsencode(name)) % CHUNK == 0:
            yield names[start:end]
            start = end
    if start < len(names):
        yield names[start:]


def _chunk(store: Path, key: str, names: Sequence[str]) -> Chunk:
    digest = hashlib.sha256(key.encode())
    for name in names:
        try:
            found = (store / name).stat()
            digest.update(os.fsencode(f"\0{name}\0{found.st_size} {found.st_mtime_ns}"))
        except OSError:
            digest.update(os.fsencode(f"\0{name}\0gone"))
    return Chunk(digest.hexdigest()[:32], tuple(names))


def write_embeddings(work: Path, name: str, embeddings: ChunkEmbeddings) -> None:
    """Write the embeddings of a chunk.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(work / f"{name}.looked.npz") as file:
        arrays: dict[str, npt.NDArray[Any]] = {
            "features": embeddings.features,
            "scores": embeddings.scores,
            "failed": embeddings.failed,
        }
        text = {"frames": msgspec.json.encode(embeddings.frames), "problems": msgspec.json.encode(embeddings.problems)}
        _save(file, arrays | {key: np.frombuffer(value, np.uint8) for key, value in text.items()})


def read_embeddings(work: Path, name: str) -> ChunkEmbeddings | None:
    """Read the embeddings of a chunk; return None if the file is missing or damaged."""
    try:
        # Opened here, because numpy does not close files that are not in its format.
        with open(work / f"{name}.looked.npz", "rb") as bare, np.load(bare, allow_pickle=False) as file:
            frames = _frames.decode(file["frames"].tobytes())
            problems = msgspec.json.decode(file["problems"].tobytes(), type=tuple[str, ...])
            found = ChunkEmbeddings(frames, file["features"], file["scores"], file["failed"], problems)
    except _DAMAGED:
        return None
    return found if len(frames) == len(found.features) == len(found.scores) == len(found.failed) else None


def write_points(work: Path, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays that describe the n frames of a chunk.

    Args:
        work: the work folder.
        name: name of the chunk.
        arrays: ``points``: (n, d) float32, the frames as points in the feature space, see
            `trainer.active_learning.feature_space`; ``nearest``: (n,) float32, squared distance of each point to the
            nearest known point; ``usable`` and ``free``: (n,) bool, see `trainer.shortlist.chunk_tasks.Part`.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(work / f"{name}.points.npz") as file:
        _save(file, arrays)


def read_points(work: Path, name: str) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays that `write_points` has written for a chunk.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with open(work / f"{name}.points.npz", "rb") as bare, np.load(bare, allow_pickle=False) as file:
            return dict(file)
    except _DAMAGED as error:
        raise DataError(f"{work}: {name}.points.npz cannot be read ({error}); run the same command again") from error


def _save(file: BinaryIO, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    np.savez(file, allow_pickle=False, **arrays)


def tidy(work: Path, chunks: Sequence[Chunk]) -> None:
    """Remove the files of chunks that no longer exist."""
    names = {chunk.name for chunk in chunks}
    for file in work.iterdir():
        if file.name.partition(".")[0] not in names:
            file.unlink(missing_ok=True)
