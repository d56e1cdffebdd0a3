"""What is done to keep int8 as good as float, on a small network that has every kind of layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from converter.quantization import qat
from converter.quantization.bias_correction import _mean_output, corrected
from converter.quantization.cross_layer_equalization import _streams, equalized
from converter.quantization.observers import Ranges, activations, observed_ranges
from converter.quantization.quantize import to_float16, to_int8
from converter.quantization.range_clipping import _least_error, clipped
from converter.quantization.sensitivity import by_damage, layer_name, layers
from converter.tflite import float_model
from converter.tflite.graph import LAYERS, Graph
from converter.tflite.xnnpack import off_the_fast_path, with_fast_operations
from edge_agent.inference.interpreter import Interpreter
from edge_agent.native_stderr import native_noise_hidden
from edge_agent.preprocessing import Pixels, PreprocessSpec

SPEC = PreprocessSpec((32, 32))
CLASSES = 4


@pytest.fixture(scope="module")
def network() -> Any:
    """Hard-swish, ReLU6, depthwise, strides, a residual stream, squeeze-and-excite; weights at random."""
    with native_noise_hidden():
        import keras
    keras.utils.set_random_seed(7)
    layers = keras.layers
    pixels = keras.Input(SPEC.shape, name="pixels")
    x = layers.Rescaling(1 / 127.5, -1.0)(pixels)
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(x)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = layers.Activation("hard_silu", name="stem_swish")(x)
    x = stream = layers.Conv2D(6, 1, name="project0")(x)
    x = layers.Conv2D(12, 1, name="expand")(x)
    x = layers.ReLU(6.0, name="expand_relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.ReLU(name="depthwise_relu")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(12, 1, activation="sigmoid", name="gate")(gate)
    x = layers.Multiply(name="excite")([x, gate])
    x = layers.Conv2D(6, 1, name="project1")(x)
    x = layers.Add(name="add")([x, stream])
    x = layers.Conv2D(16, 3, strides=2, padding="valid", activation="relu", name="head")(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    model = keras.Model(pixels, layers.Dense(CLASSES, activation="softmax", name="scores")(x))
    # So that its scores differ from image to image as a trained network's do.
    kernel, bias = model.get_layer("scores").get_weights()
    model.get_layer("scores").set_weights([40 * kernel, bias])
    return model


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    random = np.random.default_rng(1)
    return random.integers(0, 256, (24, *SPEC.shape), np.uint8)


def lowered(network: Any, folder: Path) -> bytes:
    float_model.export(network, folder, SPEC)
    return float_model.to_float(folder)


@pytest.fixture(scope="module")
def model(network: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return lowered(network, tmp_path_factory.mktemp("float") / "saved")


@pytest.fixture(scope="module")
def ready(model: bytes) -> bytes:
    return with_fast_operations(model)


@pytest.fixture(scope="module")
def ranges(ready: bytes, pixels: Pixels) -> Ranges:
    return observed_ranges(ready, pixels)


def scores(model: bytes, pixels: Pixels) -> npt.NDArray[np.float32]:
    found = []
    with Interpreter(model, threads=1) as loaded:
        for image in pixels:
            loaded.input()[0] = image
            loaded.invoke()
            found.append(loaded.output()[0].copy())
    return np.stack(found)


def divergence_from(model: bytes, pixels: Pixels) -> Any:
    wanted = scores(model, pixels).clip(1e-7)
    return lambda other: float((wanted * np.log(wanted / scores(other, pixels).clip(1e-7))).sum(axis=1).mean())


def test_int8_takes_uint8_levels_and_gives_float_scores_that_do_not_tie(
    ready: bytes, ranges: Ranges, pixels: Pixels
) -> None:
    quantized = to_int8(ready, ranges)
    with Interpreter(quantized) as loaded:
        given, made = loaded.tensors.input, loaded.tensors.output
    assert (given.dtype, given.scale, given.zero_point) == ("uint8", 1, 0)
    assert made.dtype == "float32"
    found = scores(quantized, pixels)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found, scores(ready, pixels), atol=0.03)
    # Not the steps of 1/256 of an int8 softmax.
    assert np.abs(found * 256 - np.round(found * 256)).max() > 0.1


def test_int8_weights_have_a_scale_for_each_channel(ready: bytes, ranges: Ranges) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=to_int8(ready, ranges))
    weights = [tensor for tensor in interpreter.get_tensor_details() if len(tensor["shape"]) == 4]
    per_channel = [
        tensor
        for tensor in weights
        if tensor["dtype"] == np.int8 and len(tensor["quantization_parameters"]["scales"]) > 1
    ]
    assert len(per_channel) == 7


def test_float16_halves_the_weights_and_keeps_the_scores(model: bytes, pixels: Pixels) -> None:
    half = to_float16(model)
    assert any(value.dtype == np.float16 for value in weights_of(half))
    np.testing.assert_allclose(scores(half, pixels), scores(model, pixels), atol=2e-3)


def weights_of(model: bytes) -> list[npt.NDArray[Any]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model)
    return [
        interpreter.get_tensor(tensor["index"])
        for tensor in interpreter.get_tensor_details()
        if tensor["dtype"] == np.float16
    ]


def test_hard_swish_is_spelled_out_and_stays_on_the_fast_path(
    model: bytes, ready: bytes, ranges: Ranges, pixels: Pixels
) -> None:
    assert "HARD_SWISH" in [operation.kind for operation in Graph(model).operations]
    assert "HARD_SWISH" not in [operation.kind for operation in Graph(ready).operations]
    np.testing.assert_allclose(scores(ready, pixels), scores(model, pixels), atol=1e-5)
    assert off_the_fast_path(to_int8(model, observed_ranges(model, pixels)))["HARD_SWISH"] == 1
    assert not off_the_fast_path(to_int8(ready, ranges))
    assert with_fast_operations(ready) is ready


def test_hard_swish_is_spelled_out_for_values_beyond_its_bend_too(network: Any, tmp_path: Path, pixels: Pixels) -> None:
    import keras

    steep = keras.models.clone_model(network)
    steep.set_weights(network.get_weights())
    norm = steep.get_layer("stem_bn")
    norm.gamma.assign(40 * norm.gamma)
    before = lowered(steep, tmp_path / "saved")
    (swish,) = [operation for operation in Graph(before).operations if operation.kind == "HARD_SWISH"]
    given, wanted = next(activations(before, [swish.inputs[0], swish.output], pixels))
    assert given.max() > 3 > -3 > given.min()
    (found,) = next(activations(with_fast_operations(before), [swish.output], pixels))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_clipping_finds_the_ends_with_the_least_error() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(0, 1, 1_000_000), [40.0]])
    counts, _ = np.histogram(values, 2048, (values.min(), values.max()))
    low, high = _least_error(counts.astype(float), values.min(), values.max())
    assert high < 20  # one value in a million does not set the step of all others

    def error(a: float, b: float) -> float:
        step = (b - a) / 255
        return float(np.square(np.clip(np.round(values / step) * step, a, b) - values).mean())

    assert error(low, high) < error(float(values.min()), float(values.max()))
    # An even distribution has nothing to clip.
    assert _least_error(np.ones(2048), -1.0, 3.0) == (-1, 3)
    assert _least_error(np.ones(2048), 1.0, 3.0)[0] == 0
    assert _least_error(np.zeros(2048), 0.0, 0.0) == (0, 0)


def test_clipped_ranges_lie_within_the_measured_ones(ready: bytes, ranges: Ranges, pixels: Pixels) -> None:
    found = clipped(ready, ranges, pixels)
    assert found.keys() == ranges.keys()
    for name, (low, high) in found.items():
        assert min(ranges[name][0], 0) <= low <= high <= max(ranges[name][1], 0)
    assert any(found[name] != ranges[name] for name in found)


def test_equalising_computes_the_same_with_more_even_channels(network: Any, tmp_path: Path, pixels: Pixels) -> None:
    before = with_fast_operations(lowered(uneven(network, 100), tmp_path / "saved"))
    after = equalized(before, pixels)
    assert after is not None
    np.testing.assert_allclose(scores(after, pixels), scores(before, pixels), atol=1e-5)
    distance = divergence_from(before, pixels)
    damage = [distance(to_int8(one, observed_ranges(one, pixels))) for one in (before, after)]
    assert damage[1] < damage[0] / 10


def uneven(network: Any, factor: float) -> Any:
    """The same function with one channel of the residual stream so much larger: int8 has no room for the others."""
    import keras

    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    for name in ("project0", "project1"):
        kernel, bias = copy.get_layer(name).get_weights()
        kernel[..., 2] *= factor
        bias[2] *= factor
        copy.get_layer(name).set_weights([kernel, bias])
    for name in ("expand", "head"):
        kernel, bias = copy.get_layer(name).get_weights()
        kernel[:, :, 2] /= factor
        copy.get_layer(name).set_weights([kernel, bias])
    return copy


def test_only_channels_that_may_be_scaled_are(ready: bytes) -> None:
    """The residual stream, and what the head's ReLU gives; nothing behind ReLU6, a product or a hard-swish."""
    graph = Graph(ready)
    makers = {
        layer_name(operation.output)
        for stream in _streams(graph)
        for operation in graph.operations
        if operation.output in stream
    }
    assert {"project0", "add", "project1"} <= makers
    assert not {"expand_relu", "depthwise_relu", "stem_swish", "stem", "gate", "excite", "scores"} & makers
    stream = next(stream for stream in _streams(graph) if len(stream) == 3)
    assert {graph.shape(name)[-1] for name in stream} == {6}


