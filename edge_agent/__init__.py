"""What runs on the device, and the contract every other stage imports.

The few names most scripts need, loaded only when used::

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
    from .preprocess import PreprocessSpec

# Read by OpenCV when it is loaded, so it stands here: a small file that claims gigapixels must not
# take the device's memory. 64 megapixels (192 MB decoded) is above every camera a Pi can carry.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(64 * 2**20))

__all__ = [
    "Bundle",
    "Classifier",
    "EdgeloopError",
    "PreprocessSpec",
    "Result",
    "Score",
    "__version__",
    "open",
    "open_bundle",
    "read_image",
]

_HOME = {
    "Bundle": "bundle",
    "Classifier": "inference.classifier",
    "EdgeloopError": "errors",
    "PreprocessSpec": "preprocess",
    "Result": "inference.classifier",
    "Score": "inference.classifier",
    "open_bundle": "bundle",
    "read_image": "images",
}


def open(  # noqa: A001  reads as edge_agent.open
    bundle: str | Path, *, threads: int | None = None, delegate: str | None = None
) -> Classifier:
    """Verify a bundle and load its model, ready to classify.

    Args:
        bundle: path of a ``.edgeloop`` file, or of the directory one was unpacked into.
        threads: inference threads; one per core up to four by default.
        delegate: shared library of an external delegate, such as Coral's; none by default.

    Raises:
        BundleError: the bundle is damaged, hostile or made for a newer agent.
        ModelError: its model does not load or does not match its manifest.
    """
    from .bundle import open_bundle
    from .inference.classifier import Classifier

    return Classifier.from_bundle(open_bundle(bundle), threads=threads, delegate=delegate)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edge_agent' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
