"""Builds networks from other sources: KerasHub presets, and TensorFlow SavedModels in a folder or on Kaggle.

A SavedModel on Kaggle can also be given by its former address on tfhub.dev.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edge_agent.errors import ConfigError, DataError, MissingExtraError
from edge_agent.native_stderr import native_noise_hidden
from edge_agent.preprocessing import MAX_SIZE, MIN_SIZE

from .backbone import Backbone, KerasHub, Range, SavedModel
from .weights import reason

if TYPE_CHECKING:
    import keras

_USUAL_SIDE = 224
_ENDPOINTS = ("serve", "serving_default", "default")
"""Names that the function of a SavedModel may have. They are tried in this order.

The first is the one that `keras.Model.export` writes, the second that of TensorFlow, the third that of TF Hub.
"""
_PATIENCE_S = 15.0


def kerashub_backbone(name: str, preset: str) -> Backbone:
    """Return the backbone with the name kerashub:PRESET.

    If the preset is a folder, the default input size is read from it.

    Raises:
        ConfigError: the folder does not exist or is not a preset.
    """
    preset, pixels = _split_range(preset)
    folder, side = Path(preset), _USUAL_SIDE
    if _means_a_folder(preset):
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"{name}: not a preset; expected a folder with a config.json, as written by save_to_preset"
            )
        side = _converter_side(folder / "image_converter.json") or side
    return Backbone(name, side, KerasHub(preset, pixels), weights=f"the KerasHub preset {preset}", smallest=8)


def saved_model_backbone(name: str, place: str) -> Backbone:
    """Return the backbone with the name savedmodel:PLACE.

    Raises:
        ConfigError: the folder does not exist or is not a SavedModel.
    """
    place, pixels = _split_range(place)
    if _means_a_folder(place) and not (Path(place) / "saved_model.pb").is_file():
        raise ConfigError(f"{name}: not a SavedModel; expected a folder with a saved_model.pb, or a Kaggle handle")
    network = SavedModel(place, pixels or SavedModel.pixels)
    return Backbone(
        name,
        _USUAL_SIDE,
        network,
        weights=f"the SavedModel {place}, with pixels from {network.pixels[0]:g} to {network.pixels[1]:g}",
        smallest=8,
        fine_tunes=False,
        self_contained=False,
    )


def kerashub_network(network: KerasHub, size: tuple[int, int], *, name: str, load_weights: bool) -> keras.Model:
    """Build the network of a preset. The normalisation of the preset's image converter becomes a plain Keras layer.

    Returns:
        A model that maps pixels, (n, height, width, 3) float32, RGB, 0 to 255, to pooled features, (n, f) float32.
        KerasHub's layers are replaced by plain Keras layers if possible. Otherwise, loading the saved model requires
        KerasHub.

    Raises:
        MissingExtraError: KerasHub is not installed.
        ConfigError: the preset does not define the pixel range that it expects.
        DataError: the preset cannot be loaded, or is not an image network.
    """
    hub = _import("keras_hub")
    # Without a network connection, Hugging Face logs each of its six attempts. The DataError below is enough.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    import keras

    from .graph import is_plain, loads_again, plainest, pooled

    failure, out = None, None
    pixels = keras.Input((*size, 3), dtype="float32", name="pixels")
    with native_noise_hidden():
        try:
            scale, offset = _scaling(hub, network, name)
            backbone = hub.models.Backbone.from_preset(network.preset, load_weights=load_weights)
            x = keras.layers.Rescaling(scale, offset=offset, name="normalise")(pixels)
            out = backbone.call(x)
        except Exception as error:  # noqa: BLE001  KerasHub, Kaggle and Hugging Face can raise anything
            failure = error
    if isinstance(failure, ConfigError):
        raise failure
    if failure:
        raise DataError(
            f"{name}: cannot be loaded ({reason(failure)}); use kerashub:FOLDER for a preset on disk"
        ) from failure
    maps = [tensor for tensor in keras.tree.flatten(out) if len(tensor.shape) == 4]
    if not maps:
        raise DataError(f"{name}: has no feature maps (n, rows, columns, channels); choose a convolutional network")
    with native_noise_hidden():
        coarsest = min(maps, key=lambda tensor: tensor.shape[1])  # some networks return a pyramid of feature maps
        model = plainest(pooled(pixels, coarsest, "kerashub"))
        fails = not is_plain(model) and not loads_again(model)
    if fails:
        raise DataError(f"{name}: KerasHub cannot load this network again once it is saved; choose another")
    return model


def saved_model_network(network: SavedModel, size: tuple[int, int], *, name: str) -> keras.Model:
    """Build a network that contains the SavedModel as a frozen layer. This requires Keras' TensorFlow backend.

    A SavedModel can execute code, so use only SavedModels that you trust.

    Returns:
        A model that maps pixels, (n, height, width, 3) float32, RGB, 0 to 255, to features, (n, f) float32. If a
        classifier built on it is saved as a `.keras` file, that file cannot be loaded, because it only refers to the
        SavedModel. Use `write_saved_model` instead.

    Raises:
        ConfigError: Keras uses another backend.
        MissingExtraError: the SavedModel must be downloaded from Kaggle, and kagglehub is not installed.
        DataError: the SavedModel cannot be loaded, or does not map images of this size to feature vectors or maps.
    """
    import keras

    from .graph import pooled

    if keras.backend.backend() != "tensorflow":
        raise ConfigError(f"{name}: SavedModels need KERAS_BACKEND=tensorflow, not {keras.backend.backend()}")
    folder = Path(network.place) if _means_a_folder(network.place) else _fetched(network.place, name)
    low, high = network.pixels
    pixels = keras.Input((*size, 3), dtype="float32", name="pixels")
    x = keras.layers.Rescaling((high - low) / 255, offset=low, name="normalise")(pixels)
    failure, out = None, None
    with native_noise_hidden():
        try:
            out = _saved_model_layer(folder)(x)
        except Exception as error:  # noqa: BLE001  TensorFlow can raise anything
            failure = error
    outs = [tensor for tensor in keras.tree.flatten(out) if tensor is not None and len(tensor.shape) in {2, 4}]
    if failure or len(outs) != 1:
        raise DataError(
            f"{name}: does not map {size[0]}x{size[1]} images to one vector each "
            f"({reason(failure) if failure else f'{len(outs)} outputs have a suitable shape'}); "
            "try the --image-size it was made for, or another SavedModel"
        ) from failure
    if len(outs[0].shape) == 4:
        return pooled(pixels, outs[0], "savedmodel")
    return keras.Model(pixels, outs[0], name="savedmodel")


def write_saved_model(model: keras.Model, folder: Path) -> None:
    """Write a complete classifier as a SavedModel with batch size 1.

    Use this for classifiers that a `.keras` file cannot contain completely; see `Backbone.self_contained`.

    Args:
        model: classifier with the input (n, height, width, 3) float32, for example a head on `saved_model_network`.
        folder: folder to create.
    """
    import keras

    signature = [keras.InputSpec(shape=(1, *model.input_shape[1:]), dtype="float32", name="pixels")]
    with native_noise_hidden():
        model.export(folder, format="tf_saved_model", input_signature=signature, verbose=False)


def _scaling(hub: Any, network: KerasHub, name: str) -> tuple[Any, Any]:
    """Return the scale and offset that convert pixel values from 0 to 255 into the range that the preset expects.

    Each is one number, or one number per channel.
    """
    if network.pixels is not None:
        low, high = network.pixels
        return (high - low) / 255, low
    try:
        converter = hub.layers.ImageConverter.from_preset(network.preset)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(
            f"{name}: the preset does not say which pixel range it expects ({reason(error)}); append the range to the "
            f"name, as in {name}#-1..1"
        ) from error
    return (1.0 if converter.scale is None else converter.scale), (
        0.0 if converter.offset is None else converter.offset
    )


def _saved_model_layer(folder: Path) -> Any:
    import keras

    for endpoint in _ENDPOINTS:
        try:
            return keras.layers.TFSMLayer(str(folder), call_endpoint=endpoint, trainable=False, name="savedmodel")
        except ValueError as error:
            problem = error
    raise problem


def _fetched(place: str, name: str) -> Path:
    """Download a SavedModel from Kaggle into kagglehub's cache and return its folder."""
    kagglehub = _import("kagglehub")
    try:
        handle = _kaggle_handle(place)
        folder = Path(kagglehub.model_download(handle))
    except Exception as error:  # kagglehub can raise anything
        raise DataError(
            f"{name}: cannot be downloaded ({reason(error)}); use savedmodel:FOLDER for a SavedModel on disk"
        ) from error
    if not (folder / "saved_model.pb").is_file():
        raise DataError(f"{name}: {handle} on Kaggle is not a SavedModel; choose another")
    return folder


