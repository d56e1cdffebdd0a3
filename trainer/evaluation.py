"""Evaluates a run or a bundle on labelled images.

The metrics are the same as in the training report and in the gate of `edgeloop convert`. Keras executes the model of a
run, in batches. The classifier of the device executes a bundle, one image at a time. The memory that an evaluation
needs does not depend on the number of images.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
from rich.console import Console

from edge_agent.bundle.archive import problems_of_labels
from edge_agent.errors import DataError, ImageError
from edge_agent.images import decode_image, read_bytes
from edge_agent.inference.evaluation import Evaluation
from edge_agent.native_stderr import native_noise_hidden
from edge_agent.preprocessing import Pixels, PreprocessSpec, preprocess
from edge_agent.progress_lines import Progress

from .data import Photo, data_root, find_photos
from .progress import CallbackConsole, status, track
from .run_writer import read_split
from .threads import in_order

if TYPE_CHECKING:
    import keras

BATCH = 32
KNOWN_NAMED = 20


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A model's predictions for labelled images.

    Attributes:
        model: path of the run or bundle.
        root: folder that the paths in ``photos`` are relative to.
        photos: the images, in the same order as in ``evaluation``.
        evaluation: true classes and scores of the images.
        spec: preprocessing of the images.
        unreadable: one message for each image that could not be read, with the reason.
        trained_on: number of images that were left out because the model was trained on them.
        doubts: reasons why the metrics may be misleading, one sentence each.
        network: the Keras model of a run; None for a bundle.
    """

    model: Path
    root: Path
    photos: tuple[Photo, ...]
    evaluation: Evaluation
    spec: PreprocessSpec
    unreadable: tuple[str, ...]
    trained_on: int
    doubts: tuple[str, ...]
    network: keras.Model | None = None

    def mistakes(self) -> list[dict[str, Any]]:
        """Return all misclassified images, sorted by the score of the predicted class, highest first."""
        found, labels = self.evaluation, self.evaluation.labels
        wrong = np.flatnonzero(~found.right)
        scores = found.scores[wrong, found.predicted[wrong]]
        return [
            {
                "path": self.photos[place].path,
                "label": labels[found.truth[place]],
                "taken_for": labels[found.predicted[place]],
                "score": round(float(found.scores[place, found.predicted[place]]), 6),
            }
            for place in wrong[np.argsort(-scores, kind="stable")].tolist()
        ]


