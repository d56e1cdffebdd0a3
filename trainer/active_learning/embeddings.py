"""Embeddings and scores of images, computed once per image and cached between sessions."""

from __future__ import annotations

import fcntl
import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
from rich.console import Console

from edge_agent.errors import DataError, ImageError
from edge_agent.images import decode_image, read_bytes
from edge_agent.native_stderr import native_noise_hidden
from edge_agent.preprocessing import Pixels, PreprocessSpec, preprocess

from ..backbones import build_backbone
from ..backend import start_keras
from ..data import default_cache
from ..evaluation import run_predictor
from ..progress import track
from ..threads import in_order

if TYPE_CHECKING:
    import keras

BATCH = 32
_FORMAT = "edgeloop sight 1"
_WITHOUT_RUN = "efficientnet-lite0"


@dataclass(frozen=True, eq=False)
class Network:
    """A network that computes embeddings.

    Attributes:
        labels: class names, in the order of the scores; empty without a run.
        spec: preprocessing of the images.
        model: maps pixels, (n, height, width, 3), to features, (n, f), and softmax scores, (n, classes).
        key: hash of everything that determines the output, for the cache.
    """

    labels: tuple[str, ...]
    spec: PreprocessSpec
    model: keras.Model
    key: str


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Output of a network, one row per image.

    Attributes:
        features: (n, f) float32, rounded to the precision of float16.
        scores: (n, classes) float32, softmax, 0 to 1; no columns for a network without classes.
        failed: error message of each image that could not be read, by its row; the row contains zeros.
    """

    features: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    failed: dict[int, str]


def load_network(run: Path | None) -> Network:
    """Load the network of a run or, without a run, EfficientNet-Lite0 pretrained on ImageNet.

    Raises:
        DataError: the run is not usable.
        MissingExtraError: Keras is not installed.
    """
    keras = start_keras()
    if run is None:
        spec = PreprocessSpec((224, 224))
        base = build_backbone(_WITHOUT_RUN, spec.size)
        none = keras.layers.Lambda(lambda features: features[:, :0])(base.output)
        model = keras.Model(base.input, [base.output, none])
        return Network((), spec, model, _key(b"imagenet", spec))
    if not (run / "model.keras").is_file():
        raise DataError(f"{run}: no model.keras in it; name a run directory made by `edgeloop train`")
    found = run_predictor(run)
    assert found.network is not None  # noqa: S101  a run always has one
    last = found.network.layers[-1]
    model = keras.Model(found.network.input, [last.input, found.network.output])
    return Network(found.labels, found.spec, model, _key((run / "model.keras").read_bytes(), found.spec))


def embed(
    network: Network,
    images: Sequence[tuple[str, Path]],
    *,
    description: str,
    console: Console,
    cache: Path | None = None,
) -> Embeddings:
    """Compute the features and scores of images, or read them from the cache.

    Args:
        network: the network to use.
        images: SHA-256 and path of each image; a file whose content has another hash counts as failed.
        description: text of the progress bar.
        console: console for the progress bar.
        cache: folder of the cache; `default_cache()` if None.

    Raises:
        DataError: the cache cannot be used, or the disk is full.
    """
    folder = (cache or default_cache()) / "sight"
    width, classes = (shape[-1] for shape in network.model.output_shape)
    features = np.zeros((len(images), width), np.float32)
    scores = np.zeros((len(images), classes), np.float32)
    failed: dict[int, str] = {}
    try:
        with _open_rows(folder / f"{network.key[:32]}.rows", width, classes) as rows:
            todo = []
            for index, (sha256, _) in enumerate(images):
                row = rows.find(sha256)
                if row is None:
                    todo.append(index)
                else:
                    features[index], scores[index] = row["features"], row["scores"]
            for indices, pixels in batches(network, images, todo, failed, description, console):
                added = rows.add([images[index][0] for index in indices], *predict(network, pixels))
                features[indices], scores[indices] = added["features"], added["scores"]
    except OSError as error:
        raise DataError(
            f"{folder}: the embeddings cannot be cached: {error.strerror}; make room, or name another --cache"
        ) from error
    return Embeddings(features, scores, failed)


def batches(
    network: Network,
    images: Sequence[tuple[str, Path]],
    todo: Sequence[int],
    failed: dict[int, str],
    description: str,
    console: Console,
) -> Iterator[tuple[list[int], list[Pixels]]]:
    """Yield the indices and pixels of the images in ``todo`` in batches; add unreadable images to ``failed``."""

    def read(index: int) -> Pixels | ImageError:
        sha256, path = images[index]
        try:
            data = read_bytes(path)
            if hashlib.sha256(data).hexdigest() != sha256:
                return ImageError(f"{path}: not the image that was captured (its SHA-256 differs); pull it again")
            return preprocess(decode_image(data, path), network.spec)
        except ImageError as error:
            return error

    indices: list[int] = []
    batch: list[Pixels] = []
    with closing(in_order(read, todo, ahead=2 * BATCH)) as reading:
        for index, pixels in track(reading, description, total=len(todo), console=console):
            if isinstance(pixels, ImageError):
                failed[index] = str(pixels)
                continue
            indices.append(index)
            batch.append(pixels)
            if len(batch) == BATCH:
                yield indices, batch
                indices, batch = [], []
    if batch:
        yield indices, batch


def predict(network: Network, pixels: Sequence[Pixels]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the features and scores of at most BATCH images."""
    # The batch is always full, because another shape would compile the network again.
    batch = np.zeros((BATCH, *network.spec.shape), np.float32)
    batch[: len(pixels)] = pixels
    with native_noise_hidden():
        features, scores = network.model.predict_on_batch(batch)
    return np.asarray(features[: len(pixels)], np.float32), np.asarray(scores[: len(pixels)], np.float32)


