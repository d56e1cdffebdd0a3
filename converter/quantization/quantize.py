"""Quantizes float32 TFLite models to int8 or float16. No other module imports the LiteRT quantizer."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Collection
from typing import Any

import numpy as np

from edge_agent.errors import ModelError
from edge_agent.native_stderr import native_noise_hidden

from ..tflite.graph import Graph
from .observers import Ranges

LEVELS = (0.0, 255.0)
"""Range of the model's input. It does not depend on the images.

The scale is therefore 1, and each stored integer equals the pixel level.
"""


def to_int8(model: bytes, ranges: Ranges, *, floats: Collection[str] = ()) -> bytes:
    """Quantize a model to static int8.

    Weights have one scale per output channel, except those of the last layer; activations have one scale per tensor.
    The quantized model takes uint8 pixels and returns float32 scores.

    The last layer has int8 weights but computes float32 logits, and the softmax is computed in float32. The reason: an
    int8 softmax has steps of 1/256 and no score above 0.996, so that several classes get the same score and the scores
    are no longer calibrated. docs/guides/conversion.md gives figures.

    Args:
        model: the float32 model.
        ranges: range of each of its activations.
        floats: names of activations whose operations stay in float32.
    """
    from litert_quantizer import qtyping, quantizer
    from litert_quantizer.algorithm_manager import AlgorithmName

    graph, names = Graph(model), qtyping.TFLOperationName
    given = graph.inputs[0]
    engine = quantizer.Quantizer(model)
    engine.add_static_config(".*", names.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    engine.update_quantization_recipe(".*", names.INPUT, uint8_config())
    engine.update_quantization_recipe(".*", names.OUTPUT, algorithm_key=AlgorithmName.NO_QUANTIZE)
    engine.update_quantization_recipe(".*", names.SOFTMAX, algorithm_key=AlgorithmName.NO_QUANTIZE)
    last = graph.makers()[graph.operations[-1].inputs[0]]
    if last.kind == "FULLY_CONNECTED":
        # One scale for the whole layer: tflite-runtime 2.14 and other old runtimes ignore the weights without an error
        # if there is one per output. On the test split, both agree with the float model equally often.
        engine.add_dynamic_config(
            _scope([last.output]),
            names.FULLY_CONNECTED,
            num_bits=8,
            granularity=qtyping.QuantGranularity.TENSORWISE,
        )
    if floats:
        engine.update_quantization_recipe(_scope(floats), names.ALL_SUPPORTED, algorithm_key=AlgorithmName.NO_QUANTIZE)
    found = {name: {"min": np.full((1,), low), "max": np.full((1,), high)} for name, (low, high) in ranges.items()}
    found[given] = {"min": np.full((1,), LEVELS[0]), "max": np.full((1,), LEVELS[1])}
    return run_quietly(engine, found)


def to_float16(model: bytes) -> bytes:
    """Store the weights as float16 and compute in float32.

    The file has half the size, and the scores agree with those of the float32 model to about three digits.
    """
    from litert_quantizer import qtyping, quantizer
    from litert_quantizer.algorithm_manager import AlgorithmName

    engine = quantizer.Quantizer(model)
    half = qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    engine.update_quantization_recipe(
        ".*", qtyping.TFLOperationName.ALL_SUPPORTED, half, algorithm_key=AlgorithmName.FLOAT_CASTING
    )
    return run_quietly(engine, None)


def uint8_config() -> Any:
    """Return the quantizer's configuration of a uint8 input.

    An int8 input would work on the devices as well, but MediaPipe needs uint8 or float32.
    """
    from litert_quantizer import qtyping

    return qtyping.OpQuantizationConfig(
        activation_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=8, symmetric=False, dtype=qtyping.TensorDataType.UINT
        ),
        weight_tensor_config=qtyping.TensorQuantizationConfig(
            num_bits=8, symmetric=True, granularity=qtyping.QuantGranularity.CHANNELWISE
        ),
        compute_precision=qtyping.ComputePrecision.INTEGER,
    )


def _scope(names: Collection[str]) -> str:
    """Return a regular expression with which the quantizer selects the operations that compute these tensors.

    The quantizer appends `;` to the name of each tensor, therefore the expression contains it.
    """
    return "|".join(f"^{re.escape(name)};$" for name in sorted(names))


def run_quietly(engine: Any, ranges: Any) -> bytes:
    """Run a `Quantizer`, suppress everything it prints, and return the quantized model.

    Raises:
        ModelError: the quantizer cannot process the model.
    """
    # No argument turns off its progress bar, its report and its warnings.
    silence = io.StringIO()
    with (
        native_noise_hidden(),
        contextlib.redirect_stdout(silence),
        contextlib.redirect_stderr(silence),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            result = engine.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
        except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
            raise ModelError(f"the quantizer cannot process the model: {str(error).splitlines()[0]}") from error
    return bytes(result.quantized_model)
