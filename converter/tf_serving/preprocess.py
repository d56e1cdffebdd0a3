"""Reimplements `edge_agent.preprocessing` in TensorFlow operations, with bit-identical results. Imports TensorFlow.

TensorFlow Serving does not include OpenCV, so the preprocessing must be part of the exported model. Pixel values are
computed in integers, as in OpenCV: the bit-exact bilinear resize uses weights with 8 fractional bits, and the area mean
rounds half up. The tests compare both implementations.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from edge_agent.preprocessing import PAD_LEVEL, PreprocessSpec


def preprocess(image: Any, spec: PreprocessSpec) -> Any:
    """Convert an image to the model's input: resize it as the spec says and put its channels in the spec's order.

    Args:
        image: (H, W, 3) uint8, **RGB**, as TensorFlow decodes it.
        spec: size, fit and channel order of the model's input.

    Returns:
        (height, width, 3) uint8 in the spec's channel order.
    """
    height, width = spec.size
    levels = tf.cast(image, tf.int32)
    fitted = (tf.constant(height), tf.constant(width))
    if spec.fit == "crop":
        levels = _centre_with_aspect(levels, height, width)
    elif spec.fit == "letterbox":
        fitted = _fitted(levels, height, width)
    levels = _resize(_halve(levels, *fitted), *fitted)
    if spec.fit == "letterbox":
        top, left = (height - fitted[0]) // 2, (width - fitted[1]) // 2
        around = [[top, height - fitted[0] - top], [left, width - fitted[1] - left], [0, 0]]
        levels = tf.pad(levels, around, constant_values=PAD_LEVEL)
    if spec.channels == "bgr":
        levels = levels[..., ::-1]
    return tf.ensure_shape(tf.cast(levels, tf.uint8), spec.shape)


def _sides(levels: Any) -> tuple[Any, Any]:
    shape = tf.shape(levels)
    return shape[0], shape[1]


def _rounded(numerator: Any, denominator: Any) -> Any:
    """Round the quotient as Python's round() does. Return at least 1."""
    quotient = tf.cast(numerator, tf.float64) / tf.cast(denominator, tf.float64)
    return tf.maximum(1, tf.cast(tf.round(quotient), tf.int32))


def _centre_with_aspect(levels: Any, height: int, width: int) -> Any:
    rows, columns = _sides(levels)
    wide = columns * height > rows * width
    keep_rows = tf.where(wide, rows, _rounded(columns * height, width))
    keep_columns = tf.where(wide, _rounded(rows * width, height), columns)
    top, left = (rows - keep_rows) // 2, (columns - keep_columns) // 2
    return levels[top : top + keep_rows, left : left + keep_columns]


def _fitted(levels: Any, height: int, width: int) -> tuple[Any, Any]:
    rows, columns = _sides(levels)
    wide = columns * height > rows * width
    return (
        tf.where(wide, _rounded(rows * width, columns), height),
        tf.where(wide, width, _rounded(columns * height, rows)),
    )


def _halve(levels: Any, height: Any, width: Any) -> Any:
    def tall(some: Any) -> Any:
        return _sides(some)[0] >= 2 * height

    def wide(some: Any) -> Any:
        return _sides(some)[1] >= 2 * width

    def step(some: Any) -> tuple[Any]:
        # When both axes are halved, four pixels are summed before rounding.
        is_tall, is_wide = tall(some), wide(some)
        summed = tf.cond(is_tall, lambda: _summed_rows(some), lambda: some)
        summed = tf.cond(is_wide, lambda: _summed_columns(summed), lambda: summed)
        count = tf.where(is_tall, 2, 1) * tf.where(is_wide, 2, 1)
        return ((summed + count // 2) // count,)

    (halved,) = tf.while_loop(
        lambda some: tall(some) | wide(some), step, (levels,), shape_invariants=(tf.TensorShape([None, None, 3]),)
    )
    return halved


def _summed_rows(levels: Any) -> Any:
    even = levels[: _sides(levels)[0] // 2 * 2]
    return even[0::2] + even[1::2]


def _summed_columns(levels: Any) -> Any:
    even = levels[:, : _sides(levels)[1] // 2 * 2]
    return even[:, 0::2] + even[:, 1::2]


def _resize(levels: Any, height: Any, width: Any) -> Any:
    """Resize as OpenCV does with INTER_LINEAR_EXACT: along the rows, then along the columns. Round once at the end."""
    rows, columns = _sides(levels)
    near, far, weight = _taps(columns, width)
    across = (
        tf.gather(levels, near, axis=1) * (256 - weight)[:, None] + tf.gather(levels, far, axis=1) * weight[:, None]
    )
    near, far, weight = _taps(rows, height)
    weight = weight[:, None, None]
    down = tf.gather(across, near, axis=0) * (256 - weight) + tf.gather(across, far, axis=0) * weight
    return (down + 2**15) // 2**16


def _taps(length: Any, size: Any) -> tuple[Any, Any, Any]:
    """Find the two input pixels from which each output pixel is interpolated.

    Returns:
        Indices of the first and of the second input pixel, and the weight of the second one in 256ths.
    """
    # The reciprocal of a quotient, as in OpenCV: the last bit of the scale can decide a rounding.
    scale = 1 / (tf.cast(size, tf.float64) / tf.cast(length, tf.float64))
    place = scale * (tf.range(tf.cast(size, tf.float64), dtype=tf.float64) + 0.5) - 0.5
    below = tf.floor(place)
    weight = tf.cast(tf.round((place - below) * 256), tf.int32)
    near = tf.cast(below, tf.int32)
    weight = tf.where((near >= 0) & (near < length - 1), weight, 0)
    near = tf.clip_by_value(near, 0, length - 1)
    return near, tf.minimum(near + 1, length - 1), weight
