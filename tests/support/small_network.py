"""A network of seven convolutions that is trained and converted in seconds, for tests that need any run or bundle.

It begins as EfficientNet-Lite0 does, with the same kinds of blocks under the same names. Its convolutions keep their
random weights, and batch normalization is fitted to the training images, so that its features tell textures apart.
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

NAME = "small-network"
_STEM, _PROJECTED, _EXPANDED, _FEATURES = 16, (16, 24), 64, 256
# Of 24 seeds, the one most sure of images of all the shapes that tests show it.
_SEED = 12
# The moving averages come within 1/2**8 of the statistics of the images.
_MOMENTUM, _PASSES = 0.5, 8


def _small_network(*, include_top: bool, weights: None, input_tensor: Any, input_shape: tuple[int, int, int]) -> Any:
    """Build it as a function of `keras.applications` does."""
    import keras

    layers = keras.layers

    def conv(x: Any, name: str, filters: int, kernel: int = 1, strides: int = 1) -> Any:
        return layers.Conv2D(filters, kernel, strides, "same", use_bias=False, name=f"{name}_conv")(x)

    def depthwise(x: Any, name: str) -> Any:
        return layers.DepthwiseConv2D(3, 2, "same", use_bias=False, name=f"{name}_conv")(x)

    def norm(x: Any, name: str, *, activate: bool = True) -> Any:
        x = layers.BatchNormalization(momentum=_MOMENTUM, name=f"{name}_bn")(x)
        return layers.ReLU(6.0, name=f"{name}_relu")(x) if activate else x

    x = norm(conv(input_tensor, "stem", _STEM, 3, 2), "stem")
    x = norm(depthwise(x, "block1_depthwise"), "block1_depthwise")
    x = norm(conv(x, "block1_project", _PROJECTED[0]), "block1_project", activate=False)
    x = norm(conv(x, "block2_expand", _EXPANDED), "block2_expand")
    x = norm(depthwise(x, "block2_depthwise"), "block2_depthwise")
    x = norm(conv(x, "block2_project", _PROJECTED[1]), "block2_project", activate=False)
    x = norm(conv(x, "block3_expand", _FEATURES), "block3_expand")
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x)


@contextmanager
def small_backbone() -> Iterator[str]:
    """Make the network a backbone of this process, for as long as the block; gives its name."""
    from trainer.backbones import BACKBONES
    from trainer.backbones.backbone import Application, Backbone
    from trainer.backend import start_keras

    keras = start_keras()
    row = Backbone(NAME, 48, Application("SmallNetwork", "-1..1", ""))
    with (
        patch.object(keras.applications, "SmallNetwork", _small_network, create=True),
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


def main() -> None:
    """`edgeloop` in a process of its own that knows the network: `python -m tests.support.small_network train ...`."""
    from edge_agent import cli

    with small_backbone():
        cli.main()


if __name__ == "__main__":
    main()
