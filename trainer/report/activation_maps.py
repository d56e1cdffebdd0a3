"""What the model looks at: class activation maps (Zhou et al. 2016, arXiv:1512.04150).

With global average pooling and one linear layer, the score of a class before softmax is the mean over all places of
(feature map at the place) . (the class's kernel column), plus a bias. So these products, place by place, are an
exact account of where the score comes from: no gradients, one forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_agent.native_stderr import native_noise_hidden
from edge_agent.preprocess import Pixels

if TYPE_CHECKING:
    import keras

BATCH = 16


def activation_maps(
    model: keras.Model, images: Sequence[Pixels], classes: Sequence[int]
) -> list[npt.NDArray[np.float32]] | None:
    """Where in each image the evidence for a class lies.

    Args:
        model: from (n, height, width, 3) pixels to (n, classes) scores.
        images: (height, width, 3) uint8 each, as the model takes them.
        classes: the class to ask for in each image.

    Returns:
        A map (rows, columns) float32 for each image, of the size of the last feature map: 1 at the strongest
        evidence, 0 where there is none or it speaks against the class. None where the model is not made of
        global average pooling and a linear layer.
    """
    parts = _pooling_and_kernel(model)
    if parts is None or not images:
        return None
    import keras

    pooling, kernel = parts
    # Softmax does not see what all classes share; nor should the map.
    columns = kernel - kernel.mean(axis=1, keepdims=True)
    reader = keras.Model(model.input, pooling.input)
    maps: list[npt.NDArray[np.float32]] = []
    for start in range(0, len(images), BATCH):
        batch = np.zeros((BATCH, *images[0].shape), np.float32)  # one shape, compiled once
        some = images[start : start + BATCH]
        batch[: len(some)] = some
        with native_noise_hidden():
            features = keras.ops.convert_to_numpy(reader.predict_on_batch(batch)).astype(np.float32)
        if pooling.data_format == "channels_first":
            features = np.moveaxis(features, 1, -1)
        for feature_map, index in zip(features, classes[start : start + BATCH], strict=False):
            evidence = np.maximum(feature_map @ columns[:, index], 0)
            maps.append(evidence / max(float(evidence.max()), 1e-9))
    return maps


def _pooling_and_kernel(model: keras.Model) -> tuple[Any, npt.NDArray[np.float32]] | None:
    """The pooling layer called ``features``, and the (features, classes) kernel behind it."""
    import keras

    from trainer.backbones.graph import leaves

    pooling = next((layer for layer in model.layers if layer.name == "features"), None)
    dense = [layer for layer in leaves(model) if isinstance(layer, keras.layers.Dense)]
    if not isinstance(pooling, keras.layers.GlobalAveragePooling2D) or not dense:
        return None
    kernel = keras.ops.convert_to_numpy(dense[-1].kernel).astype(np.float32)
    # A head of several layers is not linear: its last kernel fits other features.
    one = kernel.shape == (pooling.output.shape[-1], model.output.shape[-1]) and len(dense) == 1
    return (pooling, kernel) if one else None