def test_equalising_scales_biases_and_depthwise_layers_and_not_without_bound(tmp_path: Path, pixels: Pixels) -> None:
    with native_noise_hidden():
        import keras
    keras.utils.set_random_seed(3)
    layers = keras.layers
    given = keras.Input(SPEC.shape, name="pixels")
    x = layers.Conv2D(8, 3, strides=2, activation="relu", name="first")(layers.Rescaling(1 / 127.5)(given))
    x = layers.DepthwiseConv2D(3, activation="relu", name="second")(x)
    x = layers.Conv2D(8, 1, name="third")(x)
    x = layers.Conv2D(8, 1, activation="relu", name="fourth")(x)
    shifted = layers.Rescaling(1.0, offset=1.0)(x)  # an addition, but of a constant
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="fifth")(shifted)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    network = keras.Model(given, layers.Dense(CLASSES, activation="softmax", name="scores")(x))
    random = np.random.default_rng(3)
    for name in ("first", "second", "third", "fourth", "fifth"):
        kernel, bias = network.get_layer(name).get_weights()
        network.get_layer(name).set_weights([kernel, random.normal(size=bias.shape)])
    kernel, bias = network.get_layer("second").get_weights()
    kernel[:, :, 0] *= 1e6  # one channel beyond all measure
    network.get_layer("second").set_weights([kernel, bias])
    kernel, bias = network.get_layer("third").get_weights()
    kernel[:, :, 0] /= 1e6
    network.get_layer("third").set_weights([kernel, bias])

    before = lowered(network, tmp_path / "saved")
    after = equalized(before, pixels)
    assert after is not None
    np.testing.assert_allclose(scores(after, pixels), scores(before, pixels), atol=1e-4)
    old, new = Graph(before), Graph(after)
    scaled = {}
    for operation in old.operations:
        if operation.kind in LAYERS:
            weights = new.constant(operation.inputs[1]), old.constant(operation.inputs[1])
            scaled[layer_name(operation.output)] = weights[0] / weights[1]
    assert not np.allclose(scaled["second"], 1)
    for name, factors in scaled.items():
        assert 1 / 257 < factors.min() <= factors.max() < 257, name  # 16 where it is made, 16 where it is read


