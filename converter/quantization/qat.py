"""Quantization-aware fine-tuning: trains the network for some more steps while its values are rounded as in int8.

The method follows Jacob et al. 2018 (arXiv:1712.05877), section 3. The training targets are the scores of the float
network, so that neither the labels nor the hyperparameters of the original training are needed. The functions import
TensorFlow and Keras when they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_agent.native_stderr import native_noise_hidden
from edge_agent.preprocessing import Pixels

from .observers import Ranges, extremes, widest
from .range_clipping import least_error

if TYPE_CHECKING:
    import keras

BATCH = 16
STEPS = 120
"""Number of training steps.

For EfficientNet-B0 they take some minutes on two cores. The first 100 steps reduced the divergence of its int8 scores
from its float scores from 0.044 to 0.032.
"""
LEARNING_RATE = 0.002
"""Change of a weight per training step at the beginning, in units of the weight's rounding step.

It is small because a gradient moves a whole layer in the same direction, whereas rounding errors have no common
direction.
"""
SEED = 0

_FUSED = {"relu", "relu6"}


def _sigmoid_gate(values: Any) -> Any:
    from keras import ops

    return _rounded_values(ops.sigmoid(values), 0.0, 1.0)


def _hard_sigmoid_gate(values: Any) -> Any:
    from keras import ops

    return _rounded_values(_rounded_values(ops.relu6(values + 3), 0.0, 6.0) / 6, 0.0, 1.0)


_GATES = {"silu": _sigmoid_gate, "hard_silu": _hard_sigmoid_gate}


def fine_tune(
    model: keras.Model,
    images: Pixels,
    sample: Pixels,
    *,
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Adapt the model's weights in place to int8 rounding.

    Args:
        model: the run's classifier, which maps pixels to scores.
        images: (n, height, width, 3) uint8, training images, preprocessed as on the device.
        sample: (images, height, width, 3) uint8, images on which the ranges of the values are measured.
        advance: called after each of the `STEPS`.
    """
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(SEED)
    with native_noise_hidden():
        student = _rounding(model, sample)
    teacher_scores = _scores(model, images)
    kernels = _kernels(student)
    variables = [variable for variable, _ in kernels]
    # The trained variables are offsets in rounding steps, because kernels differ in size by orders of magnitude.
    units = [_step(variable.value, depthwise=depthwise) for variable, depthwise in kernels]
    moves = [keras.Variable(np.zeros(variable.shape, np.float32)) for variable, _ in kernels]
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(LEARNING_RATE, STEPS))
    optimizer.build(moves)

    def moved() -> list[Any]:
        return [
            variable.value + move.value * unit for (variable, _), move, unit in zip(kernels, moves, units, strict=True)
        ]

    @tf.function  # type: ignore[untyped-decorator]  # TensorFlow has no types
    def step(pixels: Any, target: Any) -> None:
        with tf.GradientTape() as tape:
            rounded = [
                _rounded_weights(kernel, depthwise=depthwise)
                for kernel, (_, depthwise) in zip(moved(), kernels, strict=True)
            ]
            with keras.StatelessScope(state_mapping=list(zip(variables, rounded, strict=True))):
                scores = student(pixels, training=False)
            loss = tf.reduce_mean(keras.losses.kl_divergence(target, scores))
        optimizer.apply(tape.gradient(loss, [move.value for move in moves]), moves)

    order = np.random.default_rng(SEED)
    for _ in range(STEPS):
        batch = np.sort(order.choice(len(images), min(BATCH, len(images)), replace=False))
        pixels = images[batch]
        # Mirroring doubles the number of different images and changes the scores little.
        if order.random() < 0.5:
            mirrored = pixels[:, :, ::-1]
            target = model(mirrored.astype(np.float32), training=False)
            step(tf.constant(mirrored, tf.float32), target)
        else:
            step(tf.constant(pixels, tf.float32), tf.constant(teacher_scores[batch]))
        advance()
    for variable, value in zip(variables, moved(), strict=True):
        variable.assign(value)
    model.set_weights(student.get_weights())


def _scores(model: keras.Model, images: Pixels) -> npt.NDArray[np.float32]:
    return np.concatenate(
        [
            np.asarray(model(images[start : start + BATCH].astype(np.float32), training=False))
            for start in range(0, len(images), BATCH)
        ]
    )


