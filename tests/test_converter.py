from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converter.calibration import choose, representative
from converter.convert import convert
from converter.gate import Verdict
from converter.pack import parse_name
from converter.run import Photo, open_run
from edge_agent.bundle import open_bundle
from edge_agent.errors import ConfigError, DataError, EdgeloopError, GateError
from edge_agent.evaluation import Evaluation

from . import conftest
from .conftest import CLASSES, QUIET


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
    assert manifest.metrics.pictures == 9
    assert manifest.metrics.float32.accuracy >= 0.8
    assert set(manifest.metrics.int8.per_class) == set(CLASSES)
    assert (manifest.tensors.input.dtype, manifest.tensors.input.scale, manifest.tensors.input.zero_point) == (
        "uint8",
        1,
        0,
    )
    # 14 training pictures a class are all the run has
    assert manifest.provenance.calibration.per_class == dict.fromkeys(CLASSES, 14)
    card = open_bundle(bundle_file).read("card.md").decode()
    assert "# ground 1.2" in card
    assert "| brick |" in card


def test_int8_is_smaller_and_agrees_with_float(bundle_file: Path, run_folder: Path) -> None:
    bundle = open_bundle(bundle_file)
    assert bundle.manifest.files["model.tflite"].size < 0.4 * (run_folder / "model.keras").stat().st_size
    assert bundle.manifest.metrics.agreement >= 0.8


def test_the_same_run_gives_the_same_bytes(bundle_file: Path, run_folder: Path, tmp_path: Path) -> None:
    convert(run_folder, tmp_path / bundle_file.name, console=QUIET, max_drop=20)
    assert (tmp_path / bundle_file.name).read_bytes() == bundle_file.read_bytes()


def test_calibration_pictures_are_balanced_seeded_and_from_the_training_split() -> None:
    photos = [
        Photo(f"{c}/{i}", c, "train", f"{c}{i:03d}") for c, n in (("a", 300), ("b", 300), ("c", 5)) for i in range(n)
    ]
    chosen = choose(photos, 100, seed=0)
    counts = Counter(photo.label for photo in chosen)
    assert counts["c"] == 5
    assert abs(counts["a"] - counts["b"]) <= 1
    assert len(chosen) == len(set(chosen)) == 100
    assert choose(photos[::-1], 100, seed=0) == chosen
    assert choose(photos, 100, seed=1) != chosen


def test_calibration_covers_black_and_white_and_never_a_test_picture(run_folder: Path) -> None:
    run = open_run(run_folder)
    pictures = representative(run)
    assert not pictures.pixels[-2].any()
    assert (pictures.pixels[-1] == 255).all()
    assert pictures.record.pictures == len(pictures.pixels) - 2 == len(run.split("train"))
    assert pictures.record.split == "train"


def scored(*predicted: int, truth: tuple[int, ...] = (0, 0, 1, 1)) -> Evaluation:
    scores = np.full((len(predicted), 2), 0.1, np.float32)
    scores[np.arange(len(predicted)), list(predicted)] = 0.9
    return Evaluation(("a", "b"), np.array(truth), scores)


def test_the_gate_lets_through_what_is_within_and_refuses_what_is_not() -> None:
    verdict = Verdict(scored(0, 0, 1, 1), scored(0, 0, 1, 0))
    assert verdict.drop == pytest.approx(25)
    verdict.check(25)
    with pytest.raises(GateError, match=r"25\.0 points lost, 24 allowed"):
        verdict.check(24)
    Verdict(scored(0, 0, 1, 0), scored(0, 0, 1, 1)).check(0)  # better is fine
    metrics = verdict.metrics()
    assert (metrics.float32.accuracy, metrics.int8.accuracy, metrics.agreement) == (1, 0.75, 0.75)


def test_the_gate_refuses_a_broken_model_whatever_its_accuracy() -> None:
    constant = scored(0, 0, 0, 0)
    with pytest.raises(GateError, match="the same scores for every picture"):
        Verdict(constant, constant).check(100)
    broken = scored(0, 0, 1, 1)
    broken.scores[0] = np.nan
    with pytest.raises(GateError, match="not numbers"):
        Verdict(scored(0, 0, 1, 1), broken).check(100)


def test_a_model_that_quantization_ruins_is_refused_and_nothing_is_written(
    edgeloop: conftest.Run, run_copy: Path, tmp_path: Path
) -> None:
    """Really ruined: a constant added to every logit changes no float score and leaves int8 no resolution."""
    import keras

    model = keras.saving.load_model(run_copy / "model.keras", compile=False)
    scores = model.get_layer("scores")
    kernel, bias = scores.get_weights()
    scores.set_weights([kernel, bias + 3e4])
    model.save(run_copy / "model.keras")
    out = tmp_path / "out"
    out.mkdir()
    ran = edgeloop("convert", run_copy, "--out", out / "bad-1.edgeloop")
    assert ran.code == 1
    assert "edgeloop: refused: " in ran.err
    assert "nothing was written" in ran.err
    assert os.listdir(out) == []


def test_moved_pictures_are_found_again_and_changed_ones_refused(
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
        (lambda run: (run / "run.json").write_text("{"), "a damaged run"),
        (lambda run: (run / "preprocess.json").write_text("{"), "a damaged run"),
        (lambda run: (run / "labels.txt").write_text("a\na\n"), "stands there twice"),
        (lambda run: (run / "labels.txt").write_text("brick\ngrass\nother\n"), "classes that labels.txt lacks: stars"),
        (lambda run: (run / "labels.txt").write_text("brick\ngrass\nstars\nmore\n"), "maps"),
        (lambda run: (run / "split.csv").write_text("path,label\n"), "are needed"),
        (lambda run: (run / "split.csv").write_text("sha256,path,label,group,split\n"), "no test pictures"),
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


def test_the_command_line_packs_and_its_gate_exits_1(edgeloop: conftest.Run, run_folder: Path, tmp_path: Path) -> None:
    ran = edgeloop("convert", run_folder, "--out", tmp_path / "ok-1.edgeloop", "--max-drop", 20)
    assert ran.code == 0, ran.err
    assert "test pictures; the same answer on" in ran.out
    assert open_bundle(tmp_path / "ok-1.edgeloop").manifest.name == "ok"
    for noise in ("TensorFlow", "I0000", "W0000", "INFO", "WARNING", "XNNPACK"):
        assert noise not in ran.err
    ran = edgeloop("convert", run_folder, "--out", tmp_path / "no" / "ok-1.edgeloop")
    assert ran.code == 2
    assert "no such directory" in ran.line


def test_a_run_on_a_saved_model_is_converted_without_the_original(photo_folder: Path, tmp_path: Path) -> None:
    from edge_agent.quiet import native_noise_hidden
    from trainer.evaluate import evaluate_model
    from trainer.recipe import Recipe
    from trainer.train import train

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
        evaluate_model(tmp_path / "run", photo_folder, console=QUIET)
    converted = convert(tmp_path / "run", tmp_path / "ground-1.edgeloop", console=QUIET, max_drop=25)
    assert converted.verdict.float32.accuracy == trained.test_accuracy
