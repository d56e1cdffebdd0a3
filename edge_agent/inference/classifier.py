"""A frame to its label: preprocess into the input tensor, invoke, read the scores.

All quantization and dequantization of the device is in this module.
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
from ..preprocess import Pixels, PreprocessSpec, preprocess
from .interpreter import Interpreter


class Score(NamedTuple):
    """A label and its score, 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What the model said of one frame.

    Attributes:
        labels: the class names, shared with the classifier.
        scores: (classes,) float32, softmax, 0 to 1, in the order of ``labels``.
        preprocess_ms: wall time of resize and input, milliseconds.
        inference_ms: wall time of invoke, milliseconds.
    """

    labels: tuple[str, ...]
    scores: npt.NDArray[np.float32]
    preprocess_ms: float
    inference_ms: float

    @property
    def best(self) -> Score:
        """The label with the highest score; the first of them where several share it."""
        index = int(self.scores.argmax())
        return Score(self.labels[index], float(self.scores[index]))

    def top(self, count: int) -> list[Score]:
        """The ``count`` labels with the highest scores, best first."""
        order = np.argsort(-self.scores, kind="stable")[:count]
        return [Score(self.labels[index], float(self.scores[index])) for index in order]


class Classifier:
    """A model with its labels and its preprocessing, ready for frames. A context manager.

    Use it from one thread at a time.

    Args:
        model: the bytes of a ``.tflite`` file.
        labels: the class names, in the order of the model's outputs.
        spec: how frames become its input.
        threads: inference threads; one per core up to four by default.
        delegate: shared library of an external delegate; none by default.

    Raises:
        ModelError: the model or the delegate does not load, or the model breaks the contract: one input
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
            bundle: verified.
            threads: as of the class.
            delegate: as of the class.
            on_cpu_instead: is told why the delegate cannot be used, and the model runs on the CPU; without it, that is
                an error.

        Raises:
            BundleError, ModelError: the model file changed, does not load, or is not what the manifest says.
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
            raise ModelError(f"{bundle.path}: its model has the tensors {found}, its manifest says {manifest.tensors}")
        return classifier

    @property
    def tensors(self) -> Tensors:
        """The model's input and output."""
        return self._model.tensors

    @property
    def threads(self) -> int:
        """Inference threads in use."""
        return self._model.threads

    @property
    def delegate(self) -> str | None:
        """Shared library of the delegate in use; None on the CPU."""
        return self._model.delegate

    @property
    def runtime(self) -> str:
        """Package and version of the interpreter."""
        return self._model.runtime

    def classify(self, frame: Pixels) -> Result:
        """Classify one frame: (H, W, 3) uint8, **BGR**, of any size.

        From a library that gives RGB (Pillow, imageio), pass ``image[..., ::-1]``.

        Raises:
            TypeError, ValueError: the frame is not of that shape and dtype.
        """
        start = time.perf_counter_ns()
        self._write_input(frame)
        prepared = time.perf_counter_ns()
        self._model.invoke()
        done = time.perf_counter_ns()
        scores = dequantize(self._model.output()[0], self._model.tensors.output)
        return Result(self.labels, scores, (prepared - start) / 1e6, (done - prepared) / 1e6)

    def infer(self, levels: Pixels) -> tuple[npt.NDArray[np.float32], float]:
        """Run the model on an image that `preprocess` has prepared already, for who prepares the next one meanwhile.

        Args:
            levels: (height, width, 3) uint8 in the order and of the size of ``spec``. Free again when this returns.

        Returns:
            the scores, (classes,) float32, softmax, 0 to 1; and the wall time of invoke, milliseconds.
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
    """Stored values of a tensor as real ones: scale * (stored - zero_point). Always a copy, float32."""
    if tensor.dtype == "float32":
        return stored.astype(np.float32)
    return (stored.astype(np.float32) - np.float32(tensor.zero_point)) * np.float32(tensor.scale)


def contract_problems(tensors: Tensors, spec: PreprocessSpec, classes: int) -> list[str]:
    """Every way in which a model's tensors do not fit its preprocessing and labels; empty when they do."""
    problems = []
    given, wanted = tensors.input, (1, *spec.shape)
    if given.shape != wanted:
        problems.append(f"its input is {given.shape}, preprocessing makes {wanted}")
    zero_point = {"uint8": 0, "int8": -128}.get(given.dtype)
    if zero_point is not None and (given.scale, given.zero_point) != (1.0, zero_point):
        problems.append(
            f"its {given.dtype} input has scale {given.scale:.6g} and zero point {given.zero_point}; "
            f"a pixel must be a level (scale 1, zero point {zero_point})"
        )
    if tensors.output.shape != (1, classes):
        problems.append(f"its output is {tensors.output.shape}, {classes} labels need {(1, classes)}")
    return problems
