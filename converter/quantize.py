"""Keras model to TFLite, float32 and int8. The only module that talks to TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_agent.errors import DataError, MissingExtraError
from edge_agent.preprocess import Pixels, PreprocessSpec
from edge_agent.quiet import native_noise_hidden

if TYPE_CHECKING:
    import keras


def load_model(path: Path, spec: PreprocessSpec, classes: int) -> keras.Model:
    """Load a run's model and check that it takes the run's pixels and names its classes.

    Raises:
        DataError: not a Keras file, holds code, or has another input or output than the run says.
        MissingExtraError: Keras or TensorFlow is not installed.
    """
    try:
        with native_noise_hidden():
            import keras
            import tensorflow as tf  # noqa: F401  converting needs it whatever backend trained the model
    except ImportError as error:
        raise MissingExtraError("converting", "train", error.name) from error
    try:
        with native_noise_hidden():
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, OSError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not a Keras model edgeloop can load: {str(error).splitlines()[0]}") from error
    takes, gives = model.input_shape, model.output_shape
    if takes != (None, *spec.shape) or gives != (None, classes):
        raise DataError(
            f"{path}: maps {takes} to {gives}; "
            f"preprocess.json and labels.txt need {(None, *spec.shape)} to {(None, classes)}"
        )
    return model


def export(model: keras.Model, folder: Path, spec: PreprocessSpec) -> None:
    """Write the model as a SavedModel of batch 1 with a static shape.

    By way of a SavedModel because `TFLiteConverter.from_keras_model` fails with Keras 3 depending on
    import order; static because a dynamic shape converts to a model whose output is constant.
    """
    import keras

    signature = [keras.InputSpec(shape=(1, *spec.shape), dtype="float32", name="pixels")]
    with native_noise_hidden():
        model.export(folder, format="tf_saved_model", input_signature=signature, verbose=False)


def to_float(folder: Path) -> bytes:
    """The SavedModel as TFLite in float32: what int8 is compared with."""
    return _convert(_converter(folder))


def to_int8(folder: Path, pixels: Pixels, *, advance: Callable[[], object] = lambda: None) -> bytes:
    """The SavedModel as TFLite in static int8: per-channel weights, uint8 pixels in, float32 scores out.

    Args:
        folder: the SavedModel.
        pixels: (pictures, height, width, 3) uint8, the representative dataset.
        advance: called after each of them.
    """
    import tensorflow as tf

    def feed() -> Iterator[list[Any]]:
        for picture in pixels:
            yield [picture[np.newaxis].astype(np.float32)]
            advance()

    converter = _converter(folder)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = feed
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8
    converter.inference_output_type = tf.float32
    return _convert(converter)


def _converter(folder: Path) -> Any:
    import tensorflow as tf

    return tf.lite.TFLiteConverter.from_saved_model(str(folder))


def _convert(converter: Any) -> bytes:
    with native_noise_hidden():
        return bytes(converter.convert())
