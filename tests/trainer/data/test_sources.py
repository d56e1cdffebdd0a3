"""Which images of a folder belong to the data set."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.data import SPLITS, find_photos

from ...conftest import CLASSES
from ...support.data_sets import (
    Load,
    Refusal,
    make_data,
    scene,
    write,
)


def test_given_splits_are_kept(photo_folder: Path, tmp_path: Path, load: Load, refusal: Refusal) -> None:
    for place, split in enumerate(SPLITS):
        for label in CLASSES:
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(place * 4, place * 4 + 4):
                shutil.copy(photo_folder / label / f"{number:02d}.jpg", tmp_path / split / label)
    dataset = load(tmp_path)
    assert dataset.labels == CLASSES
    assert all(photo.split == photo.path.split("/", maxsplit=1)[0] for photo in dataset.photos)
    shutil.rmtree(tmp_path / "val" / "grass")
    assert "class 'grass' has no images in val" in refusal(tmp_path)
    shutil.rmtree(tmp_path / "val")
    assert "all of train, val, test are needed" in refusal(tmp_path)
    (tmp_path / "validation").mkdir()
    assert "test and train folders next to validation" in refusal(tmp_path)


def test_folders_that_are_no_data_are_refused(tmp_path: Path, photos: Path, refusal: Refusal) -> None:
    assert "no such file or directory" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no class folders" in refusal(tmp_path / "empty")
    os.mkfifo(tmp_path / "pipe")
    assert "neither a folder nor a CSV file" in refusal(tmp_path / "pipe")
    shutil.rmtree(photos / "brick")
    (photos / "brick").mkdir()
    assert "no images in this class" in refusal(photos)
    shutil.rmtree(photos / "brick")
    shutil.rmtree(photos / "grass")
    assert "only one class, 'stars'" in refusal(photos)


def test_a_class_of_two_images_is_refused(photos: Path, refusal: Refusal) -> None:
    for number in range(2, 20):
        (photos / "brick" / f"{number:02d}.jpg").unlink()
    assert "class 'brick' has 2 images" in refusal(photos)
    for number in range(5):  # five copies of one image are one image
        shutil.copy(photos / "brick/00.jpg", photos / f"brick/copy{number}.jpg")
    assert "class 'brick' has 2 images" in refusal(photos)


def test_folders_are_searched_to_any_depth_and_hidden_ones_left_out(tmp_path: Path) -> None:
    make_data(tmp_path)
    write(tmp_path / "a/.thumbnails/1.jpg", scene(1))
    write(tmp_path / "a/._1.jpg", scene(1))
    deep = tmp_path / "a" / "/".join(["d"] * 1200)  # deeper than Python's calls may nest
    subprocess.run(["mkdir", "-p", str(deep)], check=True)
    (deep / "far.jpg").touch()
    try:
        found = [photo.path for photo in find_photos(tmp_path)]
    finally:
        subprocess.run(["rm", "-r", str(tmp_path / "a/d")], check=True)  # pytest's own cleaning nests its calls
    assert len(found) == 17
    assert sum(path.endswith("d/far.jpg") for path in found) == 1


def test_links_to_folders_are_not_followed(photos: Path) -> None:
    (photos / "brick" / "loop").symlink_to(photos / "brick", target_is_directory=True)
    (photos / "brick" / "loop.jpg").symlink_to(photos, target_is_directory=True)
    (photos / "brick" / "self").symlink_to(photos / "brick" / "self")
    assert len(find_photos(photos)) == 60


def test_a_class_folder_that_is_a_link_is_refused_and_not_lost(photos: Path, refusal: Refusal) -> None:
    (photos / "loop").symlink_to(photos, target_is_directory=True)
    assert "loop: a link to a folder" in refusal(photos)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    root = make_data(tmp_path / "data")
    secret = root / "a" / "secret"
    secret.mkdir(mode=0o000)
    tmp_path.chmod(0o755)
    # Root may read everything, so somebody else must try.
    script = (
        "import os, sys, pathlib\n"
        "from edge_agent.errors import DataError\n"
        "from trainer.data import find_photos\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: find_photos(pathlib.Path('.'))\n"
        "except DataError as error: print(error)\n"
    )
    path = os.pathsep.join([str(Path.cwd()), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    secret.chmod(0o755)
    assert "a/secret: this folder cannot be read: Permission denied" in done.stdout


@pytest.mark.parametrize("label", ["two words", "🦜 parrot", "x" * 200, "-rf", "a'b\"c", "null", "1e3"])
def test_odd_class_names_are_carried(tmp_path: Path, load: Load, label: str) -> None:
    make_data(tmp_path, classes=(label, "other"), each=5)
    assert set(load(tmp_path).labels) == {label, "other"}


def test_class_names_that_no_bundle_could_carry_are_refused(photos: Path, refusal: Refusal) -> None:
    (photos / "brick").rename(photos / "bri\x1bck")
    assert "not printable" in refusal(photos)
    (photos / "bri\x1bck").rename(os.fsdecode(os.fsencode(photos / "bri") + b"\xff"))
    assert "not printable" in refusal(photos)
