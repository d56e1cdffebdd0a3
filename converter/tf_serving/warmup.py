"""Requests that TensorFlow Serving answers before it says it is ready, so that the first client does not wait.

The file is read by the server from `assets.extra/`: a TFRecord of `PredictionLog` messages, as the server's guide on
warm-up describes it. Imports TensorFlow Serving's API.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAME = "tf_serving_warmup_requests"
BYTES, TENSORS = "serving_default", "tensors"


def predict_request(name: str, signature: str, inputs: dict[str, Any]) -> Any:
    """A `PredictRequest`, as a gRPC client builds it.

    Args:
        name: of the model on the server.
        signature: which of its signatures.
        inputs: arrays, by the signature's names.
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
    """Write the requests into a SavedModel.

    Args:
        folder: the SavedModel.
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
