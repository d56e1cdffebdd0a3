"""Cross-layer equalization: gives the channels of a tensor similar ranges, so that one scale suits all of them.

The method follows Nagel et al. 2019 (arXiv:1906.04721), section 4.1. It applies where the operations between layers
only add, average, take maxima, pad with zeros or clip at zero. There, a channel can be divided by a positive factor in
the layers that compute it and multiplied by the same factor in the layers that read it, and the output of the network
does not change. In networks with linear bottlenecks, such as EfficientNet and MobileNet, this applies to the whole
residual stream of a stage.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edge_agent.preprocessing import Pixels

from ..tflite.graph import LAYERS, Graph, Operation
from .observers import activations

LIMIT = 16.0
"""Largest factor by which a channel is multiplied or divided.

Larger factors would amplify channels that are almost always zero.
"""

_HOMOGENEOUS = {"NONE", "RELU"}
_PASSING = {"ADD", "RELU", "MAX_POOL_2D", "AVERAGE_POOL_2D", "MEAN", "PAD"}


def equalized(model: bytes, pixels: Pixels, *, advance: Callable[[], object] = lambda: None) -> bytes | None:
    """Equalize the channels of a float model.

    Return the changed model, or None if it has no channels that can be scaled.

    Args:
        model: the float32 ``.tflite``.
        pixels: (images, height, width, 3) uint8, images on which the largest absolute value of each channel is
            measured.
        advance: called after each image.
    """
    graph = Graph(model)
    streams = _streams(graph)
    if not streams:
        return None
    names = sorted({name for stream in streams for name in stream})
    peaks: dict[str, npt.NDArray[np.float32]] = {name: np.zeros(graph.shape(name)[-1], np.float32) for name in names}
    for values in activations(model, names, pixels):
        for name, value in zip(names, values, strict=True):
            peaks[name] = np.maximum(peaks[name], np.abs(value).reshape(-1, value.shape[-1]).max(axis=0))
        advance()
    for stream in streams:
        _scale(graph, stream, np.max([peaks[name] for name in stream], axis=0))
    return graph.content()


def _streams(graph: Graph) -> list[frozenset[str]]:
    """Return the sets of tensors whose channels can be scaled together.

    Layers compute the tensors of a set, operations without weights may pass the values on within the set, and layers
    read them.
    """
    group: dict[str, frozenset[str]] = {name: frozenset([name]) for name in graph.activations}
    for operation in graph.operations:
        if _passes(graph, operation):
            joined = frozenset.union(*(group[name] for name in (*operation.inputs, operation.output) if name in group))
            group |= dict.fromkeys(joined, joined)
    makers, readers = graph.makers(), graph.readers()
    ends = {*graph.inputs, *graph.outputs}

    def free(name: str) -> bool:
        maker = makers.get(name)
        return (
            name not in ends
            and maker is not None
            and (_passes(graph, maker) or (maker.kind in LAYERS and maker.activation in _HOMOGENEOUS))
            and all(_passes(graph, reader) or _reads_channels(graph, reader) for reader in readers.get(name, []))
        )

    found = sorted(set(group.values()), key=sorted)
    return [stream for stream in found if all(free(name) for name in stream)]


def _passes(graph: Graph, operation: Operation) -> bool:
    """Return True if scaling the channels of all inputs scales the channels of the output by the same factors."""
    if operation.kind not in _PASSING or operation.activation not in _HOMOGENEOUS:
        return False
    given = [name for name in operation.inputs if not graph.is_constant(name)]
    channels = {graph.shape(name)[-1] for name in (*given, operation.output)}
    # An added constant would have to be scaled as well; a mean over channels would mix them.
    return len(channels) == 1 and (operation.kind != "ADD" or len(given) == 2)


def _reads_channels(graph: Graph, operation: Operation) -> bool:
    return operation.kind in LAYERS and graph.shape(operation.inputs[1])[-1] == graph.shape(operation.inputs[0])[-1]


def _scale(graph: Graph, stream: frozenset[str], peaks: npt.NDArray[np.float32]) -> None:
    """Divide each channel by a factor in the layers that compute it and multiply by it in the layers that read it."""
    reading = [one for one in graph.operations if one.kind in LAYERS and one.inputs[0] in stream]
    making = [one for one in graph.operations if one.kind in LAYERS and one.output in stream]
    used = np.max(
        [np.abs(graph.constant(one.inputs[1])).reshape(-1, len(peaks)).max(axis=0) for one in reading], axis=0
    )
    alive = (peaks > 0) & (used > 0)
    # The square root balances both sides: a factor evens out the activations but spreads the weights that read them.
    factors = np.where(alive, np.sqrt(np.where(alive, peaks, 1) / np.where(alive, used, 1)), 1)
    factors = np.where(alive, factors / np.exp(np.log(factors[alive]).mean()), 1) if alive.any() else factors
    factors = np.clip(factors, 1 / LIMIT, LIMIT).astype(np.float32)
    for one in making:
        weights, bias = graph.constant(one.inputs[1]), graph.bias(one)
        shape = [1] * weights.ndim
        shape[-1 if one.kind == "DEPTHWISE_CONV_2D" else 0] = -1
        graph.set_constant(one.output, 1, weights / factors.reshape(shape))
        if bias is not None:
            graph.set_constant(one.output, 2, bias / factors)
    for one in graph.operations:
        # Iterate again: a layer between two streams was just changed as a writer of this one.
        if one.kind in LAYERS and one.inputs[0] in stream:
            graph.set_constant(one.output, 1, graph.constant(one.inputs[1]) * factors)
