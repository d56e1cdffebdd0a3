"""A frame the camera sent as JPEG: decoded when it is looked at, and only as large as it is needed."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import cv2
import numpy as np

from ..errors import ImageError
from ..preprocess import Pixels
from .frames import Frame

MAX_BYTES = 32 * 2**20
"""Of one frame; a camera's 4K frames have 2 or 3 MB."""
MAX_PIXELS = 64_000_000
_REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))
_START_OF_FRAME = frozenset({0xC0, 0xC1, 0xC2})


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class JpegFrame(Frame):
    """A frame as JPEG. An Exif rotation is ignored everywhere: cameras that stream do not send one.

    Attributes:
        data: the bytes, as the camera sent them.
    """

    data: bytes

    def full(self) -> Pixels:
        """See `Frame`."""
        return self._decoded(1)

    @property
    def size(self) -> tuple[int, int]:
        """See `Frame`; from the header alone."""
        return jpeg_size(self.data)

    def at_least(self, height: int, width: int) -> Pixels:
        """See `Frame`; an eighth, a quarter, a half or all of the rows and columns."""
        rows, columns = self.size
        for scale, _ in _REDUCED:
            # The decoder rounds up.
            if -(-rows // scale) >= height and -(-columns // scale) >= width:
                return self._decoded(scale)
        return self._decoded(1)

    def fingerprint(self) -> int:
        """See `Frame`; of the bytes, nothing is decoded."""
        return zlib.crc32(self.data)

    def jpeg(self) -> bytes:
        """See `Frame`."""
        return self.data

    def _decoded(self, scale: int) -> Pixels:
        jpeg_size(self.data)  # refuses what claims to be huge
        if b"\xff\xd9" not in self.data[-256:]:
            # Some cameras pad a frame with zeros; one without an end was cut short, and would be decoded half grey.
            raise ImageError("a JPEG frame that ends too early")
        flag = next((flag for reduced, flag in _REDUCED if reduced == scale), cv2.IMREAD_COLOR)
        try:
            image = cv2.imdecode(np.frombuffer(self.data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
        except cv2.error as error:
            raise ImageError("a JPEG frame that cannot be decoded") from error
        if image is None:
            raise ImageError("a JPEG frame that cannot be decoded")
        return np.asarray(image, np.uint8)


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Rows and columns a JPEG file claims to have.

    Raises:
        ImageError: not a JPEG file, or one of no pixels or over 64 million.
    """
    position = 2
    while data.startswith(b"\xff\xd8") and position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker in _START_OF_FRAME:
            rows, columns = struct.unpack_from(">HH", data, position + 5)
            if not 0 < rows * columns <= MAX_PIXELS:
                raise ImageError(f"a JPEG frame that claims {columns}x{rows} pixels")
            return rows, columns
        length = struct.unpack_from(">H", data, position + 2)[0]
        if marker == 0xDA or length < 2:
            break
        position += 2 + length
    raise ImageError("a frame that is no JPEG image")
