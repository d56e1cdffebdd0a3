"""Reads and applies the Exif orientation of JPEG images in TensorFlow operations. Imports TensorFlow.

Phones often store images rotated and record the rotation in the Exif data. OpenCV turns such images upright when it
decodes them, TensorFlow does not. The markers are defined by JPEG (ITU T.81, annex B), the directory by TIFF 6.0,
section 2, and the orientation tag by Exif 2.3, table 4.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

_UPRIGHT = 1
_APP1, _FIRST_APP, _LAST_APP = 0xE1, 0xE0, 0xEF
_ORIENTATION = 0x0112
_MOST_ENTRIES = 1000


def upright(image: Any, jpeg: Any) -> Any:
    """Rotate and mirror a decoded image according to its Exif orientation.

    Args:
        image: (H, W, 3) uint8.
        jpeg: scalar string, content of the JPEG file from which the image was decoded.
    """
    turned = [
        lambda: image,
        lambda: image[:, ::-1],
        lambda: image[::-1, ::-1],
        lambda: image[::-1],
        lambda: tf.transpose(image, (1, 0, 2)),
        lambda: tf.transpose(image, (1, 0, 2))[:, ::-1],
        lambda: tf.transpose(image, (1, 0, 2))[::-1, ::-1],
        lambda: tf.transpose(image, (1, 0, 2))[::-1],
    ]
    return tf.switch_case(orientation(jpeg) - 1, turned)


def orientation(jpeg: Any) -> Any:
    """Return the Exif orientation of a file, 1 to 8, as a scalar int32; 1 (upright) if it is missing or invalid."""
    # The data is padded with zeros, so that reads past the end need no checks.
    data = tf.pad(tf.cast(tf.io.decode_raw(jpeg, tf.uint8), tf.int32), [[0, 65_536 + 32]])
    end = tf.strings.length(jpeg)

    def is_other_segment(place: Any) -> Any:
        marker = data[place + 1]
        application = (data[place] == 0xFF) & (marker >= _FIRST_APP) & (marker <= _LAST_APP)
        return (place < end) & application & ~_is_exif(data, place)

    (place,) = tf.while_loop(is_other_segment, lambda place: (place + 2 + _pair(data, place + 2, big=True),), (2,))
    safe = tf.minimum(place, end)
    return tf.cond(_is_exif(data, safe), lambda: _in_directory(data, safe + 10, end), lambda: _UPRIGHT)


def _is_exif(data: Any, place: Any) -> Any:
    name = tf.constant([*b"Exif\0\0"])
    return (data[place] == 0xFF) & (data[place + 1] == _APP1) & tf.reduce_all(data[place + 4 : place + 10] == name)


def _in_directory(data: Any, tiff: Any, end: Any) -> Any:
    """Return the value of the orientation tag in the first TIFF directory, or 1 (upright) if it is missing or invalid.

    The TIFF header begins at ``tiff``, the JPEG file ends at ``end``.
    """
    big = data[tiff] == ord("M")
    # An offset beyond the segment's 64 KiB is invalid; its lower half is still within the padding.
    first = tf.minimum(tiff + _pair(data, tiff + tf.where(big, 6, 4), big=big), end)
    count = tf.minimum(_pair(data, first, big=big), _MOST_ENTRIES)

    def is_another(number: Any) -> Any:
        place = tf.minimum(first + 2 + 12 * number, end)
        return (number < count) & (_pair(data, place, big=big) != _ORIENTATION)

    (number,) = tf.while_loop(is_another, lambda number: (number + 1,), (0,))
    value = _pair(data, tf.minimum(first + 2 + 12 * number + 8, end), big=big)
    return tf.where((number < count) & (value >= 1) & (value <= 8), value, _UPRIGHT)


def _pair(data: Any, place: Any, *, big: Any) -> Any:
    first, second = data[place], data[place + 1]
    return tf.where(big, 256 * first + second, first + 256 * second)
