"""The TFLite interpreter: which one, how many threads, and its tensors as typed values.

LiteRT wherever it has a wheel; tflite-runtime, its predecessor, on 32-bit Arm.
"""

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
    """Cores this process may use; a container often has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """One per core this process may use, four at most: every Pi has four, and more gain nothing at batch 1."""
    return min(MAX_DEFAULT_THREADS, cores())


class Interpreter:
    """A loaded model with one input and one output; write the input view, invoke, read the output view.

    Not for several threads at once. A context manager; closing frees the interpreter.

    Args:
        content: the bytes of a ``.tflite`` file.
        threads: inference threads; `default_threads` when left out.
        delegate: shared library of an external delegate, such as Coral's `libedgetpu.so.1`; what it
            does not take runs on the CPU.

    Raises:
        ModelError: not a TFLite model, uses operations the runtime lacks, or has other than one
            static input and one output.
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
            raise ModelError(f"the runtime does not take the model: {str(error).splitlines()[0]}") from error
        self._input = self._interpreter.tensor(inputs[0]["index"])
        self._output = self._interpreter.tensor(outputs[0]["index"])

    def input(self) -> npt.NDArray[Any]:
        """The input tensor itself, (1, H, W, 3), to be written in place. Let go of it before `invoke`."""
        return self._input()  # type: ignore[no-any-return]

    def invoke(self) -> None:
        """Run the model on what the input tensor holds; releases the GIL meanwhile."""
        self._interpreter.invoke()

    def output(self) -> npt.NDArray[Any]:
        """The output tensor itself, (1, classes). The next `invoke` overwrites it, and refuses while it is held."""
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
    """LiteRT prints one line about its CPU delegate with the first model of a process; only that load is muted."""
    global _announced  # noqa: PLW0603  the library's own state is as global
    if _announced:
        yield
        return
    with native_noise_hidden():
        yield
    _announced = True


def _interpreter_module() -> tuple[ModuleType, str]:
    """The interpreter's module, and name and version of the package it comes from."""
    for package in ("ai-edge-litert", "tflite-runtime"):
        try:
            return import_module(f"{package.replace('-', '_')}.interpreter"), f"{package} {version(package)}"
        except ImportError:
            continue
    raise ModelError("no TFLite runtime is installed; install one with: pip install ai-edge-litert")


def _load_delegate(module: ModuleType, library: str) -> object:
    try:
        # First alone: on a library that does not load, LiteRT's own loader leaves a traceback on standard error.
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
        raise ModelError(f"the model has a {dtype} tensor; uint8, int8 or float32 are possible")
    scale, zero_point = details["quantization"]
    return TensorEntry(shape, dtype, float(scale), int(zero_point))
