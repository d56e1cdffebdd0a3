"""Copies and near duplicates."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_agent.preprocessing import Pixels
from trainer.data.duplicates import near_duplicates

from ...support.data_sets import (
    Load,
    Refusal,
    by_path,
    finding,
    given_splits,
    make_data,
    scene,
    write,
)


def test_copies_are_left_out_and_contradictions_refused(photos: Path, load: Load, refusal: Refusal) -> None:
    shutil.copy(photos / "brick/00.jpg", photos / "brick/copy.jpg")
    dataset = load(photos)
    note = finding(dataset, "copies")
    assert note.message.startswith("1 image left out")
    assert note.images == (("brick/00.jpg", "brick/copy.jpg"),)
    assert len(dataset.photos) == len(dataset.pixels) == 60
    shutil.copy(photos / "brick/00.jpg", photos / "grass/wrong.jpg")
    said = refusal(photos)
    assert "two classes" in said
    assert "brick/00.jpg and brick/copy.jpg and grass/wrong.jpg" in said


def test_a_image_in_two_given_splits_stays_in_the_test_alone(tmp_path: Path, load: Load) -> None:
    given_splits(tmp_path)
    shutil.copy(tmp_path / "test/a/000.jpg", tmp_path / "train/a/leaked.jpg")
    shutil.copy(tmp_path / "test/a/000.jpg", tmp_path / "val/a/leaked.jpg")
    shutil.copy(tmp_path / "val/b/001.jpg", tmp_path / "train/b/leaked.jpg")
    dataset = load(tmp_path)
    paths = by_path(dataset)
    assert "test/a/000.jpg" in paths
    assert "val/b/001.jpg" in paths
    assert not any("leaked" in path for path in paths)
    note = finding(dataset, "leak")
    assert note.message.startswith("2 images found in more than one of train, val and test")
    assert ("test/a/000.jpg", "val/a/leaked.jpg", "train/a/leaked.jpg") in note.images


def changed(image: Pixels) -> dict[str, Pixels]:
    """What happens to an image on its way through people's hands."""
    height, width = image.shape[:2]
    recompressed = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], 1)
    assert recompressed is not None
    return {
        "recompressed": recompressed.astype(np.uint8),
        "smaller": cv2.resize(image, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA).astype(np.uint8),
        "brighter": np.clip(image * 1.08 + 5.0, 0, 255).astype(np.uint8),
        "cropped": np.ascontiguousarray(image[round(0.025 * height) :, : width - round(0.025 * width)]),
        "cropped all round": np.ascontiguousarray(
            image[round(0.015 * height) : -round(0.015 * height), round(0.015 * width) : -round(0.015 * width)]
        ),
    }


def test_near_duplicates_never_straddle_our_splits(tmp_path: Path, load: Load) -> None:
    make_data(tmp_path, each=12)
    for number in range(4):
        for name, image in changed(scene(number)).items():
            write(tmp_path / f"a/{number:03d} {name}.jpg", image)
    dataset = load(tmp_path)
    paths = by_path(dataset)
    for number in range(4):
        family = [photo for path, photo in paths.items() if path.startswith(f"a/{number:03d}")]
        assert len(family) == 6
        assert len({photo.split for photo in family}) == 1
        assert {photo.group for photo in family} == {"near:" + min(photo.sha256 for photo in family)[:12]}
    others = [photo for path, photo in paths.items() if path.startswith("b/") or path > "a/004"]
    assert not any(photo.group for photo in others)
    note = finding(dataset, "near-duplicates")
    assert note.message.startswith("24 of 44 images")
    assert len(note.images) == 4
    assert not any(one.kind == "leak" for one in dataset.findings)


