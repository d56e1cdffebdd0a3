"""The part of edgeloop that runs on the device, and the formats that all other stages share.

This module offers the names that most scripts need; each is loaded on first use::

    import edge_agent

    with edge_agent.open("birds-3.edgeloop") as model:
        label, score = model.classify(edge_agent.read_image("robin.jpg")).best
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from .bundle import Bundle, open_bundle
    from .errors import EdgeloopError
    from .images import read_image
    from .inference.classifier import Classifier, Result, Score
    from .messages import Health, Info, Observation, Reply, Tunables
    from .mqtt import ReceivedMessage, read_message
    from .preprocessing import PreprocessSpec, preprocess

# OpenCV reads this variable when it is loaded. A small file that declares gigapixels must not use up the
# device's memory; 64 megapixels (192 MB decoded) is more than any camera for a Pi has.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(64 * 2**20))

__all__ = [
    "Bundle",
    "Classifier",
    "EdgeloopError",
    "Health",
    "Info",
    "Observation",
    "PreprocessSpec",
    "ReceivedMessage",
    "Reply",
    "Result",
    "Score",
    "Tunables",
    "__version__",
    "open",
    "open_bundle",
    "preprocess",
    "read_image",
    "read_message",
]

_HOME = {
    "Bundle": "bundle",
    "Classifier": "inference.classifier",
    "EdgeloopError": "errors",
    "Health": "messages",
    "Info": "messages",
    "Observation": "messages",
    "PreprocessSpec": "preprocessing",
    "ReceivedMessage": "mqtt",
    "Reply": "messages",
    "Result": "inference.classifier",
    "Score": "inference.classifier",
    "Tunables": "messages",
    "open_bundle": "bundle",
    "preprocess": "preprocessing",
    "read_image": "images",
    "read_message": "mqtt",
}
# Names from before 0.1.0. They work for one more release, with a warning.
_RENAMED = {"read_picture": "read_image"}


def open(  # noqa: A001  reads as edge_agent.open
    bundle: str | Path, *, threads: int | None = None, delegate: str | None = None
) -> Classifier:
    """Verify a bundle and load its model, ready to classify.

    Args:
        bundle: path of a ``.edgeloop`` file, or of the directory it was unpacked into.
        threads: inference threads; by default one per core, up to four.
        delegate: shared library of an external delegate, such as Coral's; none by default.

    Raises:
        BundleError: the bundle is damaged, malicious or made for a newer agent.
        ModelError: the model cannot be loaded or does not match the manifest.
    """
    from .bundle import open_bundle
    from .inference.classifier import Classifier

    return Classifier.from_bundle(open_bundle(bundle), threads=threads, delegate=delegate)


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        import warnings

        new = _RENAMED[name]
        warnings.warn(f"edge_agent.{name} is now edge_agent.{new}", DeprecationWarning, stacklevel=2)
        return __getattr__(new)
    if name not in _HOME:
        raise AttributeError(f"module 'edge_agent' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
