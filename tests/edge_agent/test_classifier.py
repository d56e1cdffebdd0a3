from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edge_agent
from edge_agent import Classifier, Score
from edge_agent.bundle import open_bundle
from edge_agent.bundle.archive import MODEL
from edge_agent.bundle.manifest import TensorEntry, Tensors
from edge_agent.errors import ModelError
from edge_agent.inference.classifier import contract_problems, dequantize
from edge_agent.inference.evaluation import evaluate
from edge_agent.inference.interpreter import Interpreter
from edge_agent.preprocessing import Pixels, PreprocessSpec, preprocess

from ..support.delegates import compiled_delegate

SPEC = PreprocessSpec((32, 48))
LABELS = ("dark", "light", "other")


def small_model(kind: str, *, calibrated_to: int = 255) -> bytes:
    """A tiny network as TFLite, with the given input type and what its input scale was calibrated on."""
    import keras
    import tensorflow as tf

    from converter.tflite.float_model import export

    keras.utils.set_random_seed(3)
    inputs = keras.Input(SPEC.shape)
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, activation="relu")(x))
    model = keras.Model(inputs, keras.layers.Dense(len(LABELS), activation="softmax")(x))
    with tempfile.TemporaryDirectory() as folder:
        export(model, Path(folder), SPEC)
        return convert(tf.lite.TFLiteConverter.from_saved_model(folder), kind, calibrated_to)


def convert(converter: Any, kind: str, calibrated_to: int) -> bytes:
    import tensorflow as tf

    if kind != "float32":
        random = np.random.default_rng(1)

        def images() -> Any:
            for level in (0, calibrated_to):
                yield [np.full((1, *SPEC.shape), level, np.float32)]
            for _ in range(8):
                yield [random.integers(0, calibrated_to + 1, (1, *SPEC.shape)).astype(np.float32)]

        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = images
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = {"uint8": tf.uint8, "int8": tf.int8}[kind]
        converter.inference_output_type = tf.float32
    return bytes(converter.convert())


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    return {kind: small_model(kind) for kind in ("float32", "uint8", "int8")}


@pytest.fixture(scope="module")
def frames() -> list[Pixels]:
    random = np.random.default_rng(8)
    return [cv2.GaussianBlur(random.integers(0, 256, (s, s + 31, 3), np.uint8), (0, 0), 2) for s in (40, 90, 300)]  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["float32", "uint8", "int8"])
def test_every_input_type_gets_the_same_pixels(models: dict[str, bytes], frames: list[Pixels], kind: str) -> None:
    with Classifier(models[kind], labels=LABELS, spec=SPEC) as classifier:
        for frame in frames:
            classifier._write_input(frame)
            stored = dequantize(classifier._model.input()[0], classifier.tensors.input)
            assert np.array_equal(stored, preprocess(frame, SPEC).astype(np.float32))


def test_int8_models_agree_with_their_float_one(models: dict[str, bytes], frames: list[Pixels]) -> None:
    scores: dict[str, list[npt.NDArray[np.float32]]] = {}
    for kind, content in models.items():
        with Classifier(content, labels=LABELS, spec=SPEC, threads=1) as classifier:
            scores[kind] = [classifier.classify(frame).scores for frame in frames]
    assert np.abs(np.array(scores["uint8"]) - scores["float32"]).max() < 0.03
    assert np.array_equal(scores["uint8"], scores["int8"])


def test_a_result_is_not_overwritten_by_the_next_one(models: dict[str, bytes], frames: list[Pixels]) -> None:
    with Classifier(models["float32"], labels=LABELS, spec=SPEC) as classifier:
        first = classifier.classify(frames[0])
        kept = first.scores.copy()
        classifier.classify(np.full((50, 50, 3), 255, np.uint8))
        assert np.array_equal(first.scores, kept)


def test_results_name_the_best_labels(classifier: Classifier, areas: dict[str, dict[str, Pixels]]) -> None:
    for truth in classifier.labels:
        result = classifier.classify(areas[truth]["test"][:120, :120])
        label, score = result.best
        assert label == truth
        assert 0.5 < score <= 1
        assert result.top(3)[0] == Score(label, score)
        assert [s.score for s in result.top(3)] == sorted((s.score for s in result.top(3)), reverse=True)
        assert result.preprocess_ms > 0
        assert result.inference_ms > 0


@given(
    stored=st.lists(st.integers(-128, 127), min_size=1, max_size=9),
    scale=st.floats(1e-6, 10),
    zero=st.integers(-128, 127),
)
def test_dequantization_is_scale_times_distance_from_zero_point(stored: list[int], scale: float, zero: int) -> None:
    tensor = TensorEntry((1, len(stored)), "int8", scale, zero)
    real = dequantize(np.array(stored, np.int8), tensor)
    assert real.dtype == np.float32
    assert np.allclose(real, [scale * (value - zero) for value in stored], rtol=1e-5)


