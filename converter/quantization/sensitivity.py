"""Layer sensitivity: measures how much each layer loses when it alone is quantized to int8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..tflite.graph import LAYERS, Graph
from .observers import Ranges
from .quantize import to_int8


@dataclass(frozen=True)
class Layer:
    """A layer with weights and the element-wise operations after it, such as its activation function.

    Attributes:
        name: name in the network.
        tensors: names of the tensors that its operations compute.
    """

    name: str
    tensors: tuple[str, ...]


def layers(model: bytes) -> list[Layer]:
    """Return the layers of a float ``.tflite`` in order; operations before the first layer belong to it."""
    found: list[list[str]] = [[]]
    names: list[str] = []
    for operation in Graph(model).operations:
        if operation.kind in LAYERS:
            if names:
                found.append([])
            names.append(layer_name(operation.output))
        found[-1].append(operation.output)
    return [Layer(name, tuple(tensors)) for name, tensors in zip(names, found, strict=True)]


def layer_name(tensor: str) -> str:
    """Extract the layer's name from a tensor's: block2a_dwconv from "model_1/block2a_dwconv_1/depthwise;model_1/…"."""
    parts = tensor.split(";", maxsplit=1)[0].split("/")
    name = parts[1] if len(parts) > 2 else parts[0]
    return name.removesuffix("_1")


def by_damage(
    model: bytes,
    ranges: Ranges,
    divergence: Callable[[bytes], float],
    *,
    among: list[Layer],
    advance: Callable[[], object] = lambda: None,
) -> list[tuple[Layer, float]]:
    """Return the layers, worst first, each with the divergence of the scores when that layer alone is int8.

    Args:
        model: the float32 ``.tflite``.
        ranges: ranges of its activations.
        divergence: returns the divergence of a model's scores from those of the float model.
        among: the model's `layers`.
        advance: called after each layer.
    """
    damage = []
    for layer in among:
        others = [tensor for other in among if other is not layer for tensor in other.tensors]
        damage.append((layer, divergence(to_int8(model, ranges, floats=others))))
        advance()
    return sorted(damage, key=lambda entry: -entry[1])
