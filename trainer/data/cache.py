"""Preprocessed images kept between runs, so that each is decoded once.

A cache belongs to one `PreprocessSpec` and is a folder of three files. Row i of `pixels` is described by
record i of `index`; rows and records have a fixed size and are only ever appended.

    lock      held by the process that fills the cache; the kernel lets go of it when that process dies
    pixels    row i: height x width x 3 uint8
    index     a header, then record i: sha256 of the image's file, checksum of row i, the image's own
              width and height, its thumbnail, CRC-32 of this record

Nothing in it is trusted. A record counts only if its own CRC is right, a row only if the record's
checksum of it is, and both are looked at when an image is asked for. So a kill at any moment, a power cut, a byte that
flipped or a file cut short cost no more than making those images again. A header that is not ours starts
both files anew, beside the old ones, which whoever has them open keeps.
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
from edge_agent.preprocess import Pixels, PreprocessSpec, preprocess

from .pixels import PixelRows, read_row

FORMAT = 2
THUMB = 24
"""Side of the colour thumbnail kept for finding near duplicates, pixels."""
MAX_RECORDS = 2**22
"""More images than this in one index are not believed; it starts anew. Bounds what is read to 16 bytes each."""

_THUMB_BYTES = THUMB * THUMB * 3
_RECORD = struct.Struct(f"<32sIII{_THUMB_BYTES}s")
_RECORD_BYTES = _RECORD.size + 4
_HEADER_BYTES = 64
_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Cached:
    """One image of a cache: which row its pixels are, its own size and its thumbnail."""

    row: int
    width: int
    height: int
    thumb: bytes


def default_cache() -> Path:
    """Where caches lie unless told otherwise: ``~/.cache/edgeloop``, moved by XDG_CACHE_HOME."""
    import platformdirs

    return platformdirs.user_cache_path("edgeloop")


class PixelCache:
    """The cache of one spec, open for filling. A context manager: only one process at a time has it open.

    `find` and `add` may be called from several threads.
    """

    def __init__(self, base: Path, spec: PreprocessSpec, *, waiting: Callable[[Path], object] = lambda _: None) -> None:
        """Name the cache; nothing happens before it is entered.

        Args:
            base: folder of all caches; made if need be.
            spec: what images are preprocessed to.
            waiting: called with the cache's folder when another process has it open, before waiting for that.
        """
        key = cache_key(spec)
        height, width = spec.size
        self.spec = spec
        self.folder = base / "pixels" / f"{height}x{width}-{spec.fit}-{spec.channels}-{key[:16]}"
        self.row_bytes = height * width * 3
        self._header = f"edgeloop pixels {FORMAT} {key}"[:_HEADER_BYTES].ljust(_HEADER_BYTES, "\n").encode()
        self._salt = zlib.crc32(self._header)  # or a record of zeros would have the right CRC
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
                "remove what is in the way, or move the cache with --cache or XDG_CACHE_HOME"
            ) from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def find(self, sha256: bytes, buffer: Pixels) -> Cached | None:
        """The image with this hash, if the cache has it undamaged.

        Args:
            sha256: of the image's file, 32 bytes.
            buffer: (height, width, 3) uint8, scratch space for the check of the pixels.
        """
        key = np.frombuffer(sha256, "<u8", 1)[0]
        last = int(np.searchsorted(self._keys, key, "right"))
        # The newest record first: it replaces those found damaged before.
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
        """Keep an image.

        Raises:
            OSError: there is no room, or the disk failed. Call `take_back` then.
        """
        with self._adding:
            row = self._end
            self._end += 1
        record = _RECORD.pack(sha256, _checksum(pixels), width, height, thumb)
        # Pixels first: a record never speaks of a row that was not written.
        _write(self._pixels, pixels.data.cast("B"), row * self.row_bytes)
        record += zlib.crc32(record, self._salt).to_bytes(4, "little")
        _write(self._index, memoryview(record), _HEADER_BYTES + row * _RECORD_BYTES)
        return Cached(row, width, height, thumb)

    def take_back(self) -> None:
        """Give the room of everything added since the cache was opened back to the disk."""
        os.ftruncate(self._index, _HEADER_BYTES + self._first * _RECORD_BYTES)
        os.ftruncate(self._pixels, min(os.fstat(self._pixels).st_size, self._first * self.row_bytes))

    def pixel_rows(self, rows: npt.NDArray[np.intp]) -> PixelRows:
        """These rows, readable for as long as the result is kept, also after the cache is closed."""
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
        # O_NONBLOCK: opening a pipe that somebody left there must not wait for its other end.
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
            self._start_anew()
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

    def _start_anew(self) -> None:
        """Put new files in place of the old: first pixels, so that an index never describes another's rows."""
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
        """(k, 24, 24, 3) uint8, the thumbnails of these rows."""
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
    """Hexadecimal digest of the spec and of everything else that decides what pixels a file gives."""
    return hashlib.sha256(b" ".join([msgspec.json.encode(spec), _arithmetic().encode()])).hexdigest()


@remembered
def _arithmetic() -> str:
    """What decoding and preprocessing make of a small noise image here, so that a change of either shows."""
    noise = np.random.default_rng(0).integers(0, 256, (301, 413, 3), np.uint8)
    digest = hashlib.sha256(f"{FORMAT} {cv2.__version__.split('.')[0]}".encode())
    for suffix in (".jpg", ".png"):
        digest.update(decode_image(cv2.imencode(suffix, noise)[1].tobytes(), "the probe").tobytes())
    for fit in ("stretch", "crop", "letterbox"):
        digest.update(preprocess(noise, PreprocessSpec((32, 32), fit)).tobytes())
    return digest.hexdigest()


def _checksum(pixels: Pixels) -> int:
    """CRC-32 over the sums of each 512 bytes: a changed byte or a moved sector shows, in a third of the time."""
    levels = pixels.reshape(-1)
    whole = levels.size // 512 * 512
    sums = levels[:whole].view("<u8").reshape(-1, 64).sum(1)
    return zlib.crc32(levels[whole:].data, zlib.crc32(sums.data))


def _write(handle: int, data: memoryview, offset: int) -> None:
    """All of it: a disk that fills up takes a part first, and refuses only the next call."""
    while data:
        done = os.pwrite(handle, data, offset)
        data, offset = data[done:], offset + done