def test_the_mean_output_of_a_layer_is_that_of_its_mean_input(ready: bytes, pixels: Pixels) -> None:
    """With strides, paddings and depthwise: compared with what the runtime itself computes."""
    graph = Graph(ready)
    linear = [one for one in graph.operations if one.kind in LAYERS and one.activation == "NONE"]
    assert {one.kind for one in linear} >= {"CONV_2D", "FULLY_CONNECTED"}
    for layer in [one for one in graph.operations if one.kind in LAYERS]:
        given, made = [], []
        for before, after in activations(ready, [layer.inputs[0], layer.output], pixels):
            given.append(before)
            made.append(after)
        bias = graph.bias(layer)
        found = _mean_output(layer, graph.constant(layer.inputs[1]), np.mean(given, axis=0, dtype=np.float64))
        if layer.activation == "NONE":
            wanted = np.mean(made, axis=0).reshape(-1, made[0].shape[-1]).mean(axis=0) - (0 if bias is None else bias)
            np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_bias_correction_takes_the_mean_error_of_rounding_off(ready: bytes, ranges: Ranges, pixels: Pixels) -> None:
    plain = to_int8(ready, ranges)
    better = to_int8(corrected(ready, plain, pixels), ranges)
    wanted = np.log(scores(ready, pixels))
    errors = [np.abs((np.log(scores(one, pixels)) - wanted).mean(axis=0)).max() for one in (plain, better)]
    assert errors[1] < errors[0]
    # And nothing but biases changed.
    before, after = Graph(plain), Graph(better)
    for one, other in zip(before.operations, after.operations, strict=True):
        if one.kind in LAYERS:
            np.testing.assert_array_equal(before.constant(one.inputs[1]), after.constant(other.inputs[1]))


