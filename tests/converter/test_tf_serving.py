"""The SavedModel for TensorFlow Serving: its pixels, its answers, and requests as clients build them."""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from converter.run_reader import open_run
from converter.tf_serving import export, export_saved_model
from edge_agent.errors import ConfigError, GateError
from edge_agent.images import decode_image
from edge_agent.inference.classifier import Classifier
from edge_agent.preprocessing import Fit, Pixels, PreprocessSpec
from edge_agent.preprocessing import preprocess as of_the_device

from ..conftest import CLASSES, IMAGE_SIZE, QUIET, Run

pytestmark = pytest.mark.needs("serving")
ORIENTATION = 0x0112


@pytest.mark.parametrize("fit", ["stretch", "crop", "letterbox"])
@pytest.mark.parametrize("size", [(96, 96), (64, 112)])
def test_pixels_are_those_of_the_device_to_the_bit(fit: Fit, size: tuple[int, int]) -> None:
    import tensorflow as tf

    from converter.tf_serving.preprocess import preprocess

    random = np.random.default_rng(sum(size))
    sides = [(1, 1), (96, 96), (64, 112), (191, 193), (192, 192), (720, 1280), (1, 900), (333, 17), (97, 95)]
    sides += [tuple(random.integers(1, 800, 2).tolist()) for _ in range(25)]
    for channels in ("rgb", "bgr"):
        spec = PreprocessSpec(size, fit, channels)
        served = tf.function(
            lambda image, spec=spec: preprocess(image, spec),
            input_signature=[tf.TensorSpec((None, None, 3), tf.uint8)],
        )
        for height, width in sides:
            image = random.integers(0, 256, (height, width, 3), np.uint8)
            wanted = of_the_device(image, spec)
            found = served(tf.constant(image[..., ::-1])).numpy()
            assert np.array_equal(found, wanted), (height, width, channels)


