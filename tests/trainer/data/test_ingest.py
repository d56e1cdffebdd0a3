"""Images that cannot be used."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from trainer.data import Photo, find_photos

from ...support.data_sets import (
    Load,
    Refusal,
    by_path,
    finding,
    make_data,
    scene,
    write,
)


def test_unreadable_images_are_named_left_out_and_counted(photos: Path, load: Load) -> None:
    (photos / "brick/text.jpg").write_text("no image")
    whole = (photos / "brick/01.jpg").read_bytes()
    (photos / "grass/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "grass/empty.jpg").touch()
    cv2.imwrite(str(photos / "stars/dot.png"), np.zeros((1, 1, 3), np.uint8))
    cv2.imwrite(str(photos / "stars/deep.png"), np.random.default_rng(0).integers(0, 65536, (40, 40, 3), np.uint16))
    (photos / "stars/notes.txt").write_text("not meant as an image")
    dataset = load(photos)
    note = finding(dataset, "unreadable")
    assert note.message.startswith("4 of 65 images")
    assert {path for (path,) in note.images} == {
        "brick/text.jpg",
        "grass/cut.jpg",
        "grass/empty.jpg",
        "stars/dot.png",
    }
    assert len(dataset.photos) == len(dataset.pixels) == 61


def test_too_many_unreadable_images_are_refused(tmp_path: Path, load: Load, refusal: Refusal) -> None:
    make_data(tmp_path, each=20)
    for number in range(4):
        (tmp_path / f"a/{number:03d}.jpg").write_text("broken")
    assert finding(load(tmp_path), "unreadable").message.startswith("4 of 40 images")
    (tmp_path / "a/004.jpg").write_text("broken")
    said = refusal(tmp_path)
    assert said.startswith("5 of 40 images cannot be used, more than the 10 % allowed")
    assert "000.jpg" in said
    assert "and 2 more" in said
    assert len(load(tmp_path, max_unreadable=0.2).photos) == 35
    assert "more than the 0 % allowed" in refusal(tmp_path, max_unreadable=0)


def test_files_that_are_not_even_files_are_left_out(tmp_path: Path, load: Load) -> None:
    make_data(tmp_path, each=20)
    os.mkfifo(tmp_path / "a/pipe.jpg")
    (tmp_path / "a/gone.jpg").symlink_to("nowhere")
    (tmp_path / "a/self.jpg").symlink_to("self.jpg")
    (tmp_path / "b/zero.jpg").symlink_to("/dev/zero")
    assert len(finding(load(tmp_path), "unreadable").images) == 4


def test_a_image_that_vanishes_while_it_is_listed_is_left_out(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_data(tmp_path, each=20)

    def then_delete(root: Path) -> list[Photo]:
        found = find_photos(root)
        (root / "a/003.jpg").unlink()
        return found

    monkeypatch.setattr("trainer.data.dataset.find_photos", then_delete)
    assert finding(load(tmp_path), "unreadable").images == (("a/003.jpg",),)


def test_odd_file_names_are_carried_and_those_no_file_could_hold_left_out(tmp_path: Path, load: Load) -> None:
    make_data(tmp_path / "data", each=20)
    write(tmp_path / "data/a/two\nlines\r\x1b[31m.jpg", scene(501))
    write(tmp_path / 'data/a/quote",.jpg', scene(502))
    bad = os.fsdecode(os.fsencode(tmp_path / "data/a") + b"/\xff\xfe.jpg")
    Path(bad).write_bytes((tmp_path / "data/a/000.jpg").read_bytes())
    dataset = load(tmp_path / "data")
    assert "a/two\nlines\r\x1b[31m.jpg" in by_path(dataset)
    note = finding(dataset, "unreadable")
    assert "not UTF-8" in note.message
    assert note.images[0][0].encode() == rb"a/\udcff\udcfe.jpg"
    with (tmp_path / "split.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([photo.path] for photo in dataset.photos)
    with (tmp_path / "split.csv").open(newline="", encoding="utf-8") as file:
        assert [path for (path,) in csv.reader(file)] == [photo.path for photo in dataset.photos]
