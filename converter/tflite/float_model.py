"""Converts a run's network to a SavedModel and then to float32 TFLite. The functions import TensorFlow and Keras."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.errors import DataError, MissingExtraError, ModelError
from edge_agent.native_stderr import native_noise_hidden
from edge_agent.preprocessing import PreprocessSpec

from ..run_reader import SAVED_MODEL, Run

if TYPE_CHECKING:
    import keras


def of_run(run: Run, scratch: Path) -> bytes:
    """Convert a run to a float32 ``.tflite`` model and return its content.

    The model maps pixels, (1, height, width, 3) float32 with levels from 0 to 255, to scores, (1, classes) float32.

    Args:
        run: the run.
        scratch: temporary folder; the SavedModel that is made from a Keras model is written to it.

    Raises:
        DataError: the model's input or output does not match the run.
        ModelError: the network cannot be expressed in TFLite; the message names the operations.
        MissingExtraError: Keras or TensorFlow is not installed.
    """
    folder = run.path / SAVED_MODEL
    if folder.is_dir():
        check_signature(folder, run.spec, len(run.labels))
    else:
        folder = scratch / "saved_model"
        export(load_model(run.path / "model.keras", run.spec, len(run.labels)), folder, run.spec)
    return to_float(folder)


def load_model(path: Path, spec: PreprocessSpec, classes: int) -> keras.Model:
    """Load a run's model and check that its input and output match the run's pixels and classes.

    Raises:
        DataError: the file is not a Keras file or contains code, or its input or output does not match the run.
        MissingExtraError: Keras or TensorFlow is not installed.
    """
    _start_tensorflow()
    import keras

    try:
        with native_noise_hidden():
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, OSError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not a Keras model that edgeloop can load: {str(error).splitlines()[0]}") from error
    takes, gives = model.input_shape, model.output_shape
    if takes != (None, *spec.shape) or gives != (None, classes):
        raise DataError(
            f"{path}: maps {takes} to {gives}; "
            f"preprocess.json and labels.txt need {(None, *spec.shape)} to {(None, classes)}"
        )
    return model


def export(model: keras.Model, folder: Path, spec: PreprocessSpec) -> None:
    """Write the model as a SavedModel with a static input shape and a batch size of 1.

    A SavedModel is needed because `TFLiteConverter.from_keras_model` fails with Keras 3 for some import orders. The
    shape is static because a dynamic shape is converted to a model whose output is constant.
    """
    import keras

    signature = [keras.InputSpec(shape=(1, *spec.shape), dtype="float32", name="pixels")]
    with native_noise_hidden():
        model.export(folder, format="tf_saved_model", input_signature=signature, verbose=False)


def to_float(folder: Path) -> bytes:
    """Convert a SavedModel to float32 TFLite.

    Raises:
        ModelError: the network uses operations that TFLite does not support; the message names them.
    """
    import tensorflow as tf

    try:
        with native_noise_hidden(even_on_errors=True):
            return bytes(tf.lite.TFLiteConverter.from_saved_model(str(folder)).convert())
    except Exception as error:  # the converter has no public error type
        missing = sorted(_missing_operations(str(error)))
        unsupported = f"TFLite does not support {', '.join(missing)}"
        what = unsupported if missing else str(error).splitlines()[0][:200]
        raise ModelError(
            f"this network cannot be converted to TFLite: {what}; "
            "train one of the backbones that `edgeloop train --help` lists"
        ) from error


def _missing_operations(message: str) -> set[str]:
    found = set(re.findall(r"'tf\.(\w+)' op is neither", message))
    for listed in re.findall(r"(?:Custom|Flex|Select|TF Select|Select TF) ops: ([^\n]*)", message):
        found.update(name.strip() for name in listed.split(","))
    return found


def check_signature(folder: Path, spec: PreprocessSpec, classes: int) -> None:
    """Check that a SavedModel's input and output match the run.

    Raises:
        DataError: they do not match, and the message names their shapes; or the SavedModel cannot be loaded.
    """
    _start_tensorflow()
    import tensorflow as tf

    try:
        with native_noise_hidden(even_on_errors=True):
            signature = tf.saved_model.load(str(folder)).signatures["serving_default"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: not a SavedModel with a signature: {str(error).splitlines()[0]}") from error
    given = list(signature.structured_input_signature[1].values())
    made = list(signature.structured_outputs.values())
    takes, gives = ([tuple(tensor.shape.as_list()) for tensor in tensors] for tensors in (given, made))
    if takes != [(1, *spec.shape)] or gives != [(1, classes)]:
        raise DataError(
            f"{folder}: maps {_shapes(takes)} to {_shapes(gives)}; this run needs one input of the fixed shape "
            f"{(1, *spec.shape)} and one output {(1, classes)}"
        )


def _shapes(shapes: list[tuple[Any, ...]]) -> str:
    return " and ".join(str(shape) for shape in shapes) or "nothing"


def _start_tensorflow() -> None:
    try:
        with native_noise_hidden():
            import keras  # noqa: F401
            import tensorflow as tf  # noqa: F401  conversion needs it whatever backend trained the model
    except ImportError as error:
        raise MissingExtraError("converting", "train", error.name) from error
