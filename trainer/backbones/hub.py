"""Networks from elsewhere: KerasHub's presets, and TensorFlow SavedModels from a folder, Kaggle or tfhub.dev."""

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
from edge_agent.preprocess import MAX_SIZE, MIN_SIZE

from .backbone import Backbone, KerasHub, Range, SavedModel
from .weights import reason

if TYPE_CHECKING:
    import keras

_USUAL_SIDE = 224
_ENDPOINTS = ("serve", "serving_default", "default")
"""What `keras.Model.export`, TensorFlow and TF Hub call a SavedModel's function."""
_PATIENCE_S = 15.0


def kerashub_backbone(name: str, preset: str) -> Backbone:
    """The backbone called kerashub:PRESET; the size is the preset's own where it lies in a folder.

    Raises:
        ConfigError: the folder is not there or not a preset.
    """
    preset, pixels = _split_range(preset)
    folder, side = Path(preset), _USUAL_SIDE
    if _means_a_folder(preset):
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{name}: no preset there; expected a folder with a config.json, as save_to_preset makes")
        side = _converter_side(folder / "image_converter.json") or side
    return Backbone(name, side, KerasHub(preset, pixels), weights=f"the KerasHub preset {preset}", smallest=8)


def saved_model_backbone(name: str, place: str) -> Backbone:
    """The backbone called savedmodel:PLACE.

    Raises:
        ConfigError: the folder is not there or not a SavedModel.
    """
    place, pixels = _split_range(place)
    if _means_a_folder(place) and not (Path(place) / "saved_model.pb").is_file():
        raise ConfigError(f"{name}: no SavedModel there; expected a folder with a saved_model.pb, or a Kaggle handle")
    network = SavedModel(place, pixels or SavedModel.pixels)
    return Backbone(
        name,
        _USUAL_SIDE,
        network,
        weights=f"the SavedModel {place}, given pixels from {network.pixels[0]:g} to {network.pixels[1]:g}",
        smallest=8,
        fine_tunes=False,
        self_contained=False,
    )


def kerashub_network(network: KerasHub, size: tuple[int, int], *, name: str, load_weights: bool) -> keras.Model:
    """The preset's network with the normalisation of its image converter in plain layers.

    Returns:
        From pixels (n, height, width, 3) float32, RGB, 0 to 255, to pooled features (n, f) float32. Its layers are
        Keras' own wherever KerasHub's can be taken apart; the others need KerasHub when the model is loaded again.

    Raises:
        MissingExtraError: KerasHub is not installed.
        DataError: the preset cannot be had, is not of images, or does not say what pixels it takes.
    """
    hub = _import("keras_hub")
    # Without a network Hugging Face tells of each of its six attempts; the last one's failure is the line we print.
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
        except Exception as error:  # noqa: BLE001  whatever KerasHub, Kaggle or Hugging Face trip over
            failure = error
    if isinstance(failure, ConfigError):
        raise failure
    if failure:
        raise DataError(
            f"{name}: cannot be loaded ({reason(failure)}); a preset on disk is named by its folder: kerashub:FOLDER"
        ) from failure
    maps = [tensor for tensor in keras.tree.flatten(out) if len(tensor.shape) == 4]
    if not maps:
        raise DataError(f"{name}: gives no feature maps (n, rows, columns, channels); choose a convolutional network")
    with native_noise_hidden():
        coarsest = min(maps, key=lambda tensor: tensor.shape[1])  # some give a pyramid of them
        model = plainest(pooled(pixels, coarsest, "kerashub"))
        fails = not is_plain(model) and not loads_again(model)
    if fails:
        raise DataError(f"{name}: KerasHub cannot load again what it saves of this network; choose another")
    return model