@pytest.mark.parametrize("count", [700, 2500])
def test_near_duplicates_are_found_among_many(count: int) -> None:
    random = np.random.default_rng(0)
    soft = random.integers(0, 256, (count, 6, 6)).astype(np.uint8)
    thumbs = np.stack([cv2.resize(one, (24, 24), interpolation=cv2.INTER_CUBIC) for one in soft])
    first, second = random.permutation(count)[:200].reshape(2, 100)
    thumbs[second] = np.clip(thumbs[first] * 0.9 + random.normal(8, 2, (100, 24, 24)), 0, 255)
    together = near_duplicates(count, lambda places: np.repeat(thumbs[places, :, :, None], 3, axis=-1))
    assert (together[first] == together[second]).sum() >= 99
    assert len(set(together.tolist())) <= count - 99
    assert np.bincount(together).max() == 2


def test_objects_that_differ_in_colour_alone_are_not_near_duplicates(tmp_path: Path, load: Load) -> None:
    make_data(tmp_path)
    for label, colour in (("a", (40, 40, 200)), ("b", (200, 40, 40))):
        image = scene(500)
        image[20:60, 30:70] = colour
        write(tmp_path / label / "object.jpg", image)
        write(tmp_path / label / "again.jpg", image, quality=60)
    notes = [one for one in load(tmp_path).findings if one.kind == "near-duplicates"]
    assert [set(pair) for note in notes for pair in note.images] == [
        {f"{label}/object.jpg", f"{label}/again.jpg"} for label in ("a", "b")
    ]


def test_near_duplicates_in_given_splits_are_reported_as_leaks(tmp_path: Path, load: Load) -> None:
    given_splits(tmp_path)
    for place, (name, image) in enumerate(changed(scene(30_000)).items()):
        write(tmp_path / f"train/a/leak {name}.jpg", image, quality=80 + place)
    dataset = load(tmp_path)
    note = finding(dataset, "leak")
    assert note.message.startswith("1 image for validation or testing and 5 for training are near duplicates")
    assert note.images[0][0] == "test/a/000.jpg"
    assert note.images[0][1].startswith("train/a/leak")


def test_parts_of_one_texture_and_dark_frames_are_not_near_duplicates(
    areas: dict[str, dict[str, Pixels]], tmp_path: Path, load: Load
) -> None:
    random = np.random.default_rng(3)
    for label in ("brick", "grass", "gravel"):
        area = areas[label]["train"]
        side = min(area.shape[:2]) // 4
        for number, (row, column) in enumerate(np.ndindex(area.shape[0] // side, area.shape[1] // side)):
            part = area[row * side : (row + 1) * side, column * side : (column + 1) * side]
            write(tmp_path / label / f"{number:02d}.jpg", np.ascontiguousarray(part))
    for number in range(20):
        dark = random.normal(3, 2, (90, 120, 3))
        write(tmp_path / "dark" / f"{number:02d}.png", np.clip(dark, 0, 255).astype(np.uint8))
    dataset = load(tmp_path)
    assert len(dataset.photos) > 60
    assert [one for one in dataset.findings if one.kind == "near-duplicates"] == []


def test_a_fixed_cameras_images_are_split_one_by_one_and_it_is_said(tmp_path: Path, load: Load) -> None:
    make_data(tmp_path, each=12)
    still = scene(99).astype(np.float32)
    random = np.random.default_rng(0)
    for number in range(30):
        frame = np.clip(still * random.uniform(0.9, 1.1) + random.normal(0, 3, still.shape), 0, 255)
        write(tmp_path / f"still/{number:02d}.jpg", frame.astype(np.uint8))
    dataset = load(tmp_path)
    counts = Counter(photo.split for photo in dataset.photos if photo.label == "still")
    assert counts == {"train": 22, "val": 4, "test": 4}
    assert "class 'still': nearly all images are near duplicates" in finding(dataset, "groups").message
    assert not any(photo.group for photo in dataset.photos)
    assert not any(one.kind == "leak" for one in dataset.findings)


def test_near_duplicates_with_different_labels_are_pointed_out(tmp_path: Path, load: Load) -> None:
    make_data(tmp_path)
    write(tmp_path / "b/odd.jpg", scene(3), quality=60)
    notes = [one for one in load(tmp_path).findings if one.kind == "near-duplicates"]
    assert len(notes) == 1
    assert "more than one class" in notes[0].message
    assert set(notes[0].images[0]) == {"a/003.jpg", "b/odd.jpg"}
