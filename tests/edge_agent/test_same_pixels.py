"""The one idea: an image gives the same tensor in training, calibration, `predict` and the agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

import edge_agent
from edge_agent.agent.loaded_model import LoadedModel
from edge_agent.agent.pipeline import Agent, Source
from edge_agent.bundle import open_bundle
from edge_agent.cameras import ListCamera
from edge_agent.commands.predict import predict_command
from edge_agent.images import read_image
from edge_agent.inference.classifier import Classifier
from edge_agent.inference.decision import Rules
from edge_agent.inference.interpreter import Interpreter
from edge_agent.preprocessing import Pixels
from edge_agent.publishers import RecordingPublisher


@pytest.fixture
def invoked(monkeypatch: pytest.MonkeyPatch) -> list[Pixels]:
    """A copy of the input tensor at every invoke of any model."""
    seen: list[Pixels] = []
    invoke = Interpreter.invoke

    def record(self: Interpreter) -> None:
        seen.append(self.input()[0].copy())
        invoke(self)

    monkeypatch.setattr(Interpreter, "invoke", record)
    return seen


def test_all_four_see_the_same_pixels(
    run_folder: Path, bundle_file: Path, float32_model: bytes, invoked: list[Pixels]
) -> None:
    from converter.quantization.calibration import MAX_IMAGES, SEED, calibrate, choose, of_run
    from converter.run_reader import open_run
    from trainer.data import load_dataset

    run = open_run(run_folder)
    # The first two are black and white.
    calibrated = calibrate(float32_model, run.spec, of_run(run)).pixels[2:]
    chosen = choose(run.split("train"), MAX_IMAGES, SEED)[:6]
    dataset = load_dataset(run.data, run.spec)
    trained: dict[str, Any] = {photo.sha256: dataset.pixels[i] for i, photo in enumerate(dataset.photos)}
    files = [run.data / photo.path for photo in chosen]

    outcome = CliRunner().invoke(predict_command, [str(bundle_file), *map(str, files)])
    assert outcome.exit_code == 0, outcome.output
    predicted = list(invoked)

    invoked.clear()
    bundle = open_bundle(bundle_file)
    model = LoadedModel(bundle, Classifier.from_bundle(bundle), Rules(0.6, 0.4, 0, 0))
    # Slow enough that no frame is replaced by the next one.
    camera = ListCamera([read_image(file) for file in files], interval_s=0.4)
    with Agent("x", model, {"c": Source(lambda: camera)}, RecordingPublisher()) as agent:
        assert agent.wait(30)
    seen_by_agent = list(invoked)

    assert len(predicted) == len(seen_by_agent) == len(chosen)
    for i, photo in enumerate(chosen):
        assert np.array_equal(trained[photo.sha256], calibrated[i])
        assert np.array_equal(trained[photo.sha256], predicted[i])
        assert np.array_equal(trained[photo.sha256], seen_by_agent[i])


def test_a_lossless_video_gives_the_pixels_of_the_image(
    tmp_path: Path, bundle_file: Path, run_folder: Path, invoked: list[Pixels]
) -> None:
    from converter.run_reader import open_run
    from edge_agent.cameras.opencv import OpenCVCamera
    from edge_agent.config import CameraSettings
    from edge_agent.preprocessing import preprocess

    run = open_run(run_folder)
    image = read_image(run.data / run.photos[0].path)
    path = tmp_path / "one.avi"
    height, width = image.shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), 5, (width, height))
    if not writer.isOpened():
        pytest.fail("this OpenCV cannot write FFV1")
    writer.write(image)
    writer.release()
    with OpenCVCamera(CameraSettings(str(path))) as camera, edge_agent.open(bundle_file) as classifier:
        for frame in camera:
            classifier.classify(frame.full())
    assert len(invoked) == 1
    assert np.array_equal(invoked[0], preprocess(image, run.spec))
