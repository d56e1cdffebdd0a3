"""Exports a run to a SavedModel for TensorFlow Serving.

Writes the network with its signatures, adds warm-up requests and verifies the result.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from rich.console import Console

from edge_agent.errors import ConfigError, GateError, MissingExtraError
from edge_agent.images import decode_image
from edge_agent.inference.classifier import Classifier
from edge_agent.native_stderr import native_noise_hidden

from ..progress import steps
from ..quantization.calibration import choose
from ..run_reader import SAVED_MODEL, Run, open_run
from ..tflite import float_model

if TYPE_CHECKING:
    import keras

VERIFICATION_IMAGES = 16
"""Number of test images on which the scores of the SavedModel are compared with the scores of the run."""
TOLERANCE = 1e-3
"""Largest accepted difference between a score of the SavedModel and the same score of the run.

The preprocessed pixels are equal, but the kernels that compute the network differ and add numbers in another order.
"""
WARM_UP = 2
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")


@dataclass(frozen=True)
class Exported:
    """The exported SavedModel.

    Attributes:
        path: folder of the exported version.
        images: number of test images on which it was verified.
        max_difference: largest difference between a score of the SavedModel and the same score of the run, over these
            images.
    """

    path: Path
    images: int
    max_difference: float


def export_saved_model(
    run_path: Path, out: Path, *, console: Console, name: str | None = None, data: Path | None = None
) -> Exported:
    """Export a run as a SavedModel in the folder ``OUT/NAME/VERSION/``, the layout that TensorFlow Serving watches.

    VERSION is the highest existing version number plus one, or 1 if there is none. The SavedModel has two signatures:

    - ``serving_default`` takes ``image_bytes``, (n,) string: the contents of JPEG files with images of any size. It
      returns ``labels``, (n, classes) string, and ``scores``, (n, classes) float32, both sorted by score, highest
      first.
    - ``tensors`` takes ``pixels``, (n, height, width, 3) float32: preprocessed pixels with levels from 0 to 255, RGB
      unless the run has another channel order. It returns ``scores``, (n, classes) float32, in the order of
      `labels.txt`.

    Args:
        run_path: a run directory.
        out: the server's model directory; created if missing.
        console: console that shows the progress.
        name: name of the model; by default the name of the run directory.
        data: folder of the run's images, if they were moved after training.

    Raises:
        DataError: the run or its images have changed or are damaged.
        GateError: the SavedModel, loaded in a new process, fails or gives other scores than the run. In this case no
            version is written.
        ConfigError: the name is not a valid name of a model.
        MissingExtraError: TensorFlow Serving's API is not installed.
    """
    try:
        with native_noise_hidden():
            import tensorflow_serving.apis.predict_pb2  # noqa: F401

            from .warmup import BYTES, TENSORS, predict_request, write_warmup
    except ImportError as error:
        raise MissingExtraError("edgeloop export", "serving", error.name) from error
    run = open_run(run_path, data=data)
    name = name or run.path.resolve().name
    if not _NAME.match(name):
        raise ConfigError(f"{name}: a model's name consists of letters, digits, `.`, `_` and `-`; give one with --name")
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as scratch,
        steps(console, "Exporting", 4) as advance,
    ):
        model = Path(scratch) / "model"
        with native_noise_hidden():
            _write(run, model)
        advance()
        images = _jpegs(run, Path(scratch))
        files = [image.read_bytes() for image in images]
        first = np.array(files[:WARM_UP], object)
        blank = np.zeros((1, *run.spec.shape), np.float32)
        requests = [
            predict_request(name, BYTES, {"image_bytes": first}),
            predict_request(name, TENSORS, {"pixels": blank}),
        ]
        write_warmup(model, requests)
        advance()
        max_difference = _verify(run, model, images, Path(scratch))
        advance()
        version = _first_free(folder)
        _sync(model)
        model.rename(folder / str(version))
        advance()
    return Exported(folder / str(version), len(images), max_difference)


def _write(run: Run, folder: Path) -> None:
    import keras
    import tensorflow as tf

    from .exif import upright
    from .preprocess import preprocess
    from .warmup import BYTES, TENSORS

    network, scores_of = _network(run)
    labels = tf.constant(run.labels)

    def prepared(jpeg: Any) -> Any:
        # Decode as OpenCV does: accurate transform, smoothed colours.
        image = tf.io.decode_jpeg(jpeg, channels=3, fancy_upscaling=True, dct_method="INTEGER_ACCURATE")
        return preprocess(upright(image, jpeg), run.spec)

    def from_bytes(image_bytes: Any) -> dict[str, Any]:
        pixels = tf.map_fn(prepared, image_bytes, fn_output_signature=tf.TensorSpec(run.spec.shape, tf.uint8))
        scores = scores_of(tf.cast(pixels, tf.float32))
        order = tf.argsort(scores, direction="DESCENDING", stable=True)
        return {"labels": tf.gather(labels, order), "scores": tf.gather(scores, order, batch_dims=1)}

    archive = keras.export.ExportArchive()
    archive.track(network)
    archive.add_endpoint(BYTES, from_bytes, [tf.TensorSpec((None,), tf.string, "image_bytes")])
    archive.add_endpoint(
        TENSORS,
        lambda pixels: {"scores": scores_of(pixels)},
        [tf.TensorSpec((None, *run.spec.shape), tf.float32, "pixels")],
    )
    archive.write_out(str(folder), verbose=False)


def _network(run: Run) -> tuple[Any, Any]:
    """Load the network of a run. Return the object that holds the weights, and the function that predicts.

    The function maps pixels (n, height, width, 3) float32 to scores (n, classes) float32.
    """
    import tensorflow as tf

    if (run.path / SAVED_MODEL).is_dir():
        float_model.check_signature(run.path / SAVED_MODEL, run.spec, len(run.labels))
        loaded = tf.saved_model.load(str(run.path / SAVED_MODEL))
        signature = loaded.signatures["serving_default"]

        def one(pixels: Any) -> Any:
            (scores,) = signature(pixels=pixels[tf.newaxis]).values()
            return scores[0]

        made = tf.TensorSpec((len(run.labels),), tf.float32)
        return loaded, lambda pixels: tf.map_fn(one, pixels, fn_output_signature=made)
    model: keras.Model = float_model.load_model(run.path / "model.keras", run.spec, len(run.labels))
    return model, lambda pixels: model(pixels, training=False)


def _jpegs(run: Run, scratch: Path) -> list[Path]:
    """Return the paths of test images of all classes as JPEG files.

    Images of the run in other formats are encoded as JPEG and written to ``scratch``.
    """
    paths = []
    chosen = choose(run.split("test"), VERIFICATION_IMAGES, seed=0)
    for number, (frame, photo) in enumerate(run.read(chosen)):
        original = run.data / photo.path
        if original.suffix.lower() in {".jpg", ".jpeg"}:
            paths.append(original)
        else:
            paths.append(scratch / f"{number}.jpg")
            cv2.imwrite(str(paths[-1]), frame, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return paths


def _verify(run: Run, folder: Path, images: Sequence[Path], scratch: Path) -> float:
    """Compare the scores of the SavedModel with the scores of the run, and return the largest difference.

    The SavedModel runs in a new process, the run in the code that the devices use.

    Raises:
        GateError: the SavedModel fails, or the difference is too large.
    """
    # A separate script, so that a SavedModel that needs more than TensorFlow fails here and not on the server.
    command = [sys.executable, "-P", str(Path(__file__).with_name("answer.py")), str(folder), *map(str, images)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise GateError(f"refused: the SavedModel fails in a fresh process: {reason[0]}; nothing was written")
    max_difference = 0.0
    model = float_model.of_run(run, scratch / "float")
    with Classifier(model, labels=run.labels, spec=run.spec) as classifier:
        for image, line in zip(images, done.stdout.splitlines(), strict=True):
            answer = json.loads(line)
            found = dict(zip(answer["labels"], answer["scores"], strict=True))
            result = classifier.classify(decode_image(image.read_bytes(), image))
            expected = dict(zip(result.labels, result.scores.tolist(), strict=True))
            max_difference = max(max_difference, *(abs(found[label] - expected[label]) for label in run.labels))
    if not max_difference <= TOLERANCE:
        raise GateError(
            f"refused: the SavedModel's scores differ by up to {max_difference:.3g} from the run's, at most "
            f"{TOLERANCE:g} allowed; nothing was written"
        )
    return max_difference


def _first_free(folder: Path) -> int:
    taken = [int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()]
    return max(taken, default=0) + 1


def _sync(folder: Path) -> None:
    """Flush all files to disk, so that a power cut cannot leave an incomplete version."""
    for path in [*(entry for entry in folder.rglob("*") if entry.is_file()), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
