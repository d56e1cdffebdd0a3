"""Labelled frames to the next model: its data set, its training, and champion against challenger."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from deploy.pipelines.retrain.comparison import Comparison, PairedResults
from deploy.pipelines.retrain.dataset_version import LIST, SOURCES, make_version
from edge_agent.errors import DataError
from edge_agent.images import read_image
from edge_agent.inference.evaluation import Evaluation
from edge_agent.preprocessing import Pixels
from trainer.active_learning.annotations import Annotation, Annotations
from trainer.data import Photo
from trainer.run_writer import read_photos

from ..conftest import CLASSES, QUIET, Run
from ..support.captured import START_NS, keep

MINUTE_NS = 60_000_000_000


@pytest.fixture(scope="session")
def scene(areas: dict[str, dict[str, Pixels]]) -> tuple[list[Pixels], list[str]]:
    """Ten events of five frames a class: areas that no training saw, in negative."""
    random = np.random.default_rng(11)
    images, shown = [], []
    for event in range(30):
        name = CLASSES[event % 3]
        area = areas[name]["video"]
        top, left = (int(random.integers(0, limit - 130)) for limit in area.shape[:2])
        for number in range(5):
            cut = area[top + number : top + number + 120, left : left + 120].astype(np.float32)
            images.append(np.clip(190 - 0.5 * cut, 0, 255).astype(np.uint8))
            shown.append(name)
    return images, shown


def captured(folder: Path, scene: tuple[list[Pixels], list[str]]) -> dict[str, str]:
    """The events, two minutes apart; hash of each frame's file, and what it shows."""
    images, shown = scene
    for event in range(0, len(images), 5):
        keep(
            folder,
            images[event : event + 5],
            shown[event : event + 5],
            classes=CLASSES,
            start_ns=START_NS + event // 5 * 2 * MINUTE_NS,
        )
    paths = sorted(folder.rglob("*.jpg"))
    from ..support.captured import hash_of

    return {hash_of(path): name for path, name in zip(paths, shown, strict=True)}


def decide(folder: Path, labels: dict[str, str]) -> None:
    Annotations(folder).add([Annotation(sha256=sha256, verdict="label", label=name) for sha256, name in labels.items()])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- the data set ---


def test_a_version_holds_the_runs_images_and_the_labelled_frames_and_says_where_from(
    run_folder: Path, scene: tuple[list[Pixels], list[str]], tmp_path: Path
) -> None:
    labels = captured(tmp_path / "captures", scene)
    first = dict(list(labels.items())[:20])
    decide(tmp_path / "captures", first)
    before = {path: path.read_bytes() for path in (tmp_path / "captures").rglob("*.jpg")}
    version = make_version(run_folder, tmp_path / "captures", tmp_path / "next", console=QUIET)
    assert sum(version.added.values()) == 20
    listed = rows(version.folder / LIST)
    assert len(listed) == 60 + 20
    assert all((version.folder / row["path"]).is_file() for row in listed)
    sources = {row["sha256"]: row for row in rows(version.folder / SOURCES)}
    assert {sha256 for sha256, row in sources.items() if row["source"] != "run"} == set(first)
    # An event is one group; it costs no room where it can be a link.
    events = {row["group"] for row in listed if row["path"].removeprefix("pictures/").split(".")[0] in first}
    assert len(events) == 4
    assert {path: path.read_bytes() for path in (tmp_path / "captures").rglob("*.jpg")} == before
    one = next(iter(before))
    assert os.stat(one).st_nlink in (1, 2)


