"""Layer sensitivity: measures how much the scores of a model change if only one of its layers is quantized to int8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..tflite.graph import LAYERS, Graph
from .observers import Ranges
from .quantize import to_int8


@dataclass(frozen=True)
class Layer:
    """A layer with weights, together with the operations between it and the next such layer, such as its activation.

    Attributes:
        name: name of the layer in the network.
        tensors: names of the tensors that the operations of the layer compute.
    """

    name: str
    tensors: tuple[str, ...]


def layers(model: bytes) -> list[Layer]:
    """Return the layers of a float ``.tflite`` in order. Operations before the first layer count as part of it."""
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
    """Extract the name of a layer from the name of a tensor.

    For example, "model_1/block2a_dwconv_1/depthwise;model_1/…" gives "block2a_dwconv".
    """
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
    """Measure the damage that quantizing each layer does on its own, and return the layers, worst first.

    The damage of a layer is the divergence of the scores when only this layer is int8.

    Args:
        model: the float32 ``.tflite``.
        ranges: ranges of the model's activations.
        divergence: takes a model and returns the divergence of its scores from the scores of the float model.
        among: the `layers` of the model.
        advance: called after each layer.
    """
    damage = []
    for layer in among:
        others = [tensor for other in among if other is not layer for tensor in other.tensors]
        damage.append((layer, divergence(to_int8(model, ranges, floats=others))))
        advance()
    return sorted(damage, key=lambda entry: -entry[1])
