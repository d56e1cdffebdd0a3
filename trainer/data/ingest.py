"""Reads all images in one pass, on all cores.

Every image file is read and hashed. Only images that are not in the cache yet are decoded and preprocessed. The work is
done in threads rather than processes, because decoding, hashing and disk access release Python's GIL. Only a few small
batches are in memory at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from rich.console import Console

from edge_agent.errors import DataError, ImageError
from edge_agent.images import decode_image, read_bytes
from edge_agent.inference.interpreter import cores
from edge_agent.preprocessing import Fit, Pixels, preprocess

from ..progress import steps
from ..threads import in_order
from .cache import THUMB, Cached, PixelCache
from .photo import Photo

_Result: TypeAlias = tuple[bytes, list[Cached]] | str
"""Hash of an image and its entry in each cache, or the reason why the image cannot be used."""
_BATCH = 8
_WAITING_BATCHES = 4
"""Number of batches per thread that are in progress or waiting. It is large enough that no thread is idle, and small
enough that the program reacts immediately to Ctrl-C."""


@dataclass(frozen=True, eq=False)
class Ingested:
    """Result of reading all images. Index i in the arrays and in ``unreadable`` refers to image i of the list.

    Attributes:
        sha256: (n, 32) uint8, SHA-256 of each file; zeros if the image cannot be used.
        sides: (n, 2) int32, original width and height of each image, pixels; zeros if the image cannot be used.
        rows: (caches, n) int, row of each image in each cache.
        unreadable: dict from the index of an image that cannot be used to the reason.
    """

    sha256: Pixels
    sides: npt.NDArray[np.int32]
    rows: npt.NDArray[np.intp]
    unreadable: dict[int, str]


def ingest(root: Path, photos: Sequence[Photo], caches: Sequence[PixelCache], *, console: Console) -> Ingested:
    """Read every image, and add it to each cache that does not contain it.

    Args:
        root: folder to which the paths of the images are relative.
        photos: the images.
        caches: one or more open caches.
        console: console for the progress.

    Raises:
        DataError: the pixels cannot be written, usually because the disk is full. Everything that this call has added
            to the caches is removed.
    """
    count = len(photos)
    found = Ingested(
        np.zeros((count, 32), np.uint8), np.zeros((count, 2), np.int32), np.zeros((len(caches), count), np.intp), {}
    )

    def read_batch(places: range) -> list[_Result]:
        buffers = [np.empty(cache.spec.shape, np.uint8) for cache in caches]
        return [_read_or_reason(root, photos[place].path, caches, buffers) for place in places]

    _keep_freed_memory()
    batches = [range(start, min(start + _BATCH, count)) for start in range(0, count, _BATCH)]
    try:
        with (
            _one_opencv_thread(),
            steps(console, "Reading images", count) as advance,
            closing(in_order(read_batch, batches, ahead=cores() * _WAITING_BATCHES)) as done,
        ):
            for places, results in done:
                for place, result in zip(places, results, strict=True):
                    if isinstance(result, str):
                        found.unreadable[place] = result
                        continue
                    digest, kept = result
                    found.sha256[place] = np.frombuffer(digest, np.uint8)
                    found.sides[place] = kept[0].width, kept[0].height
                    found.rows[:, place] = [one.row for one in kept]
                advance(len(places))
    except OSError as error:
        for cache in caches:
            cache.take_back()
        need = count * sum(cache.row_bytes for cache in caches)
        raise DataError(
            f"{caches[0].folder}: no room for the pixels of {count} images: {error.strerror}; they take up to "
            f"{need / 1e6:.0f} MB. Free disk space, or move the cache with --cache or XDG_CACHE_HOME"
        ) from error
    return found


def _read_or_reason(root: Path, path: str, caches: Sequence[PixelCache], buffers: Sequence[Pixels]) -> _Result:
    try:
        return _read(root, path, caches, buffers)
    except ImageError as error:
        return str(error)


def _read(root: Path, path: str, caches: Sequence[PixelCache], buffers: Sequence[Pixels]) -> tuple[bytes, list[Cached]]:
    if not _is_utf8(path):
        raise ImageError(f"{path}: its name is not UTF-8 and cannot be written to split.csv; rename it")
    full = root / path
    data = read_bytes(full)
    digest = hashlib.sha256(data).digest()
    known = [cache.find(digest, buffer) for cache, buffer in zip(caches, buffers, strict=True)]
    kept = [one for one in known if one is not None]
    if len(kept) == len(caches):
        return digest, kept
    frame = decode_image(data, full)
    height, width = frame.shape[:2]
    thumb = kept[0].thumb if kept else b""
    for place, (cache, buffer) in enumerate(zip(caches, buffers, strict=True)):
        if known[place] is None:
            preprocess(frame, cache.spec, buffer)
            thumb = thumb or _thumbnail(_inside(buffer, width, height, cache.spec.fit))
            known[place] = cache.add(digest, buffer, width, height, thumb)
    return digest, [one for one in known if one is not None]


def _inside(pixels: Pixels, width: int, height: int, fit: Fit) -> Pixels:
    """Return the part of a preprocessed image that is inside the letterbox bars.

    This takes a tenth of the time of resizing the original image again.
    """
    if fit != "letterbox":
        return pixels
    rows, columns = pixels.shape[:2]
    scale = min(rows / height, columns / width)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (rows - tall) // 2, (columns - wide) // 2
    return pixels[top : top + tall, left : left + wide]


def _keep_freed_memory() -> None:
    """Make glibc reuse the memory of freed images instead of returning it to the kernel.

    glibc returns a freed block to the kernel if the block is larger than a threshold. The threshold grows to the size
    of the largest block freed so far, up to 32 MiB. Therefore this function allocates and frees a large block, to which
    it never writes. Without this call, page faults take a quarter of the total time for JPEGs of 640x360 and 1280x720
    pixels.
    """
    np.empty(31 * 2**20, np.uint8)


def _thumbnail(pixels: Pixels) -> bytes:
    if min(pixels.shape[:2]) >= 4 * THUMB:
        # OpenCV is fast at a scale of exactly one half, and slow at every other scale.
        half = (pixels.shape[1] // 2, pixels.shape[0] // 2)
        pixels = cv2.resize(pixels, half, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    small = cv2.resize(pixels, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    # `duplicates` needs blurred thumbnails. Blurring here is done once per image, rather than for each comparison.
    return cv2.GaussianBlur(small, (0, 0), 1.0, borderType=cv2.BORDER_REFLECT).tobytes()


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """Disable OpenCV's own threads in the block, because they would compete with the reading threads for the cores."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
