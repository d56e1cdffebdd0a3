from __future__ import annotations

import csv
import hashlib
import json
import os
import pickle
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.errors import DataError
from edge_agent.preprocess import PreprocessSpec, preprocess
from trainer.backbones.torch_weights import read_torch_weights
from trainer.data import SPLITS, Photo, find_photos, load_dataset, split_photos
from trainer.report import wilson_interval
from trainer.train import Recipe, train

from .conftest import CLASSES, QUIET, Run

SPEC = PreprocessSpec((32, 32))


@pytest.fixture
def photos(photo_folder: Path, tmp_path: Path) -> Path:
    """A copy of the photographs to spoil."""
    return Path(shutil.copytree(photo_folder, tmp_path / "data"))


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(folder, SPEC)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the weights ---


def test_the_backbone_recognises_what_its_weights_are_known_to_recognise() -> None:
    import skimage.data
    from sklearn.datasets import load_sample_image

    from trainer.backbones.table import efficientnet_lite0

    model = efficientnet_lite0((224, 224), classes=1000)
    camera = np.stack([skimage.data.camera()] * 3, axis=-1)
    pictures = {
        285: skimage.data.chelsea(),  # Egyptian cat
        967: skimage.data.coffee(),  # espresso
        872: camera,  # tripod
        698: load_sample_image("china.jpg"),  # palace
        985: load_sample_image("flower.jpg"),  # daisy
    }
    spec = PreprocessSpec((224, 224), fit="crop")
    pixels = np.stack([preprocess(np.ascontiguousarray(rgb[..., ::-1]), spec) for rgb in pictures.values()])
    scores = np.asarray(model(pixels.astype(np.float32)))
    assert scores.argmax(axis=1).tolist() == list(pictures)
    assert scores[1, 967] == pytest.approx(0.94, abs=0.01)


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
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps(1), pickle.dumps({"a": 1}) * 5])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(DataError, match="not a PyTorch file"):
        read_torch_weights(tmp_path / "w.pth", hashlib.sha256(content).hexdigest())


# --- the data ---


def test_pictures_are_preprocessed_by_the_devices_code(photo_folder: Path) -> None:
    from edge_agent.pictures import read_picture

    dataset = load_dataset(photo_folder, SPEC)
    assert dataset.labels == CLASSES
    assert dataset.pixels.shape == (60, 32, 32, 3)
    for i in (0, 17, 59):
        frame = read_picture(photo_folder / dataset.photos[i].path)
        assert np.array_equal(dataset.pixels[i], preprocess(frame, SPEC))


@given(counts=st.lists(st.integers(5, 60), min_size=2, max_size=6))
def test_splits_are_stratified_and_depend_on_content_alone(counts: list[int]) -> None:
    photos = [
        Photo(f"{label}/{i}.jpg", str(label), "", hashlib.sha256(f"{label} {i}".encode()).hexdigest())
        for label, count in enumerate(counts)
        for i in range(count)
    ]
    split = {photo.sha256: photo.split for photo in split_photos(photos)}
    again = {photo.sha256: photo.split for photo in split_photos(photos[::-1])}
    assert split == again
    for label, count in enumerate(counts):
        found = Counter(split[photo.sha256] for photo in photos if photo.label == str(label))
        assert set(found) == set(SPLITS)
        assert found["test"] == max(1, round(0.15 * count))
        assert found["train"] >= 3


def test_given_splits_are_kept(photo_folder: Path, tmp_path: Path) -> None:
    for place, split in enumerate(SPLITS):
        for label in CLASSES:
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(place * 4, place * 4 + 4):
                shutil.copy(photo_folder / label / f"{number:02d}.jpg", tmp_path / split / label)
    dataset = load_dataset(tmp_path, SPEC)
    assert dataset.labels == CLASSES
    assert all(photo.split == photo.path.split("/", maxsplit=1)[0] for photo in dataset.photos)
    shutil.rmtree(tmp_path / "val" / "grass")
    assert "class 'grass' has no pictures in val/" in refusal(tmp_path)
    shutil.rmtree(tmp_path / "val")
    assert "all of train, val, test are needed" in refusal(tmp_path)


def test_the_same_picture_in_two_splits_is_refused(photo_folder: Path, tmp_path: Path) -> None:
    for split in SPLITS:
        for label in CLASSES:
            (tmp_path / split / label).mkdir(parents=True)
            shutil.copy(photo_folder / label / "00.jpg", tmp_path / split / label)
    assert "two splits" in refusal(tmp_path)


def test_copies_are_left_out_and_contradictions_refused(photos: Path) -> None:
    shutil.copy(photos / "brick/00.jpg", photos / "brick/copy.jpg")
    dataset = load_dataset(photos, SPEC)
    assert dataset.duplicates == 1
    assert len(dataset.photos) == len(dataset.pixels) == 60
    shutil.copy(photos / "brick/00.jpg", photos / "grass/wrong.jpg")
    assert "two classes" in refusal(photos)


