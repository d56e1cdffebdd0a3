"""What is in `model.tflite` beside the model, read by tools that are not ours."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

import edge_agent
from converter.run_reader import open_run
from converter.tflite.metadata import with_metadata
from edge_agent.bundle import open_bundle
from edge_agent.bundle.archive import MODEL
from edge_agent.inference.classifier import Classifier
from edge_agent.preprocessing import preprocess

READER = """
import json, sys
import mediapipe
from mediapipe.tasks.python import BaseOptions
from mediapipe.tasks.python.vision import ImageClassifier, ImageClassifierOptions
model, *images = sys.argv[1:]
options = ImageClassifierOptions(base_options=BaseOptions(model_asset_path=model), max_results=3)
with ImageClassifier.create_from_options(options) as classifier:
    for image in images:
        found = classifier.classify(mediapipe.Image.create_from_file(image)).classifications[0]
        print(json.dumps([[one.category_name, one.score] for one in found.categories]))
"""


@pytest.fixture(scope="module")
def mediapipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with MediaPipe, in an environment of its own: its pins are not ours."""
    folder = tmp_path_factory.mktemp("mediapipe")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "mediapipe==1.2.2"]
    subprocess.run(install, check=True, timeout=250)
    return python


@pytest.mark.long
@pytest.mark.needs("index")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_mediapipe_loads_the_model_and_gives_the_same_labels(
    precision: str,
    mediapipe: Path,
    bundle_file: Path,
    float32_model: bytes,
    run_folder: Path,
    photo_folder: Path,
    tmp_path: Path,
) -> None:
    bundle = open_bundle(bundle_file)
    model = tmp_path / "model.tflite"
    if precision == "int8":
        model.write_bytes(bundle.read(MODEL))
    else:  # whose pixels MediaPipe normalises as the metadata says
        labels = bundle.read("labels.txt")
        model.write_bytes(with_metadata(float32_model, open_run(run_folder), name="a", version="1", labels=labels))
    spec = bundle.manifest.preprocess
    images, expected = [], []
    with Classifier(model.read_bytes(), labels=bundle.labels, spec=spec) as classifier:
        for number, path in enumerate(sorted(photo_folder.rglob("*.jpg"))[::5]):
            # As the model sees it, so that MediaPipe's own resizing has nothing to do.
            frame = edge_agent.read_image(path)
            prepared = preprocess(frame, spec, np.empty(spec.shape, np.uint8))
            images.append(tmp_path / f"{number}.png")
            cv2.imwrite(str(images[-1]), prepared[..., ::-1])
            expected.append(classifier.classify(frame).best)
    assert {label for label, _ in expected} == set(bundle.labels)
    done = subprocess.run(
        [mediapipe, "-c", READER, model, *images],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "GLOG_minloglevel": "2"},
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [best[0][0] for best in found] == [label for label, _ in expected]
    # Another runtime, with its own kernels: the scores are near, not equal.
    np.testing.assert_allclose(
        [best[0][1] for best in found], [score for _, score in expected], atol=0.1 if precision == "int8" else 0.01
    )


def test_the_labels_are_a_zip_file_behind_the_model(bundle_file: Path) -> None:
    bundle = open_bundle(bundle_file)
    with zipfile.ZipFile(io.BytesIO(bundle.read(MODEL))) as archive:
        assert archive.namelist() == ["labels.txt"]
        assert archive.read("labels.txt") == bundle.read("labels.txt")


def test_the_description_says_what_goes_in_and_comes_out(bundle_file: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema

    bundle = open_bundle(bundle_file)
    model = schema.Model.GetRootAs(bundle.read(MODEL), 0)
    entries = {model.Metadata(i).Name(): model.Metadata(i).Buffer() for i in range(model.MetadataLength())}
    described = model.Buffers(entries[b"TFLITE_METADATA"]).DataAsNumpy().tobytes()
    assert described[4:8] == b"M001"
    for text in (b"ground", b"1.2", b"labels.txt", b"48x48 RGB image", b"small-network"):
        assert text in described
