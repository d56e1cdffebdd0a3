"""A folder of very many captures in chunks, and what is known of each chunk so far.

A chunk is what a worker takes at a time. What it finds out lies in files of the work folder, which every worker can
reach, so that little travels between them, and a run that was interrupted goes on where it was.
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
"""Images in a chunk on average: seconds of work for a network, and not too many files for a million images."""
MOST = 4 * CHUNK

_frames = msgspec.json.Decoder(tuple[CapturedFrame, ...])
_DAMAGED = (OSError, ValueError, KeyError, EOFError, BadZipFile, msgspec.MsgspecError)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Images of the store.

    Attributes:
        name: of its files in the work folder; another where an image, the network or its order is another.
        paths: relative to the store, with forward slashes, in order.
    """

    name: str
    paths: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Looked:
    """What a network saw in a chunk: (n,) frames, (n, f) float16 features, (n, classes) float32 scores.

    ``failed``: (n,) which images could not be looked at; their rows are zeros. ``problems``: why, and what else was
    wrong with the chunk.
    """

    frames: tuple[CapturedFrame, ...]
    features: npt.NDArray[np.float16]
    scores: Floats
    failed: npt.NDArray[np.bool_]
    problems: tuple[str, ...]


def chunks_of(store: Path, names: Sequence[str], key: str) -> list[Chunk]:
    """Images in chunks, in order.

    Chunks end at images that their names' checksums choose, so that new images change the chunks they fall into
    and no others.

    Args:
        store: the folder.
        names: its images, by `review.frames.images_of`.
        key: of the network that is to look at them.
    """
    return [_chunk(store, key, some) for some in _cut(names)]


def _cut(names: Sequence[str]) -> Iterator[Sequence[str]]:
    start = 0
    for end, name in enumerate(names, 1):
        if end - start == MOST or zlib.crc32(os.fsencode(name)) % CHUNK == 0:
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


def write_looked(work: Path, name: str, looked: Looked) -> None:
    """Keep what was seen. Raises OSError."""
    with replacing(work / f"{name}.looked.npz") as file:
        arrays: dict[str, npt.NDArray[Any]] = {
            "features": looked.features,
            "scores": looked.scores,
            "failed": looked.failed,
        }
        text = {"frames": msgspec.json.encode(looked.frames), "problems": msgspec.json.encode(looked.problems)}
        _save(file, arrays | {key: np.frombuffer(value, np.uint8) for key, value in text.items()})


def read_looked(work: Path, name: str) -> Looked | None:
    """What was seen; None where nothing whole is there."""
    try:
        # Opened here: numpy leaves a file open that turns out to be none of its own.
        with open(work / f"{name}.looked.npz", "rb") as bare, np.load(bare, allow_pickle=False) as file:
            frames = _frames.decode(file["frames"].tobytes())
            problems = msgspec.json.decode(file["problems"].tobytes(), type=tuple[str, ...])
            found = Looked(frames, file["features"], file["scores"], file["failed"], problems)
    except _DAMAGED:
        return None
    return found if len(frames) == len(found.features) == len(found.scores) == len(found.failed) else None


def write_points(work: Path, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Keep where a chunk's frames lie. Raises OSError."""
    with replacing(work / f"{name}.points.npz") as file:
        _save(file, arrays)


def read_points(work: Path, name: str) -> dict[str, npt.NDArray[Any]]:
    """What `write_points` kept in this run.

    Raises:
        DataError: somebody took it away.
    """
    try:
        with open(work / f"{name}.points.npz", "rb") as bare, np.load(bare, allow_pickle=False) as file:
            return dict(file)
    except _DAMAGED as error:
        raise DataError(f"{work}: {name}.points.npz cannot be read ({error}); run the same command again") from error


def _save(file: BinaryIO, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    np.savez(file, allow_pickle=False, **arrays)


def tidy(work: Path, chunks: Sequence[Chunk]) -> None:
    """Remove what is known of chunks that are no more."""
    names = {chunk.name for chunk in chunks}
    for file in work.iterdir():
        if file.name.partition(".")[0] not in names:
            file.unlink(missing_ok=True)