def test_folders_that_are_no_data_are_refused(tmp_path: Path, photos: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no class folders" in refusal(tmp_path / "empty")
    shutil.rmtree(photos / "brick")
    (photos / "brick").mkdir()
    assert "no pictures in this class" in refusal(photos)
    shutil.rmtree(photos / "brick")
    shutil.rmtree(photos / "grass")
    assert "only one class, 'stars'" in refusal(photos)


def test_a_class_of_two_pictures_is_refused(photos: Path) -> None:
    for number in range(2, 20):
        (photos / "brick" / f"{number:02d}.jpg").unlink()
    assert "class 'brick' has 2 pictures" in refusal(photos)
    for number in range(5):  # five copies of one picture are one picture
        shutil.copy(photos / "brick/00.jpg", photos / f"brick/copy{number}.jpg")
    assert "class 'brick' has 2 pictures" in refusal(photos)


def test_unreadable_pictures_are_named_and_can_be_left_out(photos: Path) -> None:
    (photos / "brick/text.jpg").write_text("no picture")
    whole = (photos / "brick/01.jpg").read_bytes()
    (photos / "grass/cut.jpg").write_bytes(whole[: len(whole) // 2])
    cv2.imwrite(str(photos / "stars/dot.png"), np.zeros((1, 1, 3), np.uint8))
    cv2.imwrite(str(photos / "stars/deep.png"), np.random.default_rng(0).integers(0, 65536, (40, 40, 3), np.uint16))
    (photos / "stars/notes.txt").write_text("not meant as a picture")
    said = refusal(photos)
    assert said.startswith("3 of 64 pictures")
    for name in ("text.jpg", "cut.jpg", "dot.png", "--skip-unreadable"):
        assert name in said
    dataset = load_dataset(photos, SPEC, skip_unreadable=True)
    assert len(dataset.skipped) == 3
    assert len(dataset.photos) == len(dataset.pixels) == 61
    from edge_agent.pictures import read_picture

    for photo, pixels in zip(dataset.photos, dataset.pixels, strict=True):
        assert np.array_equal(pixels, preprocess(read_picture(photos / photo.path), SPEC))


def test_links_in_circles_are_not_followed(photos: Path) -> None:
    (photos / "brick" / "loop").symlink_to(photos / "brick", target_is_directory=True)
    assert len(find_photos(photos)) == 60


def test_class_names_that_no_bundle_could_carry_are_refused(photos: Path) -> None:
    (photos / "brick").rename(photos / "bri\x1bck")
    assert "not printable" in refusal(photos)


# --- the run ---


def test_a_run_holds_everything_the_design_promises(run_folder: Path, photo_folder: Path) -> None:
    assert sorted(os.listdir(run_folder)) == [
        "history.csv",
        "labels.txt",
        "metrics.json",
        "model.keras",
        "preprocess.json",
        "report.html",
        "run.json",
        "split.csv",
    ]
    assert (run_folder / "labels.txt").read_text() == "brick\ngrass\nstars\n"
    record = json.loads((run_folder / "run.json").read_text())
    assert record["backbone"] == "efficientnet-lite0"
    assert record["parent"] is None
    assert record["data"]["pictures"] == 60
    with (run_folder / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    for row in rows[::7]:
        assert hashlib.sha256((photo_folder / row["path"]).read_bytes()).hexdigest() == row["sha256"]
    assert json.loads((run_folder / "metrics.json").read_text())["test"]["accuracy"] >= 0.8
    with (run_folder / "history.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0] / 2


def test_the_report_stands_alone_and_shows_the_figures(run_folder: Path) -> None:
    report = (run_folder / "report.html").read_text()
    accuracy = json.loads((run_folder / "metrics.json").read_text())["test"]["accuracy"]
    assert f"{100 * accuracy:.1f} % of 9 test pictures" in report
    assert report.count("data:image/png;base64,") >= 2
    assert "http" not in report


def test_a_class_name_cannot_inject_into_the_report(tmp_path: Path) -> None:
    from edge_agent.evaluation import Evaluation
    from trainer.data import Dataset
    from trainer.report import write_report

    evil = "<script>alert(1)</script>"
    photos = tuple(Photo(f"{label}/{i}.jpg", label, "test") for label in (evil, "b") for i in range(2))
    pixels = np.zeros((4, 32, 32, 3), np.uint8)
    scores = np.array([[0.1, 0.9]] * 4, np.float32)
    dataset = Dataset((evil, "b"), photos, pixels, (), 0)
    history = {name: [0.5, 0.4] for name in ("loss", "accuracy", "val_loss", "val_accuracy")}
    write_report(
        tmp_path / "r.html", dataset, history, range(4), Evaluation((evil, "b"), np.array([0, 0, 1, 1]), scores)
    )
    report = (tmp_path / "r.html").read_text()
    assert "<script>" not in report
    assert report.count("taken for <b>b</b>") == 2


def test_an_existing_run_is_never_overwritten(photo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").touch()
    with pytest.raises(DataError, match="exists already"):
        train(photo_folder, tmp_path / "run", Recipe(), console=QUIET)
    assert os.listdir(tmp_path / "run") == ["precious"]


def test_a_training_that_fails_leaves_nothing(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.train.write_report", full)
    with pytest.raises(OSError, match="No space"):
        train(photo_folder, tmp_path / "run", Recipe(image_size=32, epochs=1), console=QUIET)
    assert os.listdir(tmp_path) == []


def test_the_same_seed_trains_the_same_model(photo_folder: Path, tmp_path: Path) -> None:
    histories = []
    for name in ("one", "two"):
        train(photo_folder, tmp_path / name, Recipe(image_size=32, epochs=3, seed=4), console=QUIET)
        histories.append((tmp_path / name / "history.csv").read_text())
    assert histories[0] == histories[1]


def test_the_command_line_refuses_bad_data_in_one_line(edgeloop: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    ran = edgeloop("train", tmp_path / "data", "--out", tmp_path / "run")
    assert ran.code == 1
    assert "no class folders" in ran.line
    assert not (tmp_path / "run").exists()


def test_wilsons_interval_is_wilsons() -> None:
    assert wilson_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)
    assert wilson_interval(1.0, 10)[1] == pytest.approx(1.0)
    assert wilson_interval(0.0, 10)[0] == pytest.approx(0.0, abs=1e-9)
