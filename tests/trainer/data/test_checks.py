"""What the user is told about imbalance and small images."""

from __future__ import annotations

from pathlib import Path

from ...support.data_sets import (
    Load,
    finding,
    make_data,
    scene,
    write,
)


def test_imbalance_is_reported_above_three_to_one(tmp_path: Path, load: Load) -> None:
    make_data(tmp_path, each=5)
    for number in range(10):
        write(tmp_path / f"b/more{number}.jpg", scene(400 + number))
    assert not any(one.kind == "imbalance" for one in load(tmp_path).findings)
    write(tmp_path / "b/more10.jpg", scene(410))
    assert "'b' has 16 images and class 'a' only 5" in finding(load(tmp_path), "imbalance").message


def test_small_images_are_reported_the_smallest_first(tmp_path: Path, load: Load) -> None:
    make_data(tmp_path)
    assert not any(one.kind == "small" for one in load(tmp_path).findings)
    write(tmp_path / "a/s1.jpg", scene(800, (79, 200)))
    write(tmp_path / "a/s2.jpg", scene(801, (100, 40)))
    note = finding(load(tmp_path), "small")
    assert note.images == (("a/s2.jpg",), ("a/s1.jpg",))
    assert note.message.startswith("2 of 18 images are shorter than 80 pixels on a side, the smallest 40x100")


def test_good_data_gives_no_findings(tmp_path: Path, load: Load) -> None:
    assert load(make_data(tmp_path)).findings == ()
