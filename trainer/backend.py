"""What Keras runs on here, and its failures in words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edge_agent.errors import MissingExtraError, ResourceError
from edge_agent.native_stderr import native_noise_hidden

# TensorFlow's, PyTorch's and numpy's names for it; JAX raises one type for everything.
_OUT_OF_MEMORY = ("ResourceExhaustedError", "OutOfMemoryError", "MemoryError", "_ArrayMemoryError")


def start_keras() -> Any:
    """Import Keras, quietly.

    Raises:
        MissingExtraError: it, or the backend it is told to use, is not installed.
    """
    try:
        with native_noise_hidden():
            import keras
    except ImportError as error:
        raise MissingExtraError("training", "train", error.name) from error
    return keras


def has_accelerator() -> bool:
    """Whether Keras computes on a GPU or TPU."""
    import keras

    try:
        devices = keras.distribution.list_devices()
    except (AttributeError, NotImplementedError, RuntimeError):  # a backend that knows no devices
        return False
    return any(not device.startswith("cpu") for device in devices)


@contextmanager
def memory_explained(batch_size: int) -> Iterator[None]:
    """Turn a backend's out-of-memory error into one line that names the flag.

    Raises:
        ResourceError: memory ran out in the block.
    """
    try:
        yield
    except Exception as error:
        if type(error).__name__ in _OUT_OF_MEMORY or "RESOURCE_EXHAUSTED" in str(error):
            raise ResourceError(
                f"out of memory with {batch_size} images a step; "
                "give a smaller --batch-size or --image-size, and --resume where a training was under way"
            ) from error
        raise


def check_tensorboard() -> None:
    """Raise `MissingExtraError` where TensorBoard's logs could not be written; better now than after the head."""
    for package in ("tensorflow", "tensorboard"):
        if find_spec(package) is None:
            raise MissingExtraError("--tensorboard", "tensorboard", package)


def tensorboard_logs(folder: Path) -> Any:
    """A Keras callback that writes the figures of every epoch for TensorBoard."""
    import keras

    return keras.callbacks.TensorBoard(os.fspath(folder), write_graph=False)
