"""Reads preprocessed images from a file, row by row."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edge_agent.errors import DataError
from edge_agent.preprocessing import Pixels


class PixelRows:
    """A read-only array, (n, height, width, 3) uint8, that is stored in a file. Indexing returns copies of rows.

    The file is not memory-mapped, because the mapped memory would count as memory of the process, and the process would
    be killed if the file were truncated. If the operating system has cached the row, reading it is as fast as copying
    it from memory.

    Attributes:
        shape: n, height, width, 3.
    """

    def __init__(self, handle: int, shape: tuple[int, int, int], rows: npt.NDArray[np.intp]) -> None:
        """Select rows of a file.

        Args:
            handle: descriptor of an open file of consecutive rows. It is duplicated, so the caller may close it.
            shape: shape of a row: height, width, 3.
            rows: (n,) int, number of the row in the file for each index of the array.
        """
        self.shape = (len(rows), *shape)
        self._rows = rows
        self._handle = os.dup(handle)
        weakref.finalize(self, os.close, self._handle)

    @classmethod
    def of(cls, pixels: Pixels) -> PixelRows:
        """Copy an array, (n, height, width, 3) uint8, to an unnamed temporary file."""
        with tempfile.TemporaryFile() as file:
            file.write(np.ascontiguousarray(pixels, np.uint8).tobytes())
            file.flush()
            return cls(file.fileno(), pixels.shape[1:], np.arange(len(pixels)))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Pixels]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, which: int | slice | Sequence[int] | npt.NDArray[np.intp]) -> Pixels:
        """Return a copy of one or more rows.

        Returns:
            (height, width, 3) uint8 for an integer; (k, height, width, 3) uint8 for a slice or a list of k indices.

        Raises:
            IndexError: there is no such row.
            DataError: the file was truncated or cannot be read.
        """
        # Without the dtype, an empty list would become an array of floats.
        places = self._rows[which if isinstance(which, int | slice) else np.asarray(which, np.intp)]
        if np.ndim(places) == 0:
            return self._read(int(places), np.empty(self.shape[1:], np.uint8))
        out = np.empty((len(places), *self.shape[1:]), np.uint8)
        for place, row in zip(places, out, strict=True):
            self._read(int(place), row)
        return out

    def _read(self, row: int, out: Pixels) -> Pixels:
        if not read_row(self._handle, row, out):
            raise DataError("the pixel cache was cut short or failed while in use; start again to rebuild it")
        return out


def read_row(handle: int, row: int, out: Pixels) -> bool:
    """Read row number ``row`` of a file into ``out``, a contiguous uint8 array.

    Return False if the row is incomplete or cannot be read.
    """
    try:
        return os.preadv(handle, [out.data], row * out.nbytes) == out.nbytes
    except OSError:
        return False