def saved_model_network(network: SavedModel, size: tuple[int, int], *, name: str) -> keras.Model:
    """The SavedModel as a frozen layer; TensorFlow's backend of Keras only.

    A SavedModel is a program: use only those you trust.

    Returns:
        From pixels (n, height, width, 3) float32, RGB, 0 to 255, to features (n, f) float32. The `.keras` file of a
        model made of it does not load again, as it only names the SavedModel; see `write_saved_model`.

    Raises:
        ConfigError: Keras runs on another backend.
        MissingExtraError: the handle needs kagglehub.
        DataError: no SavedModel is to be had there, or it does not turn images of that size into vectors.
    """
    import keras

    from .graph import pooled

    if keras.backend.backend() != "tensorflow":
        raise ConfigError(f"{name}: SavedModels need KERAS_BACKEND=tensorflow, found {keras.backend.backend()}")
    folder = Path(network.place) if _means_a_folder(network.place) else _fetched(network.place, name)
    low, high = network.pixels
    pixels = keras.Input((*size, 3), dtype="float32", name="pixels")
    x = keras.layers.Rescaling((high - low) / 255, offset=low, name="normalise")(pixels)
    failure, out = None, None
    with native_noise_hidden():
        try:
            out = _saved_model_layer(folder)(x)
        except Exception as error:  # noqa: BLE001  whatever TensorFlow trips over
            failure = error
    outs = [tensor for tensor in keras.tree.flatten(out) if tensor is not None and len(tensor.shape) in {2, 4}]
    if failure or len(outs) != 1:
        raise DataError(
            f"{name}: does not turn {size[0]}x{size[1]} images into one vector each "
            f"({reason(failure) if failure else f'{len(outs)} outputs could be one'}); "
            "try its own --image-size, or another SavedModel"
        ) from failure
    if len(outs[0].shape) == 4:
        return pooled(pixels, outs[0], "savedmodel")
    return keras.Model(pixels, outs[0], name="savedmodel")


def write_saved_model(model: keras.Model, folder: Path) -> None:
    """Write a classifier with all it needs as a SavedModel of batch 1, for what cannot be in a `.keras` file alone.

    Args:
        model: from (n, height, width, 3) float32 pixels, such as a head on `saved_model_network`'s.
        folder: to make.
    """
    import keras

    signature = [keras.InputSpec(shape=(1, *model.input_shape[1:]), dtype="float32", name="pixels")]
    with native_noise_hidden():
        model.export(folder, format="tf_saved_model", input_signature=signature, verbose=False)


def _scaling(hub: Any, network: KerasHub, name: str) -> tuple[Any, Any]:
    """Scale and offset from levels of 255 to what the preset was trained on, each a number or one a channel."""
    if network.pixels is not None:
        low, high = network.pixels
        return (high - low) / 255, low
    try:
        converter = hub.layers.ImageConverter.from_preset(network.preset)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(
            f"{name}: no image converter tells what pixels it takes ({reason(error)}); say so yourself: {name}#-1..1"
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
    """The folder of a SavedModel on Kaggle, downloaded by kagglehub into its own cache."""
    kagglehub = _import("kagglehub")
    try:
        handle = _kaggle_handle(place)
        folder = Path(kagglehub.model_download(handle))
    except Exception as error:  # whatever kagglehub trips over
        raise DataError(
            f"{name}: cannot be downloaded ({reason(error)}); a SavedModel on disk is named by its folder: "
            "savedmodel:FOLDER"
        ) from error
    if not (folder / "saved_model.pb").is_file():
        raise DataError(f"{name}: what {handle} names on Kaggle is no SavedModel")
    return folder


def _kaggle_handle(place: str) -> str:
    """OWNER/MODEL/FRAMEWORK/VARIATION[/VERSION] from itself, from a page on Kaggle, or from an address on tfhub.dev.

    tfhub.dev has moved to Kaggle: its addresses redirect to pages there.
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
    """PLACE#LOW..HIGH to the place and what black and white become; None where nothing is said."""
    found = re.fullmatch(r"(.+)#(-?\d+)\.\.(\d+)", place)
    return (found[1], (float(found[2]), float(found[3]))) if found else (place, None)


def _converter_side(path: Path) -> int | None:
    """The size a preset's image converter brings images to, pixels, where it tells."""
    try:
        height, width = json.loads(path.read_bytes())["config"]["image_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    fits = isinstance(height, int) and height == width and MIN_SIZE <= height <= MAX_SIZE
    return height if fits else None
