"""A network of seven convolutions that is trained and converted in seconds, for tests that need any run or bundle.

It is a MobileNetV1 with three of its fourteen stages. Its convolutions keep their random weights, and batch
normalization is fitted to the training images, so that its features tell textures apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np

from edge_agent.images import read_image

NAME = "small-mobilenet"
_FIRST = 16
_FILTERS = (64, 256)
_SEED = 0
# The moving averages come within 1/2**8 of the statistics of the images.
_MOMENTUM, _PASSES = 0.5, 8


def _small_mobilenet(
    *,
    include_top: bool,
    weights: None,
    input_tensor: Any,
    input_shape: tuple[int, int, int],
) -> Any:
    import keras

    layers = keras.layers

    def normalized(x: Any, name: str) -> Any:
        x = layers.BatchNormalization(momentum=_MOMENTUM, name=f"{name}_bn")(x)
        return layers.ReLU(6.0, name=f"{name}_relu")(x)

    x = layers.Conv2D(_FIRST, 3, strides=2, padding="same", use_bias=False, name="conv1")(input_tensor)
    x = normalized(x, "conv1")
    for number, filters in enumerate(_FILTERS, 1):
        name = f"conv_dw_{number}"
        x = normalized(layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False, name=name)(x), name)
        name = f"conv_pw_{number}"
        x = normalized(layers.Conv2D(filters, 1, use_bias=False, name=name)(x), name)
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x)


@contextmanager
def small_backbone() -> Iterator[str]:
    """Make the network a backbone of this process, for as long as the block; gives its name."""
    from trainer.backbones import BACKBONES
    from trainer.backbones.backbone import Application, Backbone
    from trainer.backend import start_keras

    keras = start_keras()
    row = Backbone(NAME, 48, Application("SmallMobileNet", "-1..1", ""))
    with (
        patch.object(keras.applications, "SmallMobileNet", _small_mobilenet, create=True),
        patch("trainer.backbones.registry.BACKBONES", MappingProxyType({**BACKBONES, NAME: row})),
    ):
        yield NAME


def write_weights(path: Path, images: Path, size: int) -> None:
    """Write weights of the network, fitted to the images in the folders of ``images``, as a `.keras` file.

    Call it inside `small_backbone`.
    """
    import keras

    from trainer.backbones import build_backbone

    keras.utils.set_random_seed(_SEED)
    network = build_backbone(NAME, (size, size), weights="none")
    frames = [read_image(image) for image in sorted(images.glob("*/*.jpg"))]
    pixels = np.stack([cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA)[..., ::-1] for frame in frames])
    for _ in range(_PASSES):
        network(pixels.astype(np.float32), training=True)
    network.save(path)