def _kaggle_handle(place: str) -> str:
    """Return the Kaggle handle OWNER/MODEL/FRAMEWORK/VARIATION[/VERSION] of a model.

    ``place`` may be such a handle, the address of the model's page on Kaggle, or an address on tfhub.dev. tfhub.dev
    has moved to Kaggle, and its addresses redirect to pages on Kaggle.
    """
    if urlsplit(place).hostname in {"tfhub.dev", "www.tfhub.dev"}:
        with urllib.request.urlopen(place, timeout=_PATIENCE_S) as page:  # noqa: S310  its host is tfhub.dev
            place = page.url
    if "://" in place:
        place = re.sub(r"/(frameworks|variations|versions)/", "/", urlsplit(place).path).removeprefix("/models/")
    handle = place.strip("/")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+){3}(/\d+)?", handle):
        raise ValueError(f"{handle!r} is not OWNER/MODEL/FRAMEWORK/VARIATION")
    return handle


def _import(package: str) -> Any:
    try:
        with native_noise_hidden():
            return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError("this backbone", "hub", error.name) from error


def _means_a_folder(place: str) -> bool:
    return place.startswith(("/", ".", "~")) or Path(place).exists()


def _split_range(place: str) -> tuple[str, Range | None]:
    """Split PLACE#LOW..HIGH into the place and the pixel range. The range is None if it is not given."""
    found = re.fullmatch(r"(.+)#(-?\d+)\.\.(\d+)", place)
    return (found[1], (float(found[2]), float(found[3]))) if found else (place, None)


def _converter_side(path: Path) -> int | None:
    """Return the side of the square, in pixels, to which a preset's image converter resizes images.

    Return None if the side cannot be read, or is not a supported input size.
    """
    try:
        height, width = json.loads(path.read_bytes())["config"]["image_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    fits = isinstance(height, int) and height == width and MIN_SIZE <= height <= MAX_SIZE
    return height if fits else None
