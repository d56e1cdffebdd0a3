"""Which layers suffer most from int8: each is quantized alone, the rest left in float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..tflite.graph import LAYERS, Graph
from .observers import Ranges
from .quantize import to_int8


@dataclass(frozen=True)
class Layer:
    """A layer with weights and the element-wise operations behind it, such as its activation function.

    Attributes:
        name: as the network calls it.
        tensors: what its operations make.
    """

    name: str
    tensors: tuple[str, ...]


def layers(model: bytes) -> list[Layer]:
    """The layers of a float ``.tflite``, in order; what comes before the first one belongs to it."""
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
    """The layer's own name out of a tensor's: block2a_dwconv of "model_1/block2a_dwconv_1/depthwise;model_1/…"."""
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
    """The layers, worst first, with how far the scores move when that layer alone is int8.

    Args:
        model: the float32 ``.tflite``.
        ranges: of its activations.
        divergence: of a model's scores from those of the float model.
        among: the model's `layers`.
        advance: called after each.
    """
    damage = []
    for layer in among:
        others = [tensor for other in among if other is not layer for tensor in other.tensors]
        damage.append((layer, divergence(to_int8(model, ranges, floats=others))))
        advance()
    return sorted(damage, key=lambda entry: -entry[1])