def test_the_layer_that_suffers_most_is_found_and_named(ready: bytes, ranges: Ranges, pixels: Pixels) -> None:
    among = layers(ready)
    assert [layer.name for layer in among] == [
        *("stem", "project0", "expand_relu", "depthwise_relu", "gate", "project1", "head", "scores")
    ]
    assert sum(len(layer.tensors) for layer in among) == len(Graph(ready).operations)
    hurt = among[-2]
    # Its values are all but lost in a range a thousand times too wide.
    wide = ranges | {name: (-1000.0 * abs(ranges[name][1]), 1000.0 * abs(ranges[name][1])) for name in hurt.tensors}
    distance = divergence_from(ready, pixels[:6])
    ranked = by_damage(ready, wide, distance, among=among)
    assert ranked[0][0] == hurt
    assert ranked[0][1] > 10 * ranked[1][1]
    assert distance(to_int8(ready, wide, floats=hurt.tensors)) < distance(to_int8(ready, wide)) / 10


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        ("model_1/block2a_dwconv_1/depthwise;model_1/other/x", "block2a_dwconv"),
        ("scores", "scores"),
        ("classifier/add", "classifier"),
    ],
)
def test_layers_are_called_as_the_network_calls_them(tensor: str, name: str) -> None:
    assert layer_name(tensor) == name


@pytest.mark.slow
def test_learning_with_rounded_values_brings_int8_closer_to_float(
    network: Any, pixels: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qat, "STEPS", 60)
    monkeypatch.setattr(qat, "LEARNING_RATE", 0.02)
    student = uneven(network, 30)
    before = with_fast_operations(lowered(student, tmp_path / "before"))
    steps = 0

    def advance() -> None:
        nonlocal steps
        steps += 1

    qat.fine_tune(student, pixels, pixels, advance=advance)
    assert steps == 60
    after = with_fast_operations(lowered(student, tmp_path / "after"))
    distance = divergence_from(before, pixels)
    assert distance(to_int8(after, observed_ranges(after, pixels))) < distance(
        to_int8(before, observed_ranges(before, pixels))
    )


def test_learning_rounds_what_int8_stores_and_only_that(network: Any) -> None:
    names = [operation.name for operation in qat._stored(network)]
    assert "stem" not in names  # folded into its batch norm's place
    assert "expand" not in names  # its ReLU6 is part of it
    assert {"stem_bn", "stem_swish", "project0", "expand_relu", "depthwise_relu", "gate", "excite", "add"} <= set(names)
    assert "scores" not in names
    kernels = qat._kernels(network)
    assert len(kernels) == 7 + 1
    assert [kernel.path for kernel, depthwise in kernels if depthwise] == ["depthwise/kernel"]