def jpeg(image: Pixels, orientation: int | None = None, **options: Any) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", exif=exif, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def image() -> Pixels:
    random = np.random.default_rng(6)
    return cv2.GaussianBlur(random.integers(0, 256, (40, 64, 3), np.uint8), (0, 0), 2)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def turned() -> Any:
    import tensorflow as tf

    from converter.tf_serving.exif import upright

    @tf.function(input_signature=[tf.TensorSpec((), tf.string)])  # type: ignore[untyped-decorator]
    def served(data: Any) -> Any:
        return upright(tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"), data)

    return lambda data: served(data).numpy()


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_images_are_turned_as_the_device_turns_them(image: Pixels, turned: Any, orientation: int | None) -> None:
    data = jpeg(image, orientation)
    assert np.array_equal(turned(data), decode_image(data, "an image")[..., ::-1])


def test_orientation_is_found_in_both_byte_orders_and_behind_other_segments(image: Pixels, turned: Any) -> None:
    plain = jpeg(image)
    for order, mark in (("<", b"II*\0"), (">", b"MM\0*")):
        entries = struct.pack(f"{order}HHII", 0x010E, 2, 4, 0) + struct.pack(f"{order}HHIHH", ORIENTATION, 3, 1, 6, 0)
        tiff = mark + struct.pack(f"{order}IH", 8, 2) + entries + struct.pack(f"{order}I", 0)
        exif = b"Exif\0\0" + tiff
        for kind, body in ((b"\xff\xe2", bytes(298)), (b"\xff\xe1", b"http://ns.adobe.com/xap/1.0/\0<x/>")):
            other = kind + struct.pack(">H", len(body) + 2) + body
            data = plain[:2] + other + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
            assert np.array_equal(turned(data), decode_image(data, "an image")[..., ::-1]), kind
            assert turned(data).shape == (64, 40, 3)


def test_nonsense_in_exif_leaves_the_image_as_it_is(image: Pixels, turned: Any) -> None:
    plain = jpeg(image)
    straight = decode_image(plain, "an image")[..., ::-1]
    random = np.random.default_rng(3)
    bodies = [
        b"",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff",
        *(random.bytes(60) for _ in range(20)),
    ]
    for body in bodies:
        exif = b"Exif\0\0" + body
        data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
        assert np.array_equal(turned(data), straight), body
    assert np.array_equal(turned(jpeg(image, 9)), straight)


@pytest.fixture(scope="module")
def exported(edgeloop: Run, run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models")
    ran = edgeloop("export", run_folder, "--format", "saved_model", "--out", out, "--name", "ground")
    assert ran.code == 0, ran.err
    assert "checked: 9 test images, scores within" in ran.out
    for noise in ("TensorFlow", "I0000", "WARNING", "Traceback"):
        assert noise not in ran.err
    assert os.listdir(out / "ground") == ["1"]
    return Path(out / "ground" / "1")


@pytest.fixture(scope="module")
def served(exported: Path) -> Any:
    import tensorflow as tf

    return tf.saved_model.load(str(exported))


@pytest.mark.long
def test_it_answers_images_of_any_size_as_the_device_does(
    served: Any, run_folder: Path, photo_folder: Path, image: Pixels, float32_model: bytes
) -> None:
    import tensorflow as tf

    run = open_run(run_folder)
    files = [(photo_folder / label / "03.jpg").read_bytes() for label in CLASSES] + [jpeg(image, 6)]
    found = served.signatures["serving_default"](image_bytes=tf.constant(files))
    with Classifier(float32_model, labels=run.labels, spec=run.spec) as classifier:
        for place, file in enumerate(files):
            best = classifier.classify(decode_image(file, "an image")).top(len(CLASSES))
            assert [label.decode() for label in found["labels"].numpy()[place]] == [label for label, _ in best]
            np.testing.assert_allclose(found["scores"].numpy()[place], [score for _, score in best], atol=1e-4)


@pytest.mark.slow
def test_prepared_tensors_have_a_signature_of_their_own(served: Any, run_folder: Path, photo_folder: Path) -> None:
    import tensorflow as tf

    run = open_run(run_folder)
    file = (photo_folder / "stars" / "05.jpg").read_bytes()
    pixels = of_the_device(decode_image(file, "an image"), run.spec)
    scores = served.signatures["tensors"](pixels=tf.constant(pixels[None], tf.float32))["scores"].numpy()[0]
    by_bytes = served.signatures["serving_default"](image_bytes=tf.constant([file]))
    assert run.labels[int(scores.argmax())] == by_bytes["labels"].numpy()[0][0].decode()
    np.testing.assert_allclose(np.sort(scores)[::-1], by_bytes["scores"].numpy()[0], atol=1e-6)


def answered(served: Any, request: Any) -> dict[str, Any]:
    """What a server does with a request: its tensors into the signature it names."""
    import tensorflow as tf

    signature = served.signatures[request.model_spec.signature_name]
    return signature(**{name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()})  # type: ignore[no-any-return]


@pytest.mark.slow
def test_the_warm_up_requests_are_the_servers_own_messages_and_are_answered(exported: Path, served: Any) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    path = exported / "assets.extra/tf_serving_warmup_requests"
    logs = [prediction_log_pb2.PredictionLog.FromString(raw.numpy()) for raw in tf.data.TFRecordDataset(str(path))]
    requests = [log.predict_log.request for log in logs]
    assert [request.model_spec.signature_name for request in requests] == ["serving_default", "tensors"]
    assert {request.model_spec.name for request in requests} == {"ground"}
    assert answered(served, requests[0])["scores"].shape == (2, len(CLASSES))
    assert answered(served, requests[1])["scores"].shape == (1, len(CLASSES))


@pytest.mark.slow
def test_a_clients_request_survives_the_wire(served: Any, photo_folder: Path) -> None:
    from tensorflow_serving.apis import predict_pb2

    from converter.tf_serving.warmup import predict_request

    file = (photo_folder / "brick" / "07.jpg").read_bytes()
    request = predict_request("ground", "serving_default", {"image_bytes": np.array([file], object)})
    arrived = predict_pb2.PredictRequest.FromString(request.SerializeToString())
    assert answered(served, arrived)["labels"].numpy()[0][0] == b"brick"


def test_a_second_export_is_the_next_version(tmp_path: Path) -> None:
    assert export._first_free(tmp_path) == 1
    for name in ("1", "7", ".unfinished-x", "notes"):
        (tmp_path / name).mkdir()
    assert export._first_free(tmp_path) == 8


@pytest.mark.long
def test_what_answers_otherwise_than_the_run_is_refused(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from converter.tf_serving import exif

    monkeypatch.setattr(exif, "upright", lambda image, _: image * 0)
    with pytest.raises(GateError, match="from the run's"):
        export_saved_model(run_folder, tmp_path, console=QUIET, name="ground")
    assert os.listdir(tmp_path / "ground") == []
    with pytest.raises(ConfigError, match="--name"):
        export_saved_model(run_folder, tmp_path, console=QUIET, name="../up")


@pytest.mark.slow
def test_answers_come_best_first_as_json(exported: Path, photo_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from converter.tf_serving import answer

    answer.main([str(exported), str(photo_folder / "grass" / "02.jpg")])
    found = json.loads(capfd.readouterr().out)
    assert found["labels"][0] == "grass"
    assert found["scores"] == sorted(found["scores"], reverse=True)
    assert IMAGE_SIZE == 48
    assert export.TOLERANCE < 0.01
