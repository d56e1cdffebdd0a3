"""Builds the network of a backbone, and loads its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.errors import ConfigError, DataError
from edge_agent.native_stderr import native_noise_hidden
from trainer.backend import start_keras

from .backbone import Application, KerasHub, Lite, SavedModel
from .hub import kerashub_network, saved_model_network
from .registry import find_backbone
from .weights import Progress, load_by_name, load_h5, no_progress, weights_file

if TYPE_CHECKING:
    import keras


def build_backbone(
    name: str, size: tuple[int, int], *, weights: str | Path = "auto", progress: Progress = no_progress
) -> keras.Model:
    """Build the network of a backbone, and load its weights. The network has no classification head.

    The network normalises its input itself. Its last layer, "features", averages the last feature maps over the image.
    Only a SavedModel that returns feature vectors has no such layer.

    Layer names never begin with "_", and do not depend on models that were built before in the same process. If
    `Backbone.self_contained` is True, Keras can save and load the model. Loading a saved KerasHub preset requires
    KerasHub only if some layers of the preset could not be replaced by plain Keras layers; see `kerashub_network`.

    Args:
        name: name of the backbone; see `find_backbone`.
        size: height and width of the input, pixels.
        weights: one of

            - ``auto``: the weights in the Python package if there is one. Otherwise, the downloaded ImageNet weights.
              For a KerasHub preset, the weights of the preset.
            - ``package``: the weights in the Python package.
            - ``imagenet``: the downloaded ImageNet weights.
            - ``none``: random weights.
            - the path of a weights file: a Keras `.h5` or `.weights.h5` file of the network without its classifier, a
              `.keras` file of a model built on the network, or the `.pth` file of the Python package.
            - the path of a run directory: the weights of the backbone in that run.
        progress: function that shows the progress of a download; see `Progress`.

    Returns:
        A model that maps pixels, (n, height, width, 3) float32, RGB, 0 to 255, to features, (n, f) float32.

    Raises:
        ConfigError: no backbone has this name, the backbone does not have such weights, or the size is too small.
        DataError: the weights cannot be downloaded, or the file does not contain weights of this network.
        MissingExtraError: Keras or KerasHub is not installed.
    """
    backbone = find_backbone(name)
    if min(size) < backbone.smallest:
        raise ConfigError(f"{name}: needs images of at least {backbone.smallest} pixels a side, not {min(size)}")
    keras = start_keras()
    # edgeloop always uses (rows, columns, channels), regardless of the user's keras.json.
    keras.config.set_image_data_format("channels_last")
    network = backbone.network
    if isinstance(network, SavedModel):
        if weights != "auto":
            raise ConfigError(f"{name}: a SavedModel includes its weights; leave --weights out")
        return saved_model_network(network, size, name=name)
    if isinstance(network, KerasHub):
        file = None if weights == "auto" else weights_file(backbone, size, weights)
        model = kerashub_network(network, size, name=name, load_weights=weights == "auto")
    else:
        file = weights_file(backbone, size, weights, progress=progress)
        with native_noise_hidden():
            model = _with_random_weights(network, size, name)
    return _with_weights(model, file, network, name)


def _with_random_weights(network: Application | Lite, size: tuple[int, int], name: str) -> keras.Model:
    from .applications import application
    from .efficientnet_lite import efficientnet_lite

    return efficientnet_lite(network, size) if isinstance(network, Lite) else application(network, size, name)


def _with_weights(
    model: keras.Model, file: Path | None, network: Application | Lite | KerasHub, name: str
) -> keras.Model:
    from .efficientnet_lite import load_torch_weights
    from .graph import settled

    if file is not None and file.suffix == ".h5":
        load_h5(model, file, name=name)
    if isinstance(network, Application):
        with native_noise_hidden():
            model = settled(model)
    if file is not None and file.suffix == ".keras":
        load_by_name(model, file, name=name)
    if file is not None and file.suffix == ".pth":
        if not (isinstance(network, Lite) and network.sha256):
            raise DataError(
                f"{file}: a .pth file can run code when it is read, so only pinned files are loaded, and there is none "
                f"for {name}; give a .keras or .h5 file"
            )
        load_torch_weights(model, file, network.sha256)
    return model
