from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import edge_agent
from converter.gate import GateLimits
from converter.packaging.pack import parse_name
from converter.pipeline import Method, convert
from converter.run_reader import open_run
from edge_agent.bundle import open_bundle
from edge_agent.bundle.signature import verify_bundle
from edge_agent.errors import ConfigError, DataError, EdgeloopError

from .. import conftest
from ..conftest import CLASSES, QUIET

# 9 test images: one more wrong is 11 points.
LENIENT = GateLimits(max_drop=25, max_class_drop=100)


@pytest.fixture
def run_copy(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of the run to spoil."""
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


def test_the_bundle_says_what_it_was_made_of(bundle_file: Path, run_folder: Path) -> None:
    manifest = open_bundle(bundle_file).manifest
    record = json.loads((run_folder / "run.json").read_text())
    assert manifest.provenance.run == record["id"]
    assert manifest.provenance.data_fingerprint == record["data"]["fingerprint"]
    assert manifest.created == record["created"]
    assert manifest.metrics.images == 9
    assert manifest.metrics.float32.accuracy >= 0.8
    assert set(manifest.metrics.model.per_class) == set(CLASSES)
    assert (manifest.tensors.input.dtype, manifest.tensors.input.scale, manifest.tensors.input.zero_point) == (
        "uint8",
        1,
        0,
    )
    # 14 training images a class are all the run has
    calibration = manifest.provenance.calibration
    assert calibration is not None
    assert calibration.per_class == dict.fromkeys(CLASSES, 14)
    assert manifest.precision == "int8"
    assert [(rung.name, rung.passed) for rung in manifest.provenance.rungs] == [("int8", True)]
    card = open_bundle(bundle_file).read("card.md").decode()
    assert "# ground 1.2" in card
    assert "| brick |" in card


def test_int8_is_smaller_and_agrees_with_float(bundle_file: Path, run_folder: Path) -> None:
    bundle = open_bundle(bundle_file)
    assert bundle.manifest.files["model.tflite"].size < 0.4 * (run_folder / "model.keras").stat().st_size
    assert bundle.manifest.metrics.agreement >= 0.8


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(bundle_file: Path, run_folder: Path, tmp_path: Path) -> None:
    convert(run_folder, tmp_path / bundle_file.name, console=QUIET, limits=LENIENT)
    assert (tmp_path / bundle_file.name).read_bytes() == bundle_file.read_bytes()


@pytest.mark.long
def test_a_model_that_quantization_ruins_is_refused_and_nothing_is_written(
    edgeloop: conftest.Run, run_copy: Path, tmp_path: Path
) -> None:
    ruin(run_copy)
    out = tmp_path / "out"
    out.mkdir()
    ran = edgeloop("convert", run_copy, "--out", out / "bad-1.edgeloop", "--method", "int8")
    assert ran.code == 1
    assert "edgeloop: refused: " in ran.err
    assert "--allow drop" in ran.err
    assert "nothing was written" in ran.err
    assert os.listdir(out) == []


@pytest.mark.long
def test_a_ruined_model_is_rescued_by_a_later_rung_and_the_bundle_says_how(
    edgeloop: conftest.Run, run_copy: Path, tmp_path: Path
) -> None:
    ruin(run_copy)
    ran = edgeloop("convert", run_copy, "--out", tmp_path / "good-1.edgeloop", "--max-class-drop", 25)
    assert ran.code == 0, ran.err
    bundle = open_bundle(tmp_path / "good-1.edgeloop")
    rungs = {rung.name: rung.passed for rung in bundle.manifest.provenance.rungs}
    assert rungs["int8"] is False
    assert rungs["equalise"] is True
    assert bundle.manifest.metrics.model.accuracy >= bundle.manifest.metrics.float32.accuracy - 0.01
    assert bundle.manifest.provenance.overridden == ()
    assert "| equalise | cross-layer equalization of channel ranges |" in bundle.read("card.md").decode()
    assert "equalise" in ran.out


@pytest.mark.slow
def test_an_override_packs_the_ruined_model_and_the_bundle_says_so(
    edgeloop: conftest.Run, run_copy: Path, tmp_path: Path
) -> None:
    ruin(run_copy)
    out = tmp_path / "bad-1.edgeloop"
    convert(run_copy, out, console=QUIET, limits=GateLimits(allowed=frozenset({"drop", "class-drop", "constant"})))
    assert "drop" in open_bundle(out).manifest.provenance.overridden
    assert "Packed despite failed checks: " in open_bundle(out).read("card.md").decode()
    assert "packed although these checks failed" in edgeloop("inspect", out).out


@pytest.mark.long
@pytest.mark.parametrize("method", ["float16", "float32"])
def test_float_bundles_on_request(efficientnet_run: Path, tmp_path: Path, method: Method) -> None:
    out = tmp_path / "ground-1.edgeloop"
    convert(efficientnet_run, out, console=QUIET, method=method)
    bundle = open_bundle(out)
    assert bundle.manifest.precision == method
    assert bundle.manifest.tensors.input.dtype == "float32"
    assert bundle.manifest.provenance.calibration is None
    assert bundle.manifest.metrics.agreement == 1
    size = bundle.manifest.files["model.tflite"].size
    weights = 13.4e6 if method == "float32" else 6.7e6
    assert 0.95 * weights < size < 1.1 * weights
    with edge_agent.open(out) as classifier:
        assert classifier.classify(next(open_run(efficientnet_run).read(open_run(efficientnet_run).photos))[0]).best


def ruin(run: Path) -> None:
    """One channel of a residual stream made a thousand times as large, and read as much more weakly.

    The float network computes the same; one scale for all channels leaves int8 nothing of the others.
    """
    import keras

    model = keras.saving.load_model(run / "model.keras", compile=False)
    for name in ("block1_project_bn", "block2_project_bn"):
        gamma, beta, mean, variance = model.get_layer(name).get_weights()
        gamma[0] *= 1000
        beta[0] *= 1000
        model.get_layer(name).set_weights([gamma, beta, mean, variance])
    for name in ("block2_expand_conv", "block3_expand_conv"):
        (kernel,) = model.get_layer(name).get_weights()
        kernel[:, :, 0] /= 1000
        model.get_layer(name).set_weights([kernel])
    model.save(run / "model.keras")


def test_moved_images_are_found_again_and_changed_ones_refused(
    run_folder: Path, photo_folder: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(photo_folder, tmp_path / "moved"))
    run = open_run(run_folder, data=moved)
    assert len(list(run.read(run.photos))) == 60
    changed = moved / run.photos[3].path
    changed.write_bytes(changed.read_bytes() + b"x")
    with pytest.raises(DataError, match="changed since"):
        list(run.read(run.photos))
    changed.unlink()
    with pytest.raises(DataError, match="--data"):
        list(run.read(run.photos))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda run: (run / "model.keras").unlink(), "model.keras missing"),
        (lambda run: (run / "model.keras").write_bytes(b"not keras"), "not a Keras model"),
        (lambda run: (run / "run.json").write_text("{"), "the run is damaged"),
        (lambda run: (run / "preprocess.json").write_text("{"), "the run is damaged"),
        (lambda run: (run / "labels.txt").write_text("a\na\n"), "occurs twice"),
        (lambda run: (run / "labels.txt").write_text("brick\ngrass\nother\n"), "missing from labels.txt: stars"),
        (lambda run: (run / "labels.txt").write_text("brick\ngrass\nstars\nmore\n"), "maps"),
        (lambda run: (run / "split.csv").write_text("path,label\n"), "are needed"),
        (lambda run: (run / "split.csv").write_text("sha256,path,label,group,split\n"), "no test images"),
        (shutil.rmtree, "not a run directory"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(
    run_copy: Path, tmp_path: Path, damage: Callable[[Path], object], says: str
) -> None:
    damage(run_copy)
    with pytest.raises(EdgeloopError) as caught:
        convert(run_copy, tmp_path / "x-1.edgeloop", console=QUIET)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x-1.edgeloop").exists()


@pytest.mark.parametrize(
    "name", ["birds.edgeloop", "birds-x.edgeloop", "Birds-1.edgeloop", "birds-1.zip", "-1.edgeloop"]
)
def test_bundles_are_called_name_version(name: str) -> None:
    with pytest.raises(ConfigError, match="NAME-VERSION"):
        parse_name(Path(name))
    assert parse_name(Path("dir/back-door-1.2.edgeloop")) == ("back-door", "1.2")


@pytest.mark.long
@pytest.mark.needs("ssh-keygen")
def test_the_command_line_packs_signs_and_keeps_quiet(edgeloop: conftest.Run, run_folder: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    limits = ["--max-drop", 20, "--max-class-drop", 100]
    ran = edgeloop("convert", run_folder, "--out", tmp_path / "ok-1.edgeloop", *limits, "--sign", key)
    assert ran.code == 0, ran.err
    assert "9 test images" in ran.out
    assert "int8: static int8, per channel" in ran.out
    bundle = open_bundle(tmp_path / "ok-1.edgeloop")
    assert bundle.manifest.name == "ok"
    assert verify_bundle(bundle, None) is not None
    for noise in ("TensorFlow", "I0000", "W0000", "INFO", "WARNING", "XNNPACK"):
        assert noise not in ran.err
    ran = edgeloop("convert", run_folder, "--out", tmp_path / "no" / "ok-1.edgeloop")
    assert ran.code == 2
    assert "no such directory" in ran.line


@pytest.mark.slow
def test_a_run_on_a_saved_model_is_converted_without_the_original(photo_folder: Path, tmp_path: Path) -> None:
    from edge_agent.native_stderr import native_noise_hidden
    from trainer.evaluation import evaluate
    from trainer.pipeline import train
    from trainer.training.recipe import Recipe

    with native_noise_hidden():
        import keras

        keras.utils.set_random_seed(0)
        pixels = keras.Input((48, 48, 3))
        maps = keras.layers.Conv2D(32, 3, strides=2, activation="relu")(pixels)
        extractor = keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(maps))
        extractor.export(tmp_path / "extractor", format="tf_saved_model", verbose=False)
    recipe = Recipe(backbone=f"savedmodel:{tmp_path / 'extractor'}", image_size=48)
    trained = train(photo_folder, tmp_path / "run", recipe, console=QUIET)
    assert trained.test_accuracy > 0.5
    shutil.rmtree(tmp_path / "extractor")
    with pytest.raises(DataError, match="convert it, and evaluate the bundle"):
        evaluate(tmp_path / "run", photo_folder, console=QUIET)
    converted = convert(tmp_path / "run", tmp_path / "ground-1.edgeloop", console=QUIET, limits=LENIENT)
    assert converted.verdict.float32.accuracy == trained.test_accuracy
