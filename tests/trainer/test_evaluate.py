"""`edgeloop evaluate`: the same figures as the training's and the gate's, on any folder."""

from __future__ import annotations

import csv
import html
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import edge_agent
from edge_agent.errors import DataError
from trainer.data import Photo
from trainer.evaluation import evaluate
from trainer.threads import in_order

from ..conftest import CLASSES, QUIET, Run


@pytest.fixture(scope="module")
def tested(run_folder: Path) -> list[dict[str, str]]:
    """The rows of the run's split.csv that it was tested on."""
    with (run_folder / "split.csv").open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["split"] == "test"]


@pytest.fixture
def held_out(photo_folder: Path, tested: list[dict[str, str]], tmp_path: Path) -> Path:
    """The run's test images in a folder of their own."""
    for row in tested:
        (tmp_path / "held out" / row["label"]).mkdir(parents=True, exist_ok=True)
        shutil.copy(photo_folder / row["path"], tmp_path / "held out" / row["label"])
    return tmp_path / "held out"


def spoken(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.long
def test_a_run_on_its_own_data_gives_the_figures_of_its_training(
    edgeloop: Run, run_folder: Path, photo_folder: Path
) -> None:
    ran = edgeloop("evaluate", run_folder, photo_folder, "--json")
    assert ran.code == 0, ran.err
    found = spoken(ran.out)
    expected = json.loads((run_folder / "metrics.json").read_text(encoding="utf-8"))["test"]
    assert found["trained_on"] == 60 - expected["pictures"]
    assert {name: found[name] for name in ("pictures", "accuracy", "per_class", "confusion", "support")} == {
        name: expected[name] for name in ("pictures", "accuracy", "per_class", "confusion", "support")
    }
    assert found["log_loss"] == pytest.approx(expected["log_loss"], rel=0.02)
    assert expected.keys() <= found.keys()
    assert len(found["mistakes"]) == round((1 - found["accuracy"]) * found["pictures"])
    assert found["notes"] == []


def test_images_it_was_trained_on_are_included_only_when_asked_for_and_said_so(
    run_folder: Path, photo_folder: Path, tested: list[dict[str, str]]
) -> None:
    found = evaluate(run_folder, photo_folder, console=QUIET, everything=True)
    assert len(found.photos) == 60
    assert found.trained_on == 0
    assert found.doubts == (
        f"{60 - len(tested)} of the 60 images were used for training, so the metrics are too high.",
    )


def test_nothing_left_to_evaluate_on_says_why(
    run_folder: Path, photo_folder: Path, tested: list[dict[str, str]], tmp_path: Path
) -> None:
    paths = {row["path"] for row in tested}
    for source in photo_folder.rglob("*.jpg"):
        relative = source.relative_to(photo_folder)
        if relative.as_posix() not in paths:
            (tmp_path / relative).parent.mkdir(exist_ok=True)
            shutil.copy(source, tmp_path / relative)
    with pytest.raises(DataError, match=f"of {60 - len(paths)}, {60 - len(paths)} were used for training.*--all"):
        evaluate(run_folder, tmp_path, console=QUIET)


def test_a_bundle_gives_the_figures_of_the_gate(
    edgeloop: Run, bundle_file: Path, run_folder: Path, photo_folder: Path
) -> None:
    gate = edge_agent.open_bundle(bundle_file).manifest.metrics
    ran = edgeloop("evaluate", bundle_file, photo_folder, "--json", "--run", run_folder)
    assert ran.code == 0, ran.err
    found = spoken(ran.out)
    assert found["pictures"] == gate.images
    assert found["accuracy"] == pytest.approx(gate.model.accuracy)
    assert found["per_class"] == pytest.approx(gate.model.per_class)
    assert found["notes"] == []


def test_an_unpacked_bundle_is_a_bundle_too_and_warns_that_it_cannot_know_its_training(
    bundle_file: Path, held_out: Path, tmp_path: Path
) -> None:
    shutil.unpack_archive(bundle_file, tmp_path / "unpacked", "zip")
    found = evaluate(tmp_path / "unpacked", held_out, console=QUIET)
    assert len(found.photos) == 9
    assert "does not say which images it was trained on" in found.doubts[0]
    same = evaluate(bundle_file, held_out, console=QUIET)
    assert np.array_equal(same.evaluation.scores, found.evaluation.scores)


def test_a_bundle_is_evaluated_without_keras(bundle_file: Path, held_out: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from edge_agent.cli import main
try:
    main(["evaluate", {str(bundle_file)!r}, {str(held_out)!r}, "--report", {str(tmp_path / "r.html")!r}])
except SystemExit as end:
    assert not end.code, end.code
for heavy in ("keras", "tensorflow", "jax", "torch"):
    assert heavy not in sys.modules, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "% of 9 images" in done.stdout
    report = html.unescape((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "of 9 test images" in report
    assert "bundle on the device's runtime" in report
    assert "Take this figure with care" in report


@pytest.mark.long
def test_people_get_a_table_and_a_report_with_images(
    edgeloop: Run, run_folder: Path, held_out: Path, tmp_path: Path
) -> None:
    shutil.move(held_out / "brick", held_out / "moved")
    shutil.move(held_out / "grass", held_out / "brick")  # grass called brick: mistakes to show
    shutil.move(held_out / "moved", held_out / "grass")
    ran = edgeloop("evaluate", run_folder, held_out, "--report", tmp_path / "out.html")
    assert ran.code == 0, ran.err
    assert "\x1b" not in ran.out
    assert "% of 9 images" in ran.out
    assert [line.split()[0] for line in ran.out.splitlines() if line.endswith("0.000")] == ["brick", "grass"]
    assert "grass misclassified as brick: 3 of 3" in ran.out
    assert "brick/" in ran.out.split("Worst mistakes")[1]
    report = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "where the evidence for brick lies" in report
    assert "run on held out" in report
    assert "metrics are those of the float model" in report
    assert "Have I labelled enough" not in report


def test_classes_the_model_does_not_know_are_all_named_with_the_nearest(
    edgeloop: Run, bundle_file: Path, held_out: Path
) -> None:
    shutil.copytree(held_out / "brick", held_out / "Bricks")
    shutil.copytree(held_out / "brick", held_out / "zebra")
    ran = edgeloop("evaluate", bundle_file, held_out)
    assert ran.code == 1
    assert "'Bricks' (did you mean 'brick'?), 'zebra';" in ran.err
    assert "it knows 'brick', 'grass', 'stars'" in ran.err


def test_images_that_cannot_be_read_are_named_left_out_and_counted(
    edgeloop: Run, bundle_file: Path, held_out: Path
) -> None:
    (held_out / "brick" / "bad\x1b[2J.jpg").write_text("no image")
    (held_out / "grass" / "empty.png").touch()
    ran = edgeloop("evaluate", bundle_file, held_out)
    assert ran.code == 0
    assert "2 unreadable" in ran.out
    assert ran.err.count("left out: ") == 2
    assert "bad\\x1b[2J.jpg" in ran.err
    assert "\x1b" not in ran.err
    found = spoken(edgeloop("evaluate", bundle_file, held_out, "--json").out)
    assert (found["pictures"], len(found["unreadable"])) == (9, 2)


def test_one_class_of_few_images_is_enough(bundle_file: Path, held_out: Path) -> None:
    shutil.rmtree(held_out / "brick")
    shutil.rmtree(held_out / "stars")
    found = evaluate(bundle_file, held_out, console=QUIET)
    assert found.evaluation.support() == {"brick": 0, "grass": 3, "stars": 0}
    assert found.evaluation.recall().keys() == {"grass"}


def test_splits_and_lists_are_honoured(bundle_file: Path, held_out: Path, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        shutil.copytree(held_out, tmp_path / "split" / split)
    assert len(evaluate(bundle_file, tmp_path / "split", console=QUIET).photos) == 27
    found = evaluate(bundle_file, tmp_path / "split", console=QUIET, split="test")
    assert {photo.split for photo in found.photos} == {"test"}
    assert len(found.photos) == 9
    with pytest.raises(DataError, match="has no images in the split test"):
        evaluate(bundle_file, held_out, console=QUIET, split="test")
    names = sorted(path.relative_to(held_out).as_posix() for path in held_out.rglob("*.jpg"))
    (held_out / "list.csv").write_text("path,label\n" + "".join(f"{name},{name.split('/')[0]}\n" for name in names[:4]))
    assert len(evaluate(bundle_file, held_out / "list.csv", console=QUIET).photos) == 4


@pytest.mark.slow
def test_what_is_neither_a_run_nor_a_bundle_is_refused_in_one_line(
    edgeloop: Run, run_folder: Path, held_out: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.edgeloop").write_text("no bundle")
    damaged = Path(shutil.copytree(run_folder, tmp_path / "damaged"))
    (damaged / "model.keras").write_bytes((damaged / "model.keras").read_bytes()[:1000])
    unlabelled = Path(shutil.copytree(run_folder, tmp_path / "unlabelled"))
    (unlabelled / "labels.txt").write_text("brick\ngrass\n")
    for model, said in (
        (tmp_path / "empty", "neither a run directory nor a bundle"),
        (tmp_path / "missing", "does not exist"),
        (tmp_path / "text.edgeloop", "not a usable bundle"),
        (damaged, "not a Keras model"),
        (unlabelled, "need (None, 48, 48, 3) to (None, 2)"),
    ):
        ran = edgeloop("evaluate", model, held_out)
        assert ran.code == 1, said
        assert said in ran.err
        assert ran.err.count("\n") == 1, ran.err


def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    edgeloop: Run, bundle_file: Path, held_out: Path, tmp_path: Path
) -> None:
    ran = edgeloop("evaluate", bundle_file, held_out, "--report", tmp_path / "nowhere" / "r.html")
    assert ran.code == 1
    assert "no such folder for the report" in ran.line


def test_mistakes_are_listed_surest_first(bundle_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    for label, other in zip(CLASSES, (*CLASSES[1:], CLASSES[0]), strict=True):
        shutil.copytree(photo_folder / label, tmp_path / other)
    mistakes = evaluate(bundle_file, tmp_path, console=QUIET).mistakes()
    assert len(mistakes) >= 50
    scores = [mistake["score"] for mistake in mistakes]
    assert scores == sorted(scores, reverse=True)
    assert all(mistake["path"].startswith(f"{mistake['label']}/") for mistake in mistakes)


def test_only_a_few_images_are_in_memory_at_a_time() -> None:
    lock, begun = threading.Lock(), 0

    def work(photo: Photo) -> str:
        nonlocal begun
        with lock:
            begun += 1
        return photo.path

    photos = [Photo(str(number), "a", "") for number in range(500)]
    for number, (photo, result) in enumerate(in_order(work, photos, ahead=8)):
        assert result == photo.path == str(number)
        with lock:
            assert begun - number <= 8 + 8


def test_images_of_any_size_and_kind_are_read(bundle_file: Path, tmp_path: Path) -> None:
    (tmp_path / "brick").mkdir()
    for name, image in (
        ("grey.png", np.zeros((40, 900), np.uint8)),
        ("big.jpg", np.zeros((3000, 2000, 3), np.uint8)),
    ):
        cv2.imwrite(str(tmp_path / "brick" / name), image)
    assert len(evaluate(bundle_file, tmp_path, console=QUIET).photos) == 2
