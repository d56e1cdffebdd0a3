"""Converts networks to flat graphs of plain Keras layers with reproducible layer names.

Importing this module imports Keras.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np


def pooled(pixels: Any, maps: Any, name: str) -> keras.Model:
    """Return the network from the input ``pixels`` to the feature maps ``maps``, with a pooling layer at the end.

    The pooling layer has the name "features" and averages each feature map over the image. It is always float32,
    because the head and the cached features are float32.
    """
    features = keras.layers.GlobalAveragePooling2D(name="features", dtype="float32")(maps)
    return keras.Model(pixels, features, name=name)


def plainest(model: keras.Model) -> keras.Model:
    """Return the network with stable layer names and, if possible, without layers of other packages.

    Each layer of another package is replaced by the Keras layers that it contains. If this fails or changes the
    features, only the layer names are changed. If that also fails, the network is returned unchanged.
    """
    for apart in (True, False):
        try:
            copy = settled(_inlined(model) if apart else model)
            if _same_features(model, copy):
                return copy
        except Exception:  # noqa: BLE001, S112  layers of other packages can raise anything when they are replaced
            continue
    return model


def is_plain(model: keras.Model) -> bool:
    """Return True if all layers are part of Keras, so that the saved model can be loaded without other packages."""
    return all(_is_keras_own(operation) for operation in model.operations)


def loads_again(model: keras.Model) -> bool:
    """Return True if Keras can rebuild the model from its saved configuration."""
    try:
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model), safe_mode=True)
    except Exception:  # noqa: BLE001  layers of other packages can raise anything
        return False
    return True


def settled(model: keras.Model) -> keras.Model:
    """Return a copy of the model with the same weights and with stable layer names.

    Stable means that the names do not depend on models that were built before in the same process: layers that Keras
    has numbered are numbered again, from 1 in each model. No name begins with "_", because the conversion to TFLite
    does not support such names. ImageNet's mean and variance are stored in the configuration instead of the weights;
    see `_copy`.
    """
    names = _stable_names(model)
    copies: dict[str, Any] = {}

    def copy(operation: Any) -> Any:
        copies[operation.name] = _copy(operation, names[operation.name])
        return copies[operation.name]

    clone = keras.models.clone_model(model, clone_function=copy)
    for layer in model.layers:
        if layer.name in copies and copies[layer.name].weights:
            copies[layer.name].set_weights(layer.get_weights())
    return clone


def leaves(layer: Any) -> Iterator[Any]:
    """Yield the layers of a model. Instead of a nested model, yield the layers inside it."""
    inner = getattr(layer, "layers", None)
    if inner is None:
        yield layer
    for part in inner or ():
        yield from leaves(part)


def _inlined(model: keras.Model) -> keras.Model:
    """Return the network with each layer of another package replaced by the layers that it contains.

    The result shares its weights with ``model``.
    """
    while any(_opens(layer) for layer in model.layers):
        for layer in filter(_opens, model.layers):
            for attribute, part in _parts(layer).items():
                if _is_numbered(part) or not part.name.startswith(layer.name):
                    part.name = f"{layer.name}_{attribute}"
        model = keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=_call)
    return model


def _same_features(one: keras.Model, other: keras.Model) -> bool:
    pixels = np.random.default_rng(0).uniform(0, 255, (1, *one.input_shape[1:])).astype(np.float32)
    before, after = (keras.ops.convert_to_numpy(network(pixels)) for network in (one, other))
    return np.allclose(before, after, rtol=1e-3, atol=1e-3 * float(np.abs(before).max()))


def _copy(operation: Any, name: str) -> Any:
    """Return a copy of the operation with another name and with initial weights.

    A Normalization layer is treated specially. EfficientNet's Normalization layer stores ImageNet's mean and variance
    as weights, which are 0 and 1 until weights are loaded. By mistake, the published files contain the standard
    deviation instead of the variance, and `keras.applications` corrects this with another layer
    (github.com/tensorflow/tensorflow/issues/49930). Because the mean and the variance are constants, the copy has the
    correct values in its configuration instead.
    """
    config = {**operation.get_config(), "name": name}
    if isinstance(operation, keras.layers.Normalization) and operation.weights:
        config |= {"mean": [0.485, 0.456, 0.406], "variance": [0.229**2, 0.224**2, 0.225**2]}
    return type(operation).from_config(config)


def _stable_names(model: keras.Model) -> dict[str, str]:
    names: dict[str, str] = {}
    taken = {operation.name for operation in model.operations if not _is_numbered(operation)}
    for operation in model.operations:
        name = operation.name.lstrip("_")
        if _is_numbered(operation) or name in names.values():
            kind, number = _kind(operation), 1
            while f"{kind}_{number}" in taken:
                number += 1
            name = f"{kind}_{number}"
            taken.add(name)
        names[operation.name] = name
    return names


def _is_numbered(operation: Any) -> bool:
    return re.fullmatch(rf"{_kind(operation)}(_\d+)?", operation.name) is not None


def _kind(operation: Any) -> str:
    """Return Keras' default name for an operation of this class, without the number: for example conv2d for Conv2D."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", type(operation).__name__)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower().lstrip("_")


def _is_keras_own(operation: Any) -> bool:
    return type(operation).__module__.startswith("keras.")


def _opens(layer: Any) -> bool:
    """Return True if the layer belongs to another package and can be replaced by the layers that it contains.

    This is possible if all weights of the layer belong to the layers inside it.
    """
    inner = {id(weight) for part in _parts(layer).values() for weight in part.weights}
    return not _is_keras_own(layer) and all(id(weight) in inner for weight in layer.weights)


def _parts(layer: Any) -> dict[str, Any]:
    """Return the layers that are stored in the attributes of a layer, as a dict by attribute name.

    Layers in a public attribute that is a list or tuple have the name of the attribute and their index as key.
    """
    parts = {}
    for attribute, value in vars(layer).items():
        many = isinstance(value, list | tuple) and not attribute.startswith("_")
        for number, part in enumerate(value if many else [value]):
            if isinstance(part, keras.Layer):
                parts[f"{attribute}_{number}" if many else attribute] = part
    return parts


def _call(layer: Any, *tensors: Any, **named: Any) -> Any:
    """Call a layer. If the layer is to be replaced, call its ``call`` method directly.

    Keras then records the layers inside it in the graph, instead of the layer itself.
    """
    return (
        layer.call(*tensors, **named) if isinstance(layer, keras.Layer) and _opens(layer) else layer(*tensors, **named)
    )
