"""Computes class activation maps, which show where in an image the model finds evidence for a class.

The method is that of Zhou et al. 2016 (arXiv:1512.04150). If a model ends in global average pooling and one linear
layer, the logit of a class is the mean of one product over all positions, plus a bias. The product is the dot product
of the feature vector at the position and the class's column of the kernel. It is exactly the contribution of the
position to the logit. Computing it needs one forward pass and no gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_agent.native_stderr import native_noise_hidden
from edge_agent.preprocessing import Pixels

if TYPE_CHECKING:
    import keras

BATCH = 16


def activation_maps(
    model: keras.Model, images: Sequence[Pixels], classes: Sequence[int]
) -> list[npt.NDArray[np.float32]] | None:
    """Compute an activation map for one class in each image.

    Args:
        model: Keras model that maps (n, height, width, 3) pixels to (n, classes) scores.
        images: (height, width, 3) uint8 images with the model's input size and channel order.
        classes: index of the class to explain for each image.

    Returns:
        For each image a (rows, columns) float32 map with the size of the last feature map. A value is 1 at the
        strongest evidence for the class, and 0 where there is no evidence or evidence against the class. None if there
        are no images, or if the model does not end in global average pooling and one linear layer.
    """
    parts = _pooling_and_kernel(model)
    if parts is None or not images:
        return None
    import keras

    pooling, kernel = parts
    # The softmax ignores evidence that is equal for all classes. Therefore it is subtracted here, too.
    columns = kernel - kernel.mean(axis=1, keepdims=True)
    reader = keras.Model(model.input, pooling.input)
    maps: list[npt.NDArray[np.float32]] = []
    for start in range(0, len(images), BATCH):
        batch = np.zeros((BATCH, *images[0].shape), np.float32)  # always one shape: Keras compiles once
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
    """Return the pooling layer named ``features`` and the (features, classes) kernel of the linear layer after it.

    Return None if the model does not end in these two layers.
    """
    import keras

    from trainer.backbones.graph import leaves

    pooling = next((layer for layer in model.layers if layer.name == "features"), None)
    dense = [layer for layer in leaves(model) if isinstance(layer, keras.layers.Dense)]
    if not isinstance(pooling, keras.layers.GlobalAveragePooling2D) or not dense:
        return None
    kernel = keras.ops.convert_to_numpy(dense[-1].kernel).astype(np.float32)
    # A head with several layers is not linear, and its last kernel is not applied to the pooled features.
    linear = kernel.shape == (pooling.output.shape[-1], model.output.shape[-1]) and len(dense) == 1
    return (pooling, kernel) if linear else None
