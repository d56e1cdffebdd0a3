"""What a network sees in images: features and scores, computed once for an image and kept between sessions."""

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
from rich.progress import track

from edge_agent.errors import DataError, ImageError
from edge_agent.images import decode_image, read_bytes
from edge_agent.native_stderr import native_noise_hidden
from edge_agent.preprocess import Pixels, PreprocessSpec, preprocess

from ..backbones import build_backbone
from ..backend import start_keras
from ..data import default_cache
from ..evaluate import run_predictor
from ..threads import in_order

if TYPE_CHECKING:
    import keras

BATCH = 32
_FORMAT = "edgeloop sight 1"
_WITHOUT_RUN = "efficientnet-lite0"


@dataclass(frozen=True, eq=False)
class Network:
    """A network that looks at images.

    Attributes:
        labels: the classes it tells apart, in the order of its scores; empty without a run.
        spec: how an image becomes its input.
        model: pixels, (n, height, width, 3), to features (n, f) and scores (n, classes), a softmax.
        key: of everything that decides what it gives.
    """

    labels: tuple[str, ...]
    spec: PreprocessSpec
    model: keras.Model
    key: str


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What a network saw, a row an image.

    Attributes:
        features: (n, f) float32, rounded to 16 bits.
        scores: (n, classes) float32, softmax, 0 to 1; no columns for a network without classes.
        failed: images that could not be looked at, whose rows are zeros, and why.
    """

    features: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    failed: dict[int, str]


def network_of(run: Path | None) -> Network:
    """The network of a run, or, without one, EfficientNet-Lite0 as ImageNet taught it.

    Raises:
        DataError: not a usable run.
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
        raise DataError(f"{run}: holds no model.keras; name a directory that `edgeloop train` made")
    found = run_predictor(run)
    assert found.network is not None  # noqa: S101  a run has one
    last = found.network.layers[-1]
    model = keras.Model(found.network.input, [last.input, found.network.output])
    return Network(found.labels, found.spec, model, _key((run / "model.keras").read_bytes(), found.spec))


def embed(
    network: Network,
    images: Sequence[tuple[str, Path]],
    *,
    what: str,
    console: Console,
    cache: Path | None = None,
) -> Embeddings:
    """Features and scores of images.

    Args:
        network: what looks.
        images: hash and path of each; a file whose content has another hash counts as failed.
        what: for the progress bar.
        console: where it goes.
        cache: folder in which what was seen is kept; `default_cache()` when None.

    Raises:
        DataError: the folder cannot be used, or is full.
    """
    folder = (cache or default_cache()) / "sight"
    width, classes = (shape[-1] for shape in network.model.output_shape)
    features = np.zeros((len(images), width), np.float32)
    scores = np.zeros((len(images), classes), np.float32)
    failed: dict[int, str] = {}
    try:
        with _kept(folder / f"{network.key[:32]}.rows", width, classes) as kept:
            todo = []
            for place, (sha256, _) in enumerate(images):
                row = kept.find(sha256)
                if row is None:
                    todo.append(place)
                else:
                    features[place], scores[place] = row["features"], row["scores"]
            for places, pixels in batches(network, images, todo, failed, what, console):
                seen, said = ask(network, pixels)
                rows = kept.add([images[place][0] for place in places], seen, said)
                features[places], scores[places] = rows["features"], rows["scores"]
    except OSError as error:
        raise DataError(
            f"{folder}: what the network saw cannot be kept: {error.strerror}; make room, or move it with --cache"
        ) from error
    return Embeddings(features, scores, failed)


def batches(
    network: Network,
    images: Sequence[tuple[str, Path]],
    todo: Sequence[int],
    failed: dict[int, str],
    what: str,
    console: Console,
) -> Iterator[tuple[list[int], list[Pixels]]]:
    """Places and pixels of those images of ``todo`` that can be read; the others are noted in ``failed``."""

    def read(place: int) -> Pixels | ImageError:
        sha256, path = images[place]
        try:
            data = read_bytes(path)
            if hashlib.sha256(data).hexdigest() != sha256:
                return ImageError(f"{path}: another image than the one that was captured; pull it again")
            return preprocess(decode_image(data, path), network.spec)
        except ImageError as error:
            return error

    places: list[int] = []
    batch: list[Pixels] = []
    with closing(in_order(read, todo, ahead=2 * BATCH)) as reading:
        for place, pixels in track(reading, what, total=len(todo), console=console, disable=not todo):
            if isinstance(pixels, ImageError):
                failed[place] = str(pixels)
                continue
            places.append(place)
            batch.append(pixels)
            if len(batch) == BATCH:
                yield places, batch
                places, batch = [], []
    if batch:
        yield places, batch


def ask(network: Network, pixels: Sequence[Pixels]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Features and scores of at most BATCH images."""
    # Always a whole batch: another shape would compile the network again.
    batch = np.zeros((BATCH, *network.spec.shape), np.float32)
    batch[: len(pixels)] = pixels
    with native_noise_hidden():
        features, scores = network.model.predict_on_batch(batch)
    return np.asarray(features[: len(pixels)], np.float32), np.asarray(scores[: len(pixels)], np.float32)


def rounded(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Features as they are kept."""
    limit = np.finfo(np.float16).max
    return np.clip(features, -limit, limit).astype(np.float16)


def _key(model: bytes, spec: PreprocessSpec) -> str:
    return hashlib.sha256(b" ".join([_FORMAT.encode(), msgspec.json.encode(spec), model])).hexdigest()


class _Rows:
    """Records in a file, each with its checksum: what a crash left half-written is not believed."""

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
        self._places = {
            bytes(record[:32]): place
            for place, record in enumerate(raw)
            if zlib.crc32(record[:body].tobytes()) == int(self._rows["crc"][place])
        }

    def find(self, sha256: str) -> Any:
        place = self._places.get(bytes.fromhex(sha256))
        return None if place is None else self._rows[place]

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
def _kept(path: Path, width: int, classes: int) -> Iterator[_Rows]:
    """A network's file of rows, for this process alone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield _Rows(handle, width, classes)
    finally:
        os.close(handle)