def _rounding(model: keras.Model, sample: Pixels) -> keras.Model:
    """Return a copy of the model that rounds the outputs of its layers as in int8. Its weights are not rounded."""
    import keras

    ranges = _ranges(model, sample)

    class Rounded(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
        """Rounds values as in int8.

        It is a layer so that it has its own name. Otherwise Keras would give its additions the same names as additions
        of the network.
        """

        def call(self, values: Any) -> Any:
            return _rounded_values(values, *ranges[self.name.removesuffix(".rounded")])

    class Gated(keras.layers.Layer):  # type: ignore[misc]
        """A swish activation as an int8 model computes it: the input multiplied by a rounded gate."""

        def __init__(self, kind: str, *, name: str) -> None:
            super().__init__(name=name)
            self._gate = _GATES[kind]

        def call(self, values: Any) -> Any:
            return values * self._gate(values)

    def call(operation: Any, *arguments: Any, **options: Any) -> Any:
        kind = getattr(getattr(operation, "activation", None), "__name__", "")
        if isinstance(operation, keras.layers.Activation) and kind in _GATES:
            given = Gated(kind, name=operation.name)(*arguments)
        else:
            given = operation(*arguments, **options)
        return Rounded(name=f"{operation.name}.rounded")(given) if operation.name in ranges else given

    copy = keras.models.clone_model(model, call_function=call)
    copy.set_weights(model.get_weights())
    return copy


def _ranges(model: keras.Model, sample: Pixels) -> Ranges:
    """Return the int8 range of the result of each operation in `_stored`, by the name of the operation.

    The range is the one with the least mean squared error.
    """
    import keras

    places = _stored(model)
    names = [operation.name for operation in places]
    probe = keras.Model(model.input, [operation.output for operation in places])

    def batches() -> Iterator[list[npt.NDArray[np.float32]]]:
        for start in range(0, len(sample), BATCH):
            values = probe(sample[start : start + BATCH].astype(np.float32), training=False)
            yield [np.asarray(value) for value in (values if isinstance(values, list | tuple) else [values])]

    return least_error(batches(), widest(names, [extremes(values) for values in batches()]))


def _stored(model: keras.Model) -> list[Any]:
    """Return the operations whose results an int8 model stores as integers.

    The conversion fuses batch norm, ReLU and ReLU6 with the operation before them. The result of that operation is then
    not stored, so it is left out. The operation that computes the scores is left out as well, because the scores stay
    in float. Operations that do not change the values, such as padding and reshaping, are also left out.
    """
    import keras

    readers: dict[int, list[Any]] = {}
    for operation in model.operations:
        for given in _tensors(operation, "input"):
            readers.setdefault(id(given), []).append(operation)

    def fused(operation: Any) -> bool:
        kind = getattr(getattr(operation, "activation", None), "__name__", "")
        relu = isinstance(operation, keras.layers.ReLU) or (
            isinstance(operation, keras.layers.Activation) and kind in _FUSED
        )
        return relu or isinstance(operation, keras.layers.BatchNormalization)

    same = (
        keras.layers.InputLayer,
        keras.layers.ZeroPadding2D,
        keras.layers.Reshape,
        keras.layers.Flatten,
        keras.layers.Dropout,
    )
    ends = {id(tensor) for tensor in model.outputs}
    found = []
    for operation in model.operations:
        results = _tensors(operation, "output")
        if isinstance(operation, same) or len(results) != 1 or id(results[0]) in ends:
            continue
        following = readers.get(id(results[0]), [])
        if not (following and all(fused(reader) for reader in following)):
            found.append(operation)
    return found


def _kernels(model: keras.Model) -> list[tuple[Any, bool]]:
    """Return the kernels that become int8, and for each kernel True if it belongs to a depthwise layer."""
    import keras

    layers = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
    return [
        (layer.kernel, isinstance(layer, keras.layers.DepthwiseConv2D))
        for layer in model.layers
        if isinstance(layer, layers)
    ]


def _tensors(operation: Any, end: str) -> list[Any]:
    import keras

    try:
        return list(keras.tree.flatten(getattr(operation, end)))
    except AttributeError:  # an input layer has no input
        return []


def _rounded_values(values: Any, low: float, high: float) -> Any:
    """Clip values to a range and round them to 8 bits. Gradients are computed as if the values were only clipped."""
    from keras import ops

    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255 or 1.0
    # Zero is one of the 256 values, so the others lie at whole multiples of the step.
    lowest = round(low / step) * step
    clipped = ops.clip(values, lowest, lowest + 255 * step)
    return clipped + ops.stop_gradient(ops.round(clipped / step) * step - clipped)


def _step(kernel: Any, *, depthwise: bool) -> Any:
    """Return the rounding step of each output channel of a kernel, whose int8 weights can have 255 values.

    The kernel has the shape (height, width, in, out) or (in, out); a depthwise one has (height, width, channels, 1).
    """
    from keras import ops

    axes = (0, 1) if depthwise else tuple(range(len(kernel.shape) - 1))
    return ops.maximum(ops.max(ops.abs(kernel), axis=axes, keepdims=True) / 127, 1e-12)


def _rounded_weights(kernel: Any, *, depthwise: bool) -> Any:
    """Round a kernel to 8 bits with one scale per output channel. Gradients are computed as if it were not rounded."""
    from keras import ops

    step = _step(kernel, depthwise=depthwise)
    return kernel + ops.stop_gradient(ops.round(kernel / step) * step - kernel)