@dataclass(frozen=True, eq=False)
class Predictor:
    """A loaded model.

    Attributes:
        labels: class names.
        spec: preprocessing of the images.
        prepare: function that maps an image, (H, W, 3) uint8 BGR, to an input of ``predict``. Several threads call it.
        predict: function that maps at most ``batch`` prepared images to their scores, (n, classes) float32.
        batch: maximum number of images in one call of ``predict``.
        close: function that frees the memory of the model.
        network: the Keras model of a run; None for a bundle.
    """

    labels: tuple[str, ...]
    spec: PreprocessSpec
    prepare: Callable[[Pixels], Pixels]
    predict: Callable[[Sequence[Pixels]], npt.NDArray[np.float32]]
    batch: int
    close: Callable[[], None] = field(default=lambda: None)
    network: keras.Model | None = None


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    console: Console | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    on_message: Callable[[str], object] | None = None,
    split: str | None = None,
    everything: bool = False,
    run: str | Path | None = None,
) -> Evaluated:
    """Evaluate the model of a run or a bundle on labelled images.

    Args:
        model: a run directory, a bundle file, or the directory of an unpacked bundle.
        data: a folder that contains a folder for each class; a folder with the subfolders train, val and test, each
            of which contains a folder for each class; or a CSV file.
        console: Rich console that shows progress and messages. If given, ``on_progress`` and ``on_message`` are not
            called.
        on_progress: called with the progress of each stage.
        on_message: called with each message, for example a finding about the images. A message is one line of plain
            text.
        split: evaluate only this split of ``data``.
        everything: include images that the model was trained on.
        run: the run that a bundle was made from. It lists the training images, which the bundle does not. Not needed
            if ``model`` is a run.

    Raises:
        DataError: ``model`` is neither a run nor a bundle, ``data`` has classes that the model does not know, or no
            images are left to evaluate.
        BundleError, ModelError: the bundle cannot be used.
        MissingExtraError: ``model`` is a run, and Keras is not installed.
    """
    model, data = Path(model), Path(data)
    console = console or CallbackConsole(on_progress, on_message)
    is_run = (model / "model.keras").is_file()
    if (model / "saved_model").is_dir():
        raise DataError(f"{model}: its model is a SavedModel; convert it, and evaluate the bundle with --run {model}")
    if not is_run and not (model.is_file() or (model / "manifest.json").is_file()):
        found = "is neither a run directory nor a bundle" if model.exists() else "does not exist"
        raise DataError(f"{model}: {found}; give the output of `edgeloop train` or `edgeloop convert`")
    photos = [photo for photo in find_photos(data) if split in (None, photo.split)]
    if not photos:
        raise DataError(f"{data}: has no images in the split {split}; leave --split out")
    record = Path(run) if run else (model if is_run else None)
    splits = read_split(record) if record else {}
    learned = frozenset(sha256 for sha256, where in splits.items() if where != "test")

    with status(console, "Loading the model"):
        predictor = run_predictor(model) if is_run else _bundle_predictor(model)
    try:
        _check_labels(data, photos, predictor.labels)
        answers = _ask(predictor, data_root(data), photos, frozenset() if everything else learned, console)
    finally:
        predictor.close()
    if not answers.photos:
        raise DataError(
            f"{data}: no images left to evaluate: of {len(photos)}, {answers.trained_on} were used for training and "
            f"{len(answers.unreadable)} cannot be read; give other images, or --all to include training images"
        )
    index = {label: i for i, label in enumerate(predictor.labels)}
    truth = np.array([index[photo.label] for photo in answers.photos], np.intp)
    return Evaluated(
        model,
        data_root(data),
        tuple(answers.photos),
        Evaluation(predictor.labels, truth, np.stack(answers.scores)),
        predictor.spec,
        tuple(answers.unreadable),
        answers.trained_on,
        _doubts(answers.photos, learned, known=record is not None),
        predictor.network,
    )


