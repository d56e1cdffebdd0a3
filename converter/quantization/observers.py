"""Measures the values of a float model's tensors on images. The integer ranges are chosen from these values."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edge_agent.inference.interpreter import default_threads
from edge_agent.native_stderr import native_noise_hidden
from edge_agent.preprocessing import Pixels

from ..tflite.graph import Graph

Values: TypeAlias = npt.NDArray[np.float32]
Ranges: TypeAlias = dict[str, tuple[float, float]]
"""Maps the name of a tensor to the lowest and the highest real value that its integers represent."""


def activations(model: bytes, names: Sequence[str], pixels: Iterable[Pixels]) -> Iterator[list[Values]]:
    """Yield the values of a model's inner tensors, image by image.

    Args:
        model: content of a ``.tflite`` file whose input takes pixel levels as float32.
        names: names of the tensors.
        pixels: images, each (height, width, 3) uint8 in the model's channel order.

    Yields:
        For each image a list with the values of each tensor, float32, in the order of ``names``.
    """
    graph, interpreter = Graph(model), _interpreter(model)
    (given,) = interpreter.get_input_details()
    places = [graph.place(name) for name in names]
    for image in pixels:
        interpreter.set_tensor(given["index"], image[np.newaxis].astype(np.float32))
        interpreter.invoke()
        yield [interpreter.get_tensor(place) for place in places]


def observed_ranges(model: bytes, pixels: Iterable[Pixels]) -> Ranges:
    """Return the lowest and highest value of each activation over some images."""
    names = Graph(model).activations
    return widest(names, [extremes(values) for values in activations(model, names, pixels)])


def extremes(values: Iterable[Values]) -> list[tuple[float, float]]:
    """Return the lowest and highest value of each array."""
    return [(float(value.min()), float(value.max())) for value in values]


def widest(names: Iterable[str], measured: Sequence[Sequence[tuple[float, float]]]) -> Ranges:
    """Return for each tensor the range from its lowest to its highest value over all images.

    Args:
        names: names of the tensors.
        measured: for each image the `extremes` of the tensors, in the order of ``names``.
    """
    ends = np.array(measured)
    lows, highs = ends[..., 0].min(axis=0).tolist(), ends[..., 1].max(axis=0).tolist()
    return dict(zip(names, zip(lows, highs, strict=True), strict=True))


def _interpreter(model: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    with warnings.catch_warnings(), native_noise_hidden():
        # LiteRT warns that keeping every tensor costs memory; that is intended here.
        warnings.simplefilter("ignore", UserWarning)
        interpreter = Interpreter(
            model_content=model, num_threads=default_threads(), experimental_preserve_all_tensors=True
        )
        interpreter.allocate_tensors()
    return interpreter