def test_a_model_whose_pixels_are_not_levels_is_refused() -> None:
    with pytest.raises(ModelError, match="the input must be pixel levels"):
        Classifier(small_model("uint8", calibrated_to=200), labels=LABELS, spec=SPEC)


def test_every_breach_of_the_contract_is_named() -> None:
    tensors = Tensors(TensorEntry((1, 48, 32, 3), "int8", 0.5, 0), TensorEntry((1, 4), "float32"))
    problems = contract_problems(tensors, SPEC, 3)
    assert len(problems) == 3
    assert "(1, 48, 32, 3)" in problems[0]
    assert "scale 0.5" in problems[1]
    assert "(1, 4)" in problems[2]


@pytest.mark.parametrize("content", [b"", b"no model", b"TFL3" * 100, bytes(10_000)])
def test_what_is_no_model_is_refused(content: bytes) -> None:
    with pytest.raises(ModelError, match="cannot load the model"):
        Interpreter(content)


def test_a_truncated_model_is_refused(models: dict[str, bytes]) -> None:
    with pytest.raises(ModelError):
        Interpreter(models["uint8"][: len(models["uint8"]) // 2])


def test_frames_that_are_none_are_refused(classifier: Classifier) -> None:
    with pytest.raises(ValueError, match="frame must"):
        classifier.classify(np.zeros((10, 10), np.uint8))
    classifier.classify(np.zeros((10, 10, 3), np.uint8))  # and the classifier still works


def test_threads_default_to_the_cores_and_can_be_set(models: dict[str, bytes]) -> None:
    with Interpreter(models["uint8"]) as model:
        assert 1 <= model.threads <= 4
    with Interpreter(models["uint8"], threads=2) as model:
        assert model.threads == 2


@pytest.mark.needs("cc")
def test_an_external_delegate_is_loaded_and_asked(models: dict[str, bytes], tmp_path: Path) -> None:
    library, model = compiled_delegate(tmp_path, r'puts("asked"); fflush(stdout)'), tmp_path / "m.tflite"
    model.write_bytes(models["uint8"])
    code = (
        "import pathlib, sys; from edge_agent.inference.interpreter import Interpreter\n"
        "model = pathlib.Path(sys.argv[1]).read_bytes()\n"
        "with Interpreter(model, delegate=sys.argv[2]) as m: m.invoke(); print(m.output().shape)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(model), str(library)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[0] == "asked"
    assert ran.stdout.splitlines()[-1] == "(1, 3)"


def test_a_delegate_that_does_not_load_is_refused_with_the_remedy(models: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library")
    for library in (tmp_path / "none.so", tmp_path / "text.so"):
        with pytest.raises(ModelError, match=r"no usable delegate: .*; install its driver, or run without it"):
            Interpreter(models["uint8"], delegate=str(library))


def test_an_opened_bundle_classifies_like_its_model(bundle_file: Path, frames: list[Pixels]) -> None:
    bundle = open_bundle(bundle_file)
    with (
        edge_agent.open(bundle_file, threads=1) as opened,
        Classifier(bundle.read(MODEL), labels=bundle.labels, spec=bundle.manifest.preprocess, threads=1) as direct,
    ):
        for frame in frames:
            assert np.array_equal(opened.classify(frame).scores, direct.classify(frame).scores)


def test_a_model_that_is_not_the_manifests_is_refused(bundle_file: Path) -> None:
    import msgspec

    bundle = open_bundle(bundle_file)
    tensors = msgspec.structs.replace(bundle.manifest.tensors, output=TensorEntry((1, 3), "uint8", 0.5, 0))
    changed = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, tensors=tensors))
    with pytest.raises(ModelError, match="its manifest lists"):
        Classifier.from_bundle(changed)


def test_the_canary_images_score_as_the_bundle_expects(bundle_file: Path, classifier: Classifier) -> None:
    from edge_agent.images import decode_image

    bundle = open_bundle(bundle_file)
    for image in bundle.canary():
        scores = classifier.classify(decode_image(bundle.read(image.file), image.file)).scores
        assert np.abs(scores - np.array(image.scores)).max() < 0.02


def test_evaluation_counts_by_class(classifier: Classifier, areas: dict[str, dict[str, Pixels]]) -> None:
    shown = {name: areas[name]["test"][:120, :120] for name in ("brick", "stars")}
    images = [(shown["brick"], "brick"), (shown["stars"], "stars"), (areas["stars"]["val"][:120, :120], "brick")]
    evaluation = evaluate(classifier, images)
    assert evaluation.accuracy == pytest.approx(2 / 3)
    assert evaluation.recall() == {"brick": 0.5, "stars": 1.0}
    assert evaluation.confusion().tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]
    assert evaluation.agreement(evaluation) == 1
    with pytest.raises(ValueError, match="no images"):
        evaluate(classifier, [])
