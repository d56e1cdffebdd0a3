"""Bias correction: compensates the mean error that the rounding of a layer's weights causes in the layer's output.

This mean error is subtracted from the bias of the layer. The method follows Nagel et al. 2019 (arXiv:1906.04721),
section 4.2, but measures the mean inputs of the layers on images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edge_agent.preprocessing import Pixels

from ..tflite.graph import LAYERS, Graph, Operation
from .observers import activations

SAME = 0
"""Value of `Padding` in the TFLite schema: pads with zeros so that a layer with a stride of 1 keeps the image size."""


def corrected(model: bytes, quantized: bytes, pixels: Pixels, *, advance: Callable[[], object] = lambda: None) -> bytes:
    """Return the float model with changed biases that compensate the rounding of its weights. Quantize it again.

    Args:
        model: the float32 ``.tflite``.
        quantized: the int8 model that was quantized from ``model``.
        pixels: (images, height, width, 3) uint8, images on which the mean inputs are measured.
        advance: called after each image.
    """
    graph, rounded = Graph(model), Graph(quantized)
    layers = [one for one in graph.operations if one.kind in LAYERS and not graph.is_constant(one.inputs[0])]
    names = [one.inputs[0] for one in layers]
    sums = [np.zeros(graph.shape(name), np.float64) for name in names]
    for values in activations(model, names, pixels):
        for total, value in zip(sums, values, strict=True):
            total += value  # noqa: PLW2901  adds in place
        advance()
    twins = rounded.makers()
    for layer, total in zip(layers, sums, strict=True):
        error = rounded.constant(twins[layer.output].inputs[1]) - graph.constant(layer.inputs[1])
        shift = _mean_output(layer, error, total / len(pixels))
        bias = graph.bias(layer)
        graph.set_constant(layer.output, 2, (0 if bias is None else bias) - shift)
    return graph.content()


def _mean_output(
    layer: Operation, weights: npt.NDArray[np.float32], mean: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the output of a layer with these weights and no bias, averaged over images and positions: (channels,).

    A layer is linear, so its output averaged over images equals its output for the mean input.
    """
    if layer.kind == "FULLY_CONNECTED":
        flat: npt.NDArray[np.float64] = (mean.reshape(-1, weights.shape[1]) @ weights.T.astype(np.float64)).mean(axis=0)
        return flat
    taps = _mean_taps(layer, weights.shape[1:3], mean[0])
    spec = "ijc,ijc->c" if layer.kind == "DEPTHWISE_CONV_2D" else "oijc,ijc->o"
    folded = weights[0] if layer.kind == "DEPTHWISE_CONV_2D" else weights
    found: npt.NDArray[np.float64] = np.einsum(spec, folded.astype(np.float64), taps)
    return found


def _mean_taps(layer: Operation, kernel: tuple[int, ...], image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the input that each kernel position sees, averaged over all output positions.

    The result has the shape (kernel height, kernel width, channels).
    """
    options = layer.raw.builtinOptions
    strides = (options.strideH, options.strideW)
    spread = (options.dilationHFactor or 1, options.dilationWFactor or 1)
    reach = [(side - 1) * step + 1 for side, step in zip(kernel, spread, strict=True)]
    if options.padding == SAME:
        around = []
        for length, stride, size in zip(image.shape[:2], strides, reach, strict=True):
            short = max(0, (-(-length // stride) - 1) * stride + size - length)
            around.append((short // 2, short - short // 2))
        image = np.pad(image, (*around, (0, 0)))
    counts = [
        (length - size) // stride + 1 for length, size, stride in zip(image.shape[:2], reach, strides, strict=True)
    ]
    taps = np.empty((*kernel, image.shape[2]))
    for row, column in np.ndindex(*kernel):
        top, left = row * spread[0], column * spread[1]
        inputs = image[
            top : top + counts[0] * strides[0] : strides[0], left : left + counts[1] * strides[1] : strides[1]
        ]
        taps[row, column] = inputs[: counts[0], : counts[1]].mean(axis=(0, 1))
    return taps
