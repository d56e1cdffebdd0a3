"""Writes warm-up requests, which TensorFlow Serving runs before it reports ready: the first client need not wait.

The server reads the requests from a TFRecord file of `PredictionLog` messages in the folder `assets.extra/`. The
TensorFlow Serving guide on warm-up describes this file. The functions import TensorFlow and TensorFlow Serving's API.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAME = "tf_serving_warmup_requests"
BYTES, TENSORS = "serving_default", "tensors"


def predict_request(name: str, signature: str, inputs: dict[str, Any]) -> Any:
    """Build a `PredictRequest`, as a gRPC client would.

    Args:
        name: name of the model on the server.
        signature: name of the signature.
        inputs: maps the name of each input to its array.
    """
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return request


def write_warmup(folder: Path, requests: Sequence[Any]) -> None:
    """Write the warm-up requests into a SavedModel.

    Args:
        folder: folder of the SavedModel.
        requests: `PredictRequest` messages.
    """
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    extra = folder / "assets.extra"
    extra.mkdir()
    with tf.io.TFRecordWriter(str(extra / NAME)) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
