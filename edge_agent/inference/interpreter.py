"""TFLite interpreter: loads the runtime, chooses the number of threads, and describes tensors as typed values."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..bundle.manifest import TensorEntry, Tensors
from ..errors import ModelError
from ..native_stderr import native_noise_hidden

MAX_DEFAULT_THREADS = 4


def cores() -> int:
    """Return the number of cores this process may use; in a container, often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """Return one thread per usable core, at most four: every Pi has four, and more threads gain nothing at batch 1."""
    return min(MAX_DEFAULT_THREADS, cores())


class Interpreter:
    """Loaded model with one input and one output: write to the input view, invoke, read the output view.

    Use an instance from one thread at a time. It is a context manager; closing it frees the interpreter.

    Args:
        content: bytes of a ``.tflite`` file.
        threads: inference threads; by default `default_threads`.
        delegate: shared library of an external delegate, such as Coral's `libedgetpu.so.1`; operations that it does
            not support run on the CPU.

    Raises:
        ModelError: the content is not a TFLite model, uses operations that the runtime does not have, or does not have
            exactly one static input and one output.
    """

    def __init__(self, content: bytes, *, threads: int | None = None, delegate: str | None = None) -> None:
        self.threads = default_threads() if threads is None else threads
        self.delegate = delegate
        module, self.runtime = _interpreter_module()
        delegates = None if delegate is None else [_load_delegate(module, delegate)]
        try:
            with _announcement_hidden():
                self._interpreter = module.Interpreter(
                    model_content=content, num_threads=self.threads, experimental_delegates=delegates
                )
                self._interpreter.allocate_tensors()
            inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
            if len(inputs) != 1 or len(outputs) != 1:
                raise ModelError(
                    f"the model has {len(inputs)} inputs and {len(outputs)} outputs; one of each is needed"
                )
            self.tensors = Tensors(_entry(inputs[0]), _entry(outputs[0]))
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"the runtime cannot load the model: {str(error).splitlines()[0]}") from error
        self._input = self._interpreter.tensor(inputs[0]["index"])
        self._output = self._interpreter.tensor(outputs[0]["index"])

    def input(self) -> npt.NDArray[Any]:
        """Return a view of the input tensor, (1, H, W, 3), to write to. Release it before calling `invoke`."""
        return self._input()  # type: ignore[no-any-return]

    def invoke(self) -> None:
        """Run the model on the content of the input tensor; releases the GIL while it runs."""
        self._interpreter.invoke()

    def output(self) -> npt.NDArray[Any]:
        """Return a view of the output tensor, (1, classes).

        Release the view before the next `invoke`, which overwrites the tensor and fails while a view exists.
        """
        return self._output()  # type: ignore[no-any-return]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the interpreter; the model cannot be used afterwards."""
        self._input = self._output = self._interpreter = None


_announced = False


@contextmanager
def _announcement_hidden() -> Iterator[None]:
    """Hide the line about the CPU delegate that LiteRT prints when a process loads its first model."""
    global _announced  # noqa: PLW0603  the library's own state is as global
    if _announced:
        yield
        return
    with native_noise_hidden():
        yield
    _announced = True


def _interpreter_module() -> tuple[ModuleType, str]:
    """Return the module of the interpreter, and the name and version of its package."""
    try:
        return import_module("ai_edge_litert.interpreter"), f"ai-edge-litert {version('ai-edge-litert')}"
    except ImportError as error:
        raise ModelError("no TFLite runtime is installed; install it with: pip install ai-edge-litert") from error


def _load_delegate(module: ModuleType, library: str) -> object:
    try:
        # Try to load the library first: if that fails, LiteRT's own loader prints a traceback to standard error.
        ctypes.CDLL(library)
        return module.load_delegate(library)
    except (ValueError, OSError, AttributeError) as error:
        reason = str(error).strip() or "its driver finds no device"
        raise ModelError(f"{library}: no usable delegate: {reason}; install its driver, or run without it") from error


def _entry(details: dict[str, Any]) -> TensorEntry:
    shape = tuple(int(side) for side in details["shape"])
    if -1 in details.get("shape_signature", ()):
        raise ModelError(
            f"the model's shape {tuple(details['shape_signature'])} is dynamic; convert it with a static one"
        )
    dtype = np.dtype(details["dtype"]).name
    if dtype not in ("uint8", "int8", "float32"):
        raise ModelError(f"the model has a {dtype} tensor; expected uint8, int8 or float32")
    scale, zero_point = details["quantization"]
    return TensorEntry(shape, dtype, float(scale), int(zero_point))
