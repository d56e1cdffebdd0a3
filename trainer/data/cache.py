"""Cache of preprocessed images, kept between runs so that each image is decoded once.

A cache belongs to one `PreprocessSpec` and is a folder of three files. Record i of `index` describes row i of
`pixels`; rows and records have a fixed size and are only appended.

    lock      held by the process that fills the cache; the kernel releases it when that process dies
    pixels    row i: height x width x 3 uint8
    index     a header, then record i: sha256 of the image's file, checksum of row i, original
              width and height of the image, its thumbnail, CRC-32 of this record

Every access checks the CRC of the record and the checksum of the row. After a kill, a power cut, a flipped byte or a
truncated file, only the damaged images are preprocessed again. If the header does not match, both files are replaced
by new ones; processes that have the old files open can still read them.
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
"""Side of the colour thumbnail that is used to find near duplicates, pixels."""
MAX_RECORDS = 2**22
"""Maximum number of images in one index; a larger one is replaced. Bounds the memory, 16 bytes per image."""

_THUMB_BYTES = THUMB * THUMB * 3
_RECORD = struct.Struct(f"<32sIII{_THUMB_BYTES}s")
_RECORD_BYTES = _RECORD.size + 4
_HEADER_BYTES = 64
_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Cached:
    """One image of a cache: the row of its pixels, its original size in pixels, and its thumbnail."""

    row: int
    width: int
    height: int
    thumb: bytes


def default_cache() -> Path:
    """Return the default folder of caches: ``~/.cache/edgeloop``, or ``edgeloop`` in XDG_CACHE_HOME."""
    import platformdirs

    return platformdirs.user_cache_path("edgeloop")


class PixelCache:
    """Context manager for the cache of one spec; only one process at a time can open it.

    `find` and `add` may be called from several threads.
    """

    def __init__(self, base: Path, spec: PreprocessSpec, *, waiting: Callable[[Path], object] = lambda _: None) -> None:
        """Set the folder of the cache; files are opened by ``with``.

        Args:
            base: folder of all caches; created if missing.
            spec: preprocessing of the images.
            waiting: called with the cache's folder before waiting for another process that has it open.
        """
        key = cache_key(spec)
        height, width = spec.size
        self.spec = spec
        self.folder = base / "pixels" / f"{height}x{width}-{spec.fit}-{spec.channels}-{key[:16]}"
        self.row_bytes = height * width * 3
        self._header = f"edgeloop pixels {FORMAT} {key}"[:_HEADER_BYTES].ljust(_HEADER_BYTES, "\n").encode()
        self._salt = zlib.crc32(self._header)  # otherwise a record of zeros would have a valid CRC
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
        """Return the image with this hash, or None if it is missing or damaged.

        Args:
            sha256: hash of the image's file, 32 bytes.
            buffer: (height, width, 3) uint8, scratch space to check the pixels.
        """
        key = np.frombuffer(sha256, "<u8", 1)[0]
        last = int(np.searchsorted(self._keys, key, "right"))
        # The newest record first, because it replaces damaged ones.
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
            sha256: hash of the image's file, 32 bytes.
            pixels: (height, width, 3) uint8, the preprocessed image.
            width: original width, pixels.
            height: original height, pixels.
            thumb: thumbnail, (24, 24, 3) uint8 as bytes.

        Raises:
            OSError: the disk is full or failed; call `take_back`.
        """
        with self._adding:
            row = self._end
            self._end += 1
        record = _RECORD.pack(sha256, _checksum(pixels), width, height, thumb)
        # Pixels first, so that no record describes a row that was not written.
        _write(self._pixels, pixels.data.cast("B"), row * self.row_bytes)
        record += zlib.crc32(record, self._salt).to_bytes(4, "little")
        _write(self._index, memoryview(record), _HEADER_BYTES + row * _RECORD_BYTES)
        return Cached(row, width, height, thumb)

    def take_back(self) -> None:
        """Remove everything that was added since the cache was opened, to free disk space."""
        os.ftruncate(self._index, _HEADER_BYTES + self._first * _RECORD_BYTES)
        os.ftruncate(self._pixels, min(os.fstat(self._pixels).st_size, self._first * self.row_bytes))

    def pixel_rows(self, rows: npt.NDArray[np.intp]) -> PixelRows:
        """Return these rows, which remain readable after the cache is closed."""
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
        # O_NONBLOCK: if the path is a pipe, opening it must not wait for its other end.
        handle = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        self._handles.append(handle)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, f"{name} is not a file")
        return handle

    def _load(self) -> int:
        """Read the index's hashes; return the number of records, damaged ones included."""
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
        """Replace the files by new ones: first pixels, so that an index never describes the rows of another."""
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
    """Return a hexadecimal digest of the spec and everything else that determines the pixels of a file."""
    return hashlib.sha256(b" ".join([msgspec.json.encode(spec), _arithmetic().encode()])).hexdigest()


@remembered
def _arithmetic() -> str:
    """Return a digest of a small noise image, decoded and preprocessed, which changes if either of these changes."""
    noise = np.random.default_rng(0).integers(0, 256, (301, 413, 3), np.uint8)
    digest = hashlib.sha256(f"{FORMAT} {cv2.__version__.split('.')[0]}".encode())
    for suffix in (".jpg", ".png"):
        digest.update(decode_image(cv2.imencode(suffix, noise)[1].tobytes(), "the probe").tobytes())
    for fit in ("stretch", "crop", "letterbox"):
        digest.update(preprocess(noise, PreprocessSpec((32, 32), fit)).tobytes())
    return digest.hexdigest()


def _checksum(pixels: Pixels) -> int:
    """Return a CRC-32 over sums of 512 bytes, which detects a changed byte or a moved sector in a third of the time."""
    levels = pixels.reshape(-1)
    whole = levels.size // 512 * 512
    sums = levels[:whole].view("<u8").reshape(-1, 64).sum(1)
    return zlib.crc32(levels[whole:].data, zlib.crc32(sums.data))


def _write(handle: int, data: memoryview, offset: int) -> None:
    """Write all data: a disk that becomes full accepts a part of it, and fails only at the next call."""
    while data:
        done = os.pwrite(handle, data, offset)
        data, offset = data[done:], offset + done
