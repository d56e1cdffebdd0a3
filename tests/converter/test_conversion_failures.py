"""What convert is given and cannot use, and what happens to it half-way."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

from converter.pipeline import _representative, convert
from converter.quantization.calibration import of_folder
from converter.run_reader import open_run
from converter.tflite import float_model
from edge_agent.errors import DataError, ModelError
from edge_agent.native_stderr import native_noise_hidden

from ..conftest import CLASSES, IMAGE_SIZE, NAMESPACE, QUIET, Run

SIDES = (IMAGE_SIZE, IMAGE_SIZE)


def network(*, sides: tuple[int | None, int | None] = SIDES, second: bool = False, odd: bool = False) -> Any:
    """A Keras model that is almost what a run holds."""
    with native_noise_hidden():
        import keras
    inputs = [keras.Input((*sides, 3), name="pixels")]
    x = keras.layers.GlobalAveragePooling2D()(inputs[0])
    if second:
        inputs.append(keras.Input((2,), name="more"))
        x = keras.layers.Concatenate()([x, inputs[1]])
    if odd:
        x = keras.ops.erfinv(x / 300)
    return keras.Model(inputs, keras.layers.Dense(len(CLASSES), activation="softmax")(x))


def with_saved_model(run: Path, model: Any, shapes: list[tuple[int | None, ...]]) -> Path:
    """The run with this model as a SavedModel in place of its own."""
    import keras

    (run / "model.keras").unlink()
    specs = [
        keras.InputSpec(shape=shape, dtype="float32", name=tensor.name)
        for shape, tensor in zip(shapes, model.inputs, strict=True)
    ]
    with native_noise_hidden():
        # Several inputs come as one argument.
        signature = specs if len(specs) == 1 else [specs]
        model.export(run / "saved_model", format="tf_saved_model", input_signature=signature, verbose=False)
    return run


@pytest.fixture
def run_copy(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of the run to spoil."""
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda run: with_saved_model(run, network(sides=(None, None)), [(1, None, None, 3)]),
            r"maps \(1, None, None, 3\) to \(1, 3\); this run needs one input of the fixed shape \(1, 48, 48, 3\)",
        ),
        (
            lambda run: with_saved_model(run, network(), [(None, 48, 48, 3)]),
            r"maps \(None, 48, 48, 3\) to \(None, 3\)",
        ),
        (
            lambda run: with_saved_model(run, network(second=True), [(1, 48, 48, 3), (1, 2)]),
            r"maps .* and .* to \(1, 3\)",
        ),
        (lambda run: network(second=True).save(run / "model.keras"), "maps"),
        (lambda run: network(sides=(None, None)).save(run / "model.keras"), r"maps \(None, None, None, 3\)"),
    ],
)
def test_dynamic_shapes_and_second_inputs_are_refused(
    run_copy: Path, tmp_path: Path, spoil: Callable[[Path], object], says: str
) -> None:
    spoil(run_copy)
    with pytest.raises(DataError, match=says):
        convert(run_copy, tmp_path / "x-1.edgeloop", console=QUIET)
    assert not (tmp_path / "x-1.edgeloop").exists()


def test_operations_that_tflite_lacks_are_named_in_one_line(
    run_copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with_saved_model(run_copy, network(odd=True), [(1, 48, 48, 3)])
    with pytest.raises(ModelError, match="TFLite does not support Erfinv; train one of the backbones"):
        float_model.of_run(open_run(run_copy), tmp_path / "scratch")
    assert "loc(" not in capfd.readouterr().err


def test_an_empty_calibration_folder_is_refused(edgeloop: Run, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ran = edgeloop("convert", run_folder, "--out", tmp_path / "x-1.edgeloop", "--calibration", tmp_path / "empty")
    assert ran.code == 1
    assert "no images to calibrate on" in ran.err.splitlines()[-1]
    assert os.listdir(tmp_path) == ["empty"]


def test_a_warning_says_when_calibration_images_are_all_alike(
    run_folder: Path, float32_model: bytes, tmp_path: Path
) -> None:
    scene = np.random.default_rng(1).integers(0, 256, (120, 120, 3), np.uint8)
    for number in range(4):
        cv2.imwrite(str(tmp_path / f"{number}.png"), scene + np.uint8(number % 2))
    run = open_run(run_folder)
    said = io.StringIO()
    seen = _representative(run, float32_model, of_folder(tmp_path, print), "folder", Console(file=said, width=200))
    assert seen.record.images == 4
    assert "the 4 calibration images are nearly the same" in said.getvalue()


@pytest.mark.long
@pytest.mark.needs("namespace")
def test_a_full_disk_leaves_nothing_behind(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    out.mkdir()
    script = (
        "import os, subprocess, sys\n"
        "run, out = sys.argv[1:]\n"
        "subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', out], check=True)\n"
        "command = [sys.executable, '-m', 'edge_agent.cli', 'convert', run, '--out', out + '/x-1.edgeloop']\n"
        "code = subprocess.run([*command, '--max-drop', '100', '--max-class-drop', '100']).returncode\n"
        "print(code, os.listdir(out))\n"
    )
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-c", script, run_folder, out], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "1 []", done.stderr
    assert "No space left on device" in done.stderr.splitlines()[-1]


@pytest.mark.long
def test_killed_on_the_way_it_leaves_no_bundle(run_folder: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "x-1.edgeloop", tmp_path / "log"
    script = (
        "import sys, time\n"
        "from converter import pipeline\n"
        "from edge_agent.cli import main\n"
        "pipeline._score = lambda *_: (print('Testing', file=sys.stderr, flush=True), time.sleep(3600))\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, "convert", str(run_folder), "--out", str(out)]
    with log.open("wb") as err, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err) as process:
        deadline = time.monotonic() + 120
        while "Testing" not in log.read_text(errors="replace"):
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
