"""Frames that the camera sent as JPEG. They are decoded on demand, and only at the size that is needed."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import cv2
import numpy as np

from ..errors import ImageError
from ..image_headers import ImageHeader, read_header
from ..images import MAX_DECODING_BYTES
from ..preprocessing import Pixels
from .frames import Frame

MAX_BYTES = 32 * 2**20
"""Largest accepted frame; the 4K frames of a camera take 2 or 3 MB."""
_PADDING = 4096
"""Number of bytes at the end in which the end mark is searched, as some cameras pad frames: ESP32 cameras with up to
2,048 bytes. The compressed pixels of a truncated frame contain no end mark, as each of their 0xFF bytes is followed by
a zero or a restart mark."""
_REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class JpegFrame(Frame):
    """A JPEG frame. Exif rotation is ignored everywhere, because streaming cameras do not send it.

    Attributes:
        data: The JPEG file as the camera sent it.
    """

    data: bytes

    def full(self) -> Pixels:
        """See `Frame`."""
        return self._decoded(1)

    @property
    def size(self) -> tuple[int, int]:
        """See `Frame`; only the header is read."""
        header = jpeg_header(self.data)
        return header.rows, header.columns

    def at_least(self, height: int, width: int) -> Pixels:
        """See `Frame`; scaled to an eighth, a quarter, a half or the full number of rows and columns."""
        rows, columns = self.size
        for scale, _ in _REDUCED:
            # The decoder rounds up.
            if -(-rows // scale) >= height and -(-columns // scale) >= width:
                return self._decoded(scale)
        return self._decoded(1)

    def fingerprint(self) -> int:
        """See `Frame`; a checksum of the file, without decoding it."""
        return zlib.crc32(self.data)

    def jpeg(self) -> bytes:
        """See `Frame`."""
        return self.data

    def _decoded(self, scale: int) -> Pixels:
        header = jpeg_header(self.data)
        if header.decoding_bytes(scale) > MAX_DECODING_BYTES:
            raise ImageError(
                f"a JPEG frame of {header.columns}x{header.rows} pixels; decoding would take "
                f"{header.decoding_bytes(scale) >> 20} MiB, more than {MAX_DECODING_BYTES >> 20}"
            )
        if b"\xff\xd9" not in self.data[-_PADDING:]:
            # A truncated frame would be decoded with a grey part.
            raise ImageError("truncated JPEG frame")
        flag = next((flag for reduced, flag in _REDUCED if reduced == scale), cv2.IMREAD_COLOR)
        try:
            image = cv2.imdecode(np.frombuffer(self.data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
        except cv2.error as error:
            raise ImageError("a JPEG frame that cannot be decoded") from error
        if image is None:
            raise ImageError("a JPEG frame that cannot be decoded")
        return np.asarray(image, np.uint8)


def jpeg_header(data: bytes) -> ImageHeader:
    """Read the header of a JPEG frame.

    Raises:
        ImageError: The data is not a JPEG file, or the image has no pixels or more than 64 million.
    """
    header = read_header(data)
    if header.format != "JPEG":
        raise ImageError(f"a frame that is not a JPEG image, but {header.format}")
    return header