def rounded(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Return features in the precision in which they are stored, clipped to its range."""
    limit = np.finfo(np.float16).max
    return np.clip(features, -limit, limit).astype(np.float16)


def _key(model: bytes, spec: PreprocessSpec) -> str:
    return hashlib.sha256(b" ".join([_FORMAT.encode(), msgspec.json.encode(spec), model])).hexdigest()


class _Rows:
    """Records in a file, each with a checksum, so that records damaged by a crash are ignored."""

    def __init__(self, handle: int, width: int, classes: int) -> None:
        self._handle = handle
        self._dtype = np.dtype(
            [("sha256", "S32"), ("features", "<f2", (width,)), ("scores", "<f4", (classes,)), ("crc", "<u4")]
        )
        size = os.fstat(handle).st_size // self._dtype.itemsize * self._dtype.itemsize
        os.ftruncate(handle, size)
        with os.fdopen(os.dup(handle), "rb") as file:
            file.seek(0)
            self._rows = np.frombuffer(file.read(), self._dtype)
        body = self._dtype.itemsize - 4
        raw = self._rows.view(np.uint8).reshape(len(self._rows), self._dtype.itemsize)
        self._indices = {
            bytes(record[:32]): index
            for index, record in enumerate(raw)
            if zlib.crc32(record[:body].tobytes()) == int(self._rows["crc"][index])
        }

    def find(self, sha256: str) -> Any:
        index = self._indices.get(bytes.fromhex(sha256))
        return None if index is None else self._rows[index]

    def add(self, hashes: Sequence[str], features: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]) -> Any:
        rows = np.zeros(len(hashes), self._dtype)
        raw = rows.view(np.uint8).reshape(len(rows), self._dtype.itemsize)
        for record, sha256 in zip(raw, hashes, strict=True):
            record[:32] = np.frombuffer(bytes.fromhex(sha256), np.uint8)
        rows["features"], rows["scores"] = rounded(features), scores
        body = self._dtype.itemsize - 4
        rows["crc"] = [zlib.crc32(record[:body].tobytes()) for record in raw]
        end = os.lseek(self._handle, 0, os.SEEK_END)
        try:
            view = memoryview(rows.tobytes())
            while view:
                view = view[os.write(self._handle, view) :]
        except OSError:
            os.ftruncate(self._handle, end)
            raise
        return rows


@contextmanager
def _open_rows(path: Path, width: int, classes: int) -> Iterator[_Rows]:
    """Open a network's file of rows and lock it for this process."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield _Rows(handle, width, classes)
    finally:
        os.close(handle)
