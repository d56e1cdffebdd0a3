"""Starts Keras, checks for accelerators, and turns out-of-memory errors into clear messages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edge_agent.errors import MissingExtraError, ResourceError
from edge_agent.native_stderr import native_noise_hidden

# Names of the exceptions in TensorFlow, PyTorch and NumPy. JAX raises the same type for all errors, so the message of
# the error is searched instead.
_OUT_OF_MEMORY = ("ResourceExhaustedError", "OutOfMemoryError", "MemoryError", "_ArrayMemoryError")


def start_keras() -> Any:
    """Import Keras while hiding its start-up messages, and return the module.

    Raises:
        MissingExtraError: Keras or its configured backend is not installed.
    """
    try:
        with native_noise_hidden():
            import keras
    except ImportError as error:
        raise MissingExtraError("training", "train", error.name) from error
    return keras


def has_accelerator() -> bool:
    """Return True if Keras computes on a GPU or TPU."""
    import keras

    try:
        devices = keras.distribution.list_devices()
    except (AttributeError, NotImplementedError, RuntimeError):  # a backend that cannot list devices
        return False
    return any(not device.startswith("cpu") for device in devices)


@contextmanager
def memory_explained(batch_size: int) -> Iterator[None]:
    """Turn a backend's out-of-memory error into a one-line error that names the options to change.

    Raises:
        ResourceError: the block ran out of memory.
    """
    try:
        yield
    except Exception as error:
        if type(error).__name__ in _OUT_OF_MEMORY or "RESOURCE_EXHAUSTED" in str(error):
            raise ResourceError(
                f"out of memory with {batch_size} images per step; "
                "use a smaller --batch-size or --image-size, and --resume to continue an interrupted training"
            ) from error
        raise


def check_tensorboard() -> None:
    """Raise `MissingExtraError` if a package that TensorBoard logs need is missing.

    Call this before the training starts.
    """
    for package in ("tensorflow", "tensorboard"):
        if find_spec(package) is None:
            raise MissingExtraError("--tensorboard", "tensorboard", package)


def tensorboard_logs(folder: Path) -> Any:
    """Return a Keras callback that writes the metrics of every epoch for TensorBoard."""
    import keras

    return keras.callbacks.TensorBoard(os.fspath(folder), write_graph=False)