@dataclass(eq=False)
class _Answers:
    photos: list[Photo] = field(default_factory=list)
    scores: list[npt.NDArray[np.float32]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    trained_on: int = 0


def _ask(
    predictor: Predictor, root: Path, photos: Sequence[Photo], left_out: frozenset[str], console: Console
) -> _Answers:
    """Read all images and compute their scores, except for images whose SHA-256 is in ``left_out``."""
    answers = _Answers()

    def read(photo: Photo) -> tuple[Photo, Pixels | None] | ImageError:
        try:
            data = read_bytes(root / photo.path)
            photo = replace(photo, sha256=hashlib.sha256(data).hexdigest())
            if photo.sha256 in left_out:
                return photo, None
            return photo, predictor.prepare(decode_image(data, root / photo.path))
        except ImageError as error:
            return error

    waiting: list[Pixels] = []

    def predict() -> None:
        answers.scores.extend(predictor.predict(waiting))
        waiting.clear()

    with closing(in_order(read, photos, ahead=predictor.batch)) as images:
        for _, result in track(images, "Evaluating", total=len(photos), console=console):
            if isinstance(result, ImageError):
                answers.unreadable.append(str(result))
            elif result[1] is None:
                answers.trained_on += 1
            else:
                answers.photos.append(result[0])
                waiting.append(result[1])
            if len(waiting) == predictor.batch:
                predict()
    if waiting:
        predict()
    return answers


def run_predictor(run: Path) -> Predictor:
    """Load the Keras model of a run. The last layer of the model, "scores", gets the features of the backbone as input.

    Raises:
        DataError: the run is damaged.
        MissingExtraError: Keras is not installed.
    """
    from .backend import start_keras

    try:
        spec = msgspec.json.decode((run / "preprocess.json").read_bytes(), type=PreprocessSpec)
        labels = tuple((run / "labels.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{run}: the run is damaged: {error}; train again") from error
    problems = problems_of_labels(labels)
    if problems:
        raise DataError(f"{run}: labels.txt: {'; '.join(problems)}")
    keras = start_keras()
    try:
        with native_noise_hidden():
            model = keras.saving.load_model(run / "model.keras", compile=False, safe_mode=True)
    except (ValueError, OSError, TypeError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{run / 'model.keras'}: not a Keras model that edgeloop can load: {reason}") from error
    if model.input_shape != (None, *spec.shape) or model.output_shape != (None, len(labels)):
        raise DataError(
            f"{run / 'model.keras'}: maps {model.input_shape} to {model.output_shape}; preprocess.json and labels.txt "
            f"need {(None, *spec.shape)} to {(None, len(labels))}"
        )

    def predict(images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        # The batch always has the same shape, because Keras compiles the network again for each new shape.
        batch = np.zeros((BATCH, *spec.shape), np.float32)
        batch[: len(images)] = images
        with native_noise_hidden():
            scores = keras.ops.convert_to_numpy(model.predict_on_batch(batch))
        return np.asarray(scores[: len(images)], np.float32)

    return Predictor(labels, spec, lambda frame: preprocess(frame, spec), predict, BATCH, network=model)


def _bundle_predictor(bundle: Path) -> Predictor:
    import edge_agent

    classifier = edge_agent.open(bundle)

    def predict(frames: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        return np.stack([classifier.classify(frame).scores for frame in frames])

    return Predictor(classifier.labels, classifier.spec, lambda frame: frame, predict, 1, classifier.close)


def _check_labels(data: Path, photos: Sequence[Photo], known: Sequence[str]) -> None:
    """Check that the model knows the classes of all images. Images of other classes would all count as mistakes.

    Raises:
        DataError: the model does not know some classes. The message names each unknown class and, if there is one, a
            known class with a similar name.
    """
    unknown = sorted({photo.label for photo in photos}.difference(known))
    if not unknown:
        return
    lower = {label.lower(): label for label in known}
    named = []
    for label in unknown:
        close = difflib.get_close_matches(label.lower(), lower, 1)
        named.append(f"{label!r}" + (f" (did you mean {lower[close[0]]!r}?)" if close else ""))
    more = f" and {len(known) - KNOWN_NAMED} more" if len(known) > KNOWN_NAMED else ""
    raise DataError(
        f"{data}: classes the model does not know: {', '.join(named)}; "
        f"it knows {', '.join(map(repr, known[:KNOWN_NAMED]))}{more}. Rename or remove the unknown classes"
    )


def _doubts(photos: Sequence[Photo], learned: frozenset[str], *, known: bool) -> tuple[str, ...]:
    if not known:
        doubt = (
            "A bundle does not say which images it was trained on. If some of them are among these images, the metrics "
            "are too high. Give the bundle's run with --run to leave them out."
        )
        return (doubt,)
    trained_on = sum(photo.sha256 in learned for photo in photos)
    if trained_on:
        return (f"{trained_on} of the {len(photos)} images were used for training, so the metrics are too high.",)
    return ()


class ImagesOnDemand:
    """Pixels of images, which are read from the image files when they are accessed.

    A report shows only a few of the images, so most of them are never read.
    """

    def __init__(self, root: Path, photos: Sequence[Photo], spec: PreprocessSpec) -> None:
        self._root, self._photos, self._spec = root, photos, spec

    def __getitem__(self, place: int) -> Pixels:
        """Return one preprocessed image, (height, width, 3) uint8, in the channel order of the spec.

        If the file can no longer be read, all pixels are grey.
        """
        path = self._root / self._photos[place].path
        try:
            return preprocess(decode_image(read_bytes(path), path), self._spec)
        except ImageError:
            return np.full(self._spec.shape, 127, np.uint8)
