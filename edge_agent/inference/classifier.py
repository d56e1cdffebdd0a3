"""Classification of a frame: preprocess it into the input tensor, invoke the model, read the scores.

This module contains all quantization and dequantization on the device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle
from ..bundle.archive import MODEL
from ..bundle.manifest import TensorEntry, Tensors
from ..errors import ModelError
from ..preprocessing import Pixels, PreprocessSpec, preprocess
from .interpreter import Interpreter


class Score(NamedTuple):
    """A label and its score, 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """Scores of the model for one frame.

    Attributes:
        labels: class names, shared with the classifier.
        scores: (classes,) float32, softmax, 0 to 1, in the order of ``labels``.
        preprocess_ms: wall time of resizing and writing the input, milliseconds.
        inference_ms: wall time of invoke, milliseconds.
    """

    labels: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    preprocess_ms: float
    inference_ms: float

    @property
    def best(self) -> Score:
        """Label with the highest score; the first one in case of a tie."""
        index = int(self.scores.argmax())
        return Score(self.labels[index], float(self.scores[index]))

    def top(self, count: int) -> list[Score]:
        """Return the ``count`` labels with the highest scores, best first."""
        order = np.argsort(-self.scores, kind="stable")[:count]
        return [Score(self.labels[index], float(self.scores[index])) for index in order]


class Classifier:
    """A loaded model with its labels and preprocessing. A context manager.

    Use an instance from one thread at a time.

    Args:
        model: bytes of a ``.tflite`` file.
        labels: class names, in the order of the model's outputs.
        spec: preprocessing of the frames.
        threads: inference threads; by default one per core, up to four.
        delegate: shared library of an external delegate; none by default.

    Raises:
        ModelError: the model or the delegate cannot be loaded, or the model breaks the contract: one input
            (1, height, width, 3) of pixel levels (uint8 or int8 with scale 1, or float32 0 to
            255), one output (1, classes).
    """

    def __init__(
        self,
        model: bytes,
        *,
        labels: Sequence[str],
        spec: PreprocessSpec,
        threads: int | None = None,
        delegate: str | None = None,
    ) -> None:
        self.labels = tuple(labels)
        self.spec = spec
        self._model = Interpreter(model, threads=threads, delegate=delegate)
        problems = contract_problems(self._model.tensors, spec, len(self.labels))
        if problems:
            self._model.close()
            raise ModelError(f"the model breaks the contract: {'; '.join(problems)}")
        self._input_dtype = self._model.tensors.input.dtype
        self._staging = np.empty(spec.shape, np.uint8) if self._input_dtype == "float32" else None

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        threads: int | None = None,
        delegate: str | None = None,
        on_cpu_instead: Callable[[ModelError], object] | None = None,
    ) -> Classifier:
        """Load the model of a verified bundle.

        Args:
            bundle: a verified bundle.
            threads: see `Classifier`.
            delegate: see `Classifier`.
            on_cpu_instead: called with the error if the delegate cannot be used; the model then runs on the CPU.
                Without this callback, the error is raised.

        Raises:
            BundleError, ModelError: the model file has changed, cannot be loaded, or does not match the manifest.
        """
        manifest = bundle.manifest
        model = bundle.read(MODEL)
        try:
            classifier = cls(model, labels=bundle.labels, spec=manifest.preprocess, threads=threads, delegate=delegate)
        except ModelError as error:
            if delegate is None or on_cpu_instead is None:
                raise
            classifier = cls(model, labels=bundle.labels, spec=manifest.preprocess, threads=threads)
            on_cpu_instead(error)
        if classifier.tensors != manifest.tensors:
            found = classifier.tensors
            classifier.close()
            raise ModelError(
                f"{bundle.path}: the model has the tensors {found}, but its manifest lists {manifest.tensors}"
            )
        return classifier

    @property
    def tensors(self) -> Tensors:
        """Input and output tensor of the model."""
        return self._model.tensors

    @property
    def threads(self) -> int:
        """Inference threads in use."""
        return self._model.threads

    @property
    def delegate(self) -> str | None:
        """Shared library of the delegate in use; None if the model runs on the CPU."""
        return self._model.delegate

    @property
    def runtime(self) -> str:
        """Package and version of the interpreter."""
        return self._model.runtime

    def classify(self, frame: Pixels) -> Result:
        """Classify one frame: (H, W, 3) uint8, **BGR**, of any size.

        With a library that returns RGB (Pillow, imageio), pass ``image[..., ::-1]``.

        Raises:
            TypeError, ValueError: the frame does not have this shape and dtype.
        """
        start = time.perf_counter_ns()
        self._write_input(frame)
        prepared = time.perf_counter_ns()
        self._model.invoke()
        done = time.perf_counter_ns()
        scores = dequantize(self._model.output()[0], self._model.tensors.output)
        return Result(self.labels, scores, (prepared - start) / 1e6, (done - prepared) / 1e6)

    def infer(self, levels: Pixels) -> tuple[npt.NDArray[np.float32], float]:
        """Run the model on a preprocessed image; meanwhile, another thread can preprocess the next image.

        Args:
            levels: (height, width, 3) uint8 from `preprocess`, with the size and channel order of ``spec``. The array
                can be reused when this method returns.

        Returns:
            The scores, (classes,) float32, softmax, 0 to 1; and the wall time of invoke in milliseconds.
        """
        tensor = self._model.input()[0]
        if self._input_dtype == "int8":
            np.bitwise_xor(levels, 0x80, out=tensor.view(np.uint8))
        else:
            tensor[...] = levels
        del tensor  # a view must not be held while the model runs
        start = time.perf_counter_ns()
        self._model.invoke()
        took_ms = (time.perf_counter_ns() - start) / 1e6
        return dequantize(self._model.output()[0], self._model.tensors.output), took_ms

    def _write_input(self, frame: Pixels) -> None:
        tensor = self._model.input()[0]
        if self._staging is not None:
            tensor[...] = preprocess(frame, self.spec, self._staging)
            return
        levels = preprocess(frame, self.spec, tensor.view(np.uint8))
        if self._input_dtype == "int8":
            # Level minus 128 in two's complement is the level with its top bit flipped.
            np.bitwise_xor(levels, 0x80, out=levels)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the interpreter."""
        self._model.close()


def dequantize(stored: npt.NDArray[Any], tensor: TensorEntry) -> npt.NDArray[np.float32]:
    """Convert stored tensor values to real values: scale * (stored - zero_point). Return a float32 copy."""
    if tensor.dtype == "float32":
        return stored.astype(np.float32)
    return (stored.astype(np.float32) - np.float32(tensor.zero_point)) * np.float32(tensor.scale)


def contract_problems(tensors: Tensors, spec: PreprocessSpec, classes: int) -> list[str]:
    """Return all mismatches between a model's tensors and its preprocessing and labels; empty if there are none."""
    problems = []
    entry, expected = tensors.input, (1, *spec.shape)
    if entry.shape != expected:
        problems.append(f"its input is {entry.shape}, but preprocessing produces {expected}")
    zero_point = {"uint8": 0, "int8": -128}.get(entry.dtype)
    if zero_point is not None and (entry.scale, entry.zero_point) != (1.0, zero_point):
        problems.append(
            f"its {entry.dtype} input has scale {entry.scale:.6g} and zero point {entry.zero_point}; "
            f"the input must be pixel levels (scale 1, zero point {zero_point})"
        )
    if tensors.output.shape != (1, classes):
        problems.append(f"its output is {tensors.output.shape}, but {classes} labels need {(1, classes)}")
    return problems