def test_what_is_left_out_is_said(run_folder: Path, scene: tuple[list[Pixels], list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "captures"
    labels = captured(folder, scene)
    hashes = list(labels)
    root, photos = read_photos(run_folder)
    # An image of the run, captured again and labelled otherwise; a class of two frames; frames of no class.
    (folder / "again.jpg").write_bytes((root / photos[0].path).read_bytes())
    other = next(name for name in CLASSES if name != photos[0].label)
    decide(folder, {h: labels[h] for h in hashes[:10]} | dict.fromkeys(hashes[10:12], "moss"))
    log = Annotations(folder)
    log.add(
        [
            Annotation(sha256=photos[0].sha256, verdict="label", label=other),
            *(Annotation(sha256=sha256, verdict="none") for sha256 in hashes[12:15]),
            Annotation(sha256=hashes[15], verdict="skip"),
            Annotation(sha256="f" * 64, verdict="label", label=other),
        ]
    )
    with log.path.open("a") as file:
        file.write("rubbish\n")
    version = make_version(run_folder, folder, tmp_path / "next", console=QUIET)
    assert sum(version.added.values()) == 10
    notes = "\n".join(version.notes)
    for said in (
        "line 19: JSON is malformed",
        "1 frames are images of the run with another label; the run's label is kept",
        "3 frames show none of the classes",
        "1 labels belong to frames that are no longer in",
        "'moss' 2",
    ):
        assert said in notes, notes
    made = make_version(run_folder, folder, tmp_path / "other", none_class="nothing", console=QUIET)
    assert "'moss' 2, 'nothing' 3" in "\n".join(made.notes)


def test_without_labels_or_the_runs_images_there_is_no_version(
    run_folder: Path, scene: tuple[list[Pixels], list[str]], tmp_path: Path
) -> None:
    labels = captured(tmp_path / "captures", scene)
    with pytest.raises(DataError, match="no labelled frames to train with; label some"):
        make_version(run_folder, tmp_path / "captures", tmp_path / "next", console=QUIET)
    decide(tmp_path / "captures", labels)
    moved = tmp_path / "run"
    moved.mkdir()
    record = json.loads((run_folder / "run.json").read_text())
    record["data"]["root"] = str(tmp_path / "gone")
    (moved / "run.json").write_text(json.dumps(record))
    (moved / "split.csv").write_bytes((run_folder / "split.csv").read_bytes())
    with pytest.raises(DataError, match="60 of 60 images of the run are missing or have changed"):
        make_version(moved, tmp_path / "captures", tmp_path / "next", console=QUIET)
    assert not list(tmp_path.glob("*next*"))


# --- champion against challenger ---


def match(champion: list[int], challenger: list[int], truth: list[int]) -> PairedResults:
    labels = ("a", "b", "c")
    photos = tuple(Photo(str(number), labels[true], "test") for number, true in enumerate(truth))

    def answers(said: list[int]) -> Evaluation:
        return Evaluation(labels, np.array(truth), np.eye(3, dtype=np.float32)[said])

    return PairedResults(photos, answers(champion), answers(challenger))


def test_a_challenger_that_is_no_worse_is_not_refused() -> None:
    truth = [0] * 50 + [1] * 50 + [2] * 50
    assert Comparison(match(truth, truth, truth), None).refusals() == []
    one_wrong = [1, *truth[1:]]
    # One image, even where that is more than a point.
    few = match(truth[::3], one_wrong[::3], truth[::3])
    assert few.drop > 1
    assert Comparison(few, few).refusals() == []
    assert Comparison(match(one_wrong, truth, truth), match(one_wrong, truth, truth)).refusals() == []


def test_a_challenger_that_is_worse_is_refused_and_why_is_said() -> None:
    truth = [0] * 50 + [1] * 50 + [2] * 50
    worse = [1] * 9 + truth[9:]
    frozen, same = match(truth, worse, truth), match(truth, truth, truth)
    said = "; ".join(Comparison(frozen, same).refusals())
    assert "94.0 % of 150, champion 100.0 % of 150: 6.0 points lost, at most 1 allowed" in said
    assert "a 100 -> 82 %" in said
    assert Comparison(frozen, same).refusals(max_drop=10, max_class_drop=20) == []
    (said,) = Comparison(same, frozen).refusals()
    assert "accuracy on new frames: 94.0 %" in said
    assert frozen.lost == list(range(9))
    assert frozen.gained == []


# --- the command ---


@pytest.mark.long
def test_labelled_frames_make_the_next_model_better_where_it_was_bad(
    efficientnet_run: Path, scene: tuple[list[Pixels], list[str]], tmp_path: Path, edgeloop: Run
) -> None:
    labels = captured(tmp_path / "captures", scene)
    # A class that nobody knew, before the others in the alphabet.
    random = np.random.default_rng(2)
    for event in range(8):
        noise = [random.integers(0, 255, (120, 120, 3), np.uint8)]
        folder = tmp_path / "captures" / f"new-{event}"
        (new,) = keep(folder, noise, ["brick"], classes=CLASSES, start_ns=START_NS + (200 + 2 * event) * MINUTE_NS)
        labels[new] = "a new one"
    decide(tmp_path / "captures", labels)
    out = tmp_path / "ground-2"
    done = edgeloop("retrain", efficientnet_run, tmp_path / "captures", "--out", out)
    assert done.code == 0, done.out + done.err
    assert f"promoted: {tmp_path / 'ground-2.edgeloop'}" in done.out
    verdict = json.loads((out / "promotion.json").read_text())
    assert verdict["promoted"]
    assert verdict["new"]["challenger"]["accuracy"] > verdict["new"]["champion"]["accuracy"]
    assert verdict["frozen"]["champion"]["accuracy"] == 1
    assert verdict["new"]["champion"]["recall"]["a new one"] == 0
    # The old test split is whole, what is new in it is of events that nothing learned from.
    before, now = read_photos(efficientnet_run)[1], read_photos(out)[1]
    splits = {photo.sha256: photo.split for photo in now}
    assert all(splits[photo.sha256] == photo.split for photo in before if photo.split == "test")
    assert verdict["frozen"]["pictures"] == sum(photo.split == "test" for photo in before)
    group = {photo.sha256: photo.group for photo in now}
    tested = {group[sha256] for sha256 in labels if splits[sha256] == "test"}
    assert tested
    assert tested.isdisjoint(group[sha256] for sha256 in labels if splits[sha256] != "test")
    page = (out / "promotion.html").read_text()
    assert "<h1>Promoted</h1>" in page
    assert "data:image/jpeg" in page
    inspected = edgeloop("inspect", tmp_path / "ground-2.edgeloop", "--json")
    assert json.loads(inspected.out)["manifest"]["version"] == "2"
    # Made already: nothing is written over.
    again = edgeloop("retrain", efficientnet_run, tmp_path / "captures", "--out", out)
    assert again.code == 1
    assert "already exists" in again.err


@pytest.mark.long
def test_labels_that_are_wrong_do_not_get_through(
    efficientnet_run: Path,
    efficientnet_bundle: Path,
    scene: tuple[list[Pixels], list[str]],
    tmp_path: Path,
    edgeloop: Run,
) -> None:
    root, photos = read_photos(efficientnet_run)
    folder = tmp_path / "captures"
    wrong = {name: CLASSES[(place + 1) % 3] for place, name in enumerate(CLASSES)}
    labels = captured(folder, scene)
    # Frames like those it knows, brighter by a little and called something else: more of them than it learned from.
    bright = [
        np.clip(read_image(root / photo.path).astype(np.int16) + 12 + step, 0, 255).astype(np.uint8)[step:, :]
        for photo in photos
        if photo.split == "train"
        for step in (0, 1, 2)
    ]
    shown = [photo.label for photo in photos if photo.split == "train" for _ in range(3)]
    hashes = keep(tmp_path / "more", bright, shown, classes=CLASSES, start_ns=START_NS + 10**16)
    decide(folder, {sha256: wrong[name] for sha256, name in labels.items()})
    for path in sorted((tmp_path / "more").rglob("*.jpg")):
        (folder / path.name).write_bytes(path.read_bytes())
    decide(folder, {sha256: wrong[name] for sha256, name in zip(hashes, shown, strict=True)})
    out = tmp_path / "ground-2"
    done = edgeloop("retrain", efficientnet_run, folder, "--out", out, "--champion", efficientnet_bundle)
    assert done.code == 1, done.out + done.err
    assert "not promoted" in done.out
    assert not (tmp_path / "ground-2.edgeloop").exists()
    verdict = json.loads((tmp_path / "ground-2" / "promotion.json").read_text())
    assert not verdict["promoted"]
    assert verdict["refusals"]
    page = (tmp_path / "ground-2" / "promotion.html").read_text()
    assert "<h1>Not promoted</h1>" in page


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--out", "{tmp}/next"], 2, "or give one with --bundle"),
        (["--out", "{tmp}/next", "--bundle", "x.edgeloop"], 2, "NAME-VERSION"),
        (["--out", "{tmp}/next-2"], 1, "no labelled frames"),
    ],
)
def test_what_cannot_be_retrained_is_said_in_one_line(
    run_folder: Path,
    scene: tuple[list[Pixels], list[str]],
    tmp_path: Path,
    edgeloop: Run,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    keep(tmp_path / "captures", scene[0][:2], scene[1][:2], classes=CLASSES)
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    done = edgeloop("retrain", run_folder, tmp_path / "captures", *filled)
    assert (done.code, len(done.err.splitlines())) == (code, 1), done.err
    assert said in done.err
    assert not list(tmp_path.glob("next*"))
