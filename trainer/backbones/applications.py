"""Builds networks of `keras.applications`, including the normalisation of pixels that each network needs.

Importing this module imports Keras.
"""

from __future__ import annotations

from typing import Any

import keras

from .backbone import Application
from .graph import pooled

_IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)
"""Mean values of blue, green and red, 0 to 255, from the mode ``caffe`` of `keras.applications.imagenet_utils`."""


def application(network: Application, size: tuple[int, int], name: str) -> keras.Model:
    """Build the network with random weights.

    The layers keep their original names, because the published weight files refer to them.

    Args:
        network: the network.
        size: height and width of the input, pixels.
        name: name of the model.

    Returns:
        A model that maps pixels, (n, height, width, 3) float32, RGB, 0 to 255, to pooled features, (n, f) float32.
    """
    pixels = keras.Input((*size, 3), dtype="float32", name="pixels")
    build = getattr(keras.applications, network.function)
    inner = build(include_top=False, weights=None, input_tensor=_normalised(network, pixels), input_shape=(*size, 3))
    return pooled(pixels, inner.output, name)


def _normalised(network: Application, pixels: Any) -> Any:
    if network.pixels == "-1..1":
        return keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(pixels)
    if network.pixels == "caffe":
        bgr = keras.ops.flip(pixels, axis=-1)
        return keras.layers.Rescaling(1.0, offset=[-mean for mean in _IMAGENET_MEAN_BGR], name="normalise")(bgr)
    return pixels
