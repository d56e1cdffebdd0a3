"""Stores preprocessed images between runs, so that each image is decoded only once.

Each `PreprocessSpec` has its own cache, which is a folder with three files:

    lock      locked by the process that has the cache open; the kernel unlocks it when that process ends
    pixels    row i: height x width x 3 uint8
    index     a header, then record i: SHA-256 of the image file, checksum of row i, original
              width and height of the image, thumbnail of the image, CRC-32 of this record

Record i of `index` describes row i of `pixels`. All rows have the same size, and so have all records. New rows and
records are appended at the end.

`PixelCache.find` checks the CRC of the record and the checksum of the row. After a kill, a power cut, a flipped byte
or a truncated file, only the damaged images are preprocessed again. If the header of `index` is not the expected one,
`pixels` and `index` are replaced by new files. Processes that have the old files open can still read them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache as remembered
from pathlib import Path
from typing import Self

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from edge_agent.errors import DataError
from edge_agent.images import decode_image
from edge_agent.preprocessing import Pixels, PreprocessSpec, preprocess

from .pixels import PixelRows, read_row

FORMAT = 2
THUMB = 24
"""Side of the colour thumbnails, in pixels. They are used to find near duplicates."""
MAX_RECORDS = 2**22
"""Maximum number of images in an index. A larger index is replaced by an empty one. This limits the memory, which is 16
bytes per image."""

_THUMB_BYTES = THUMB * THUMB * 3
_RECORD = struct.Struct(f"<32sIII{_THUMB_BYTES}s")
_RECORD_BYTES = _RECORD.size + 4
_HEADER_BYTES = 64
_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Cached:
    """An image in a cache.

    Attributes:
        row: row of the image in the cache.
        width: original width, pixels.
        height: original height, pixels.
        thumb: thumbnail, (24, 24, 3) uint8 as bytes.
    """

    row: int
    width: int
    height: int
    thumb: bytes


def default_cache() -> Path:
    """Return the default folder of all caches: ``$XDG_CACHE_HOME/edgeloop``, or else ``~/.cache/edgeloop``."""
    import platformdirs

    return platformdirs.user_cache_path("edgeloop")


class PixelCache:
    """The cache of the images that were preprocessed with one `PreprocessSpec`. A context manager.

    Only one process at a time can have a cache open; other processes wait. `find` and `add` may be called from several
    threads.
    """

    def __init__(self, base: Path, spec: PreprocessSpec, *, waiting: Callable[[Path], object] = lambda _: None) -> None:
        """Determine the folder of the cache. The files are opened when the ``with`` block starts.

        Args:
            base: folder of all caches; created if missing.
            spec: preprocessing of the images.
            waiting: called with the folder of the cache before waiting for another process that has the cache open.
        """
        key = cache_key(spec)
        height, width = spec.size
        self.spec = spec
        self.folder = base / "pixels" / f"{height}x{width}-{spec.fit}-{spec.channels}-{key[:16]}"
        self.row_bytes = height * width * 3
        self._header = f"edgeloop pixels {FORMAT} {key}"[:_HEADER_BYTES].ljust(_HEADER_BYTES, "\n").encode()
        self._salt = zlib.crc32(self._header)  # records of another format or spec have a wrong CRC
        self._waiting = waiting
        self._adding = threading.Lock()

    def __enter__(self) -> Self:
        self._handles: list[int] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock()
            self._pixels, self._index = self._open("pixels"), self._open("index")
            self._first = self._end = self._load()
        except OSError as error:
            self._close()
            raise DataError(
                f"{self.folder}: the pixel cache cannot be used: {error.strerror}; "
                "remove the obstacle, or move the cache with --cache or XDG_CACHE_HOME"
            ) from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def find(self, sha256: bytes, buffer: Pixels) -> Cached | None:
        """Return the image with this hash, or None if the cache does not contain it or its data is damaged.

        Args:
            sha256: SHA-256 of the image file, 32 bytes.
            buffer: (height, width, 3) uint8. The pixels are read into this array to check them.
        """
        key = np.frombuffer(sha256, "<u8", 1)[0]
        last = int(np.searchsorted(self._keys, key, "right"))
        # Search from the newest record to the oldest: after damage, an image is added again at the end.
        for place in range(last - 1, -1, -1):
            if self._keys[place] != key:
                break
            row = int(self._rows[place])
            record = self._record(row)
            if record is None or record[0] != sha256:
                continue
            _, checksum, width, height, thumb = record
            if read_row(self._pixels, row, buffer) and _checksum(buffer) == checksum:
                return Cached(row, width, height, thumb)
        return None

    def add(self, sha256: bytes, pixels: Pixels, width: int, height: int, thumb: bytes) -> Cached:
        """Add an image.

        Args:
            sha256: SHA-256 of the image file, 32 bytes.
            pixels: (height, width, 3) uint8, the preprocessed image.
            width: original width, pixels.
            height: original height, pixels.
            thumb: thumbnail, (24, 24, 3) uint8 as bytes.

        Raises:
            OSError: the disk is full or has failed. Call `take_back` after this error.
        """
        with self._adding:
            row = self._end
            self._end += 1
        record = _RECORD.pack(sha256, _checksum(pixels), width, height, thumb)
        # The pixels are written first, so that no record describes a row that has not been written.
        _write(self._pixels, pixels.data.cast("B"), row * self.row_bytes)
        record += zlib.crc32(record, self._salt).to_bytes(4, "little")
        _write(self._index, memoryview(record), _HEADER_BYTES + row * _RECORD_BYTES)
        return Cached(row, width, height, thumb)

    def take_back(self) -> None:
        """Remove all images that were added since the cache was opened, to free disk space."""
        os.ftruncate(self._index, _HEADER_BYTES + self._first * _RECORD_BYTES)
        os.ftruncate(self._pixels, min(os.fstat(self._pixels).st_size, self._first * self.row_bytes))

    def pixel_rows(self, rows: npt.NDArray[np.intp]) -> PixelRows:
        """Return the pixels of these rows. They can still be read after the cache has been closed."""
        return PixelRows(self._pixels, self.spec.shape, rows)

    def _take_lock(self) -> None:
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._handles.append(handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._waiting(self.folder)
            fcntl.flock(handle, fcntl.LOCK_EX)

    def _open(self, name: str) -> int:
        # O_NONBLOCK: if the path is a named pipe, do not wait until another process opens it.
        handle = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        self._handles.append(handle)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, f"{name} is not a file")
        return handle

    def _load(self) -> int:
        """Read the first 8 bytes of every hash in the index. Return the number of records, including damaged ones."""
        size = os.fstat(self._index).st_size
        count = max(0, size - _HEADER_BYTES) // _RECORD_BYTES
        if os.pread(self._index, _HEADER_BYTES, 0) != self._header or count > MAX_RECORDS:
            self._replace_files()
            count = 0
        keys = np.empty(count, np.uint64)
        for start in range(0, count, _AT_ONCE):
            some = min(_AT_ONCE, count - start)
            data = os.pread(self._index, some * _RECORD_BYTES, _HEADER_BYTES + start * _RECORD_BYTES)
            if len(data) != some * _RECORD_BYTES:
                raise OSError(errno.EIO, "the index shrank while it was read")
            keys[start : start + some] = np.ndarray(some, "<u8", data, strides=(_RECORD_BYTES,))
        self._rows = np.argsort(keys, kind="stable")
        self._keys = keys[self._rows]
        return count

    def _replace_files(self) -> None:
        """Replace `pixels` and `index` by new files.

        `pixels` is replaced first, so that the new index never describes rows of the old pixels.
        """
        for name, content in (("pixels", b""), ("index", self._header)):
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=f".{name}.", delete=False) as file:
                file.write(content)
            os.replace(file.name, self.folder / name)
        self._pixels, self._index = self._open("pixels"), self._open("index")

    def _record(self, row: int) -> tuple[bytes, int, int, int, bytes] | None:
        data = os.pread(self._index, _RECORD_BYTES, _HEADER_BYTES + row * _RECORD_BYTES)
        if len(data) != _RECORD_BYTES:
            return None
        if zlib.crc32(data[:-4], self._salt) != int.from_bytes(data[-4:], "little"):
            return None
        return _RECORD.unpack(data[:-4])

    def thumbs(self, rows: npt.NDArray[np.intp]) -> Pixels:
        """Return the thumbnails of these rows, (k, 24, 24, 3) uint8."""
        out = np.empty((len(rows), THUMB, THUMB, 3), np.uint8)
        start = _HEADER_BYTES + _RECORD.size - _THUMB_BYTES
        for row, thumb in zip(rows.tolist(), out, strict=True):
            os.preadv(self._index, [thumb.data], start + row * _RECORD_BYTES)
        return out

    def _close(self) -> None:
        for handle in self._handles:
            os.close(handle)
        self._handles.clear()


def cache_key(spec: PreprocessSpec) -> str:
    """Return a hexadecimal digest of the spec and of everything else that determines the cached pixels of an image."""
    return hashlib.sha256(b" ".join([msgspec.json.encode(spec), _arithmetic().encode()])).hexdigest()


@remembered
def _arithmetic() -> str:
    """Return a digest that changes if the results of decoding or preprocessing change.

    It is computed from a small image of random noise, the cache format and the major version of OpenCV.
    """
    noise = np.random.default_rng(0).integers(0, 256, (301, 413, 3), np.uint8)
    digest = hashlib.sha256(f"{FORMAT} {cv2.__version__.split('.')[0]}".encode())
    for suffix in (".jpg", ".png"):
        digest.update(decode_image(cv2.imencode(suffix, noise)[1].tobytes(), "the probe").tobytes())
    for fit in ("stretch", "crop", "letterbox"):
        digest.update(preprocess(noise, PreprocessSpec((32, 32), fit)).tobytes())
    return digest.hexdigest()


def _checksum(pixels: Pixels) -> int:
    """Return a CRC-32 of the sums of blocks of 512 bytes.

    It detects a changed byte or a moved sector, in a third of the time of a CRC-32 of all bytes.
    """
    levels = pixels.reshape(-1)
    whole = levels.size // 512 * 512
    sums = levels[:whole].view("<u8").reshape(-1, 64).sum(1)
    return zlib.crc32(levels[whole:].data, zlib.crc32(sums.data))


def _write(handle: int, data: memoryview, offset: int) -> None:
    """Write all of ``data``, in several calls if necessary.

    When the disk becomes full, `os.pwrite` writes a part of the data without an error, and fails only at the next call.
    """
    while data:
        done = os.pwrite(handle, data, offset)
        data, offset = data[done:], offset + done
