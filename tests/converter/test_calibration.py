from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from converter.quantization.calibration import (
    FIRST_CHECK,
    MAX_GROWTH,
    MAX_IMAGES,
    MIN_SPREAD,
    calibrate,
    choose,
    of_folder,
    of_run,
)
from converter.run_reader import Run, RunImage, open_run
from converter.tflite import float_model
from edge_agent.errors import DataError
from edge_agent.preprocessing import Pixels

from ..conftest import write_crop


@pytest.fixture(scope="module")
def run(run_folder: Path) -> Run:
    return open_run(run_folder)


@pytest.fixture(scope="module")
def model(float32_model: bytes) -> bytes:
    return float32_model


def test_images_are_balanced_seeded_and_every_beginning_is_balanced_too() -> None:
    photos = [
        RunImage(f"{c}/{i}", c, "train", f"{c}{i:03d}") for c, n in (("a", 300), ("b", 300), ("c", 5)) for i in range(n)
    ]
    chosen = choose(photos, 100, seed=0)
    counts = Counter(photo.label for photo in chosen)
    assert counts["c"] == 5
    assert abs(counts["a"] - counts["b"]) <= 1
    assert len(chosen) == len(set(chosen)) == 100
    assert Counter(photo.label for photo in chosen[:15]) == {"a": 5, "b": 5, "c": 5}
    assert choose(photos[::-1], 100, seed=0) == chosen
    assert choose(photos, 50, seed=0) == chosen[:50]
    assert choose(photos, 100, seed=1) != chosen


@pytest.mark.slow
def test_ranges_come_from_the_training_split_and_black_and_white(run: Run, model: bytes) -> None:
    seen = calibrate(model, run.spec, of_run(run))
    assert not seen.pixels[0].any()
    assert (seen.pixels[1] == 255).all()
    assert seen.record.images == len(seen.pixels) - 2 == len(run.split("train"))
    assert (seen.record.source, sum(seen.record.per_class.values())) == ("train", 42)
    assert 0 <= seen.record.growth < 1
    assert seen.spread > MIN_SPREAD
    pixels = next(name for name in seen.ranges if "pixels" in name)
    assert seen.ranges[pixels] == (0, 255)
    assert calibrate(model, run.spec, of_run(run)).record == seen.record


def test_it_stops_where_more_images_no_longer_widen_the_ranges(run: Run, model: bytes) -> None:
    random = np.random.default_rng(0)
    taken = 0

    def frames() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield random.integers(0, 256, (120, 120, 3), np.uint8), "", f"{taken:064x}"

    seen = calibrate(model, run.spec, frames())  # type: ignore[arg-type]
    assert seen.record.growth <= MAX_GROWTH
    assert FIRST_CHECK <= seen.record.images == taken <= MAX_IMAGES


@pytest.mark.long
def test_it_goes_on_while_images_widen_the_ranges(efficientnet_run: Path, tmp_path: Path) -> None:
    run = open_run(efficientnet_run)
    model = float_model.of_run(run, tmp_path / "scratch")
    random = np.random.default_rng(0)

    def ever_stronger() -> object:
        for step in range(200):
            noise = random.normal(128, step / 3, (120, 120, 3))
            yield np.clip(noise, 0, 255).astype(np.uint8), "", f"{step:064x}"

    # Nothing settles here but at the end of the images.
    assert calibrate(model, run.spec, ever_stronger()).record.images == 200  # type: ignore[arg-type]


def test_a_folder_of_ones_own_is_read_without_labels_and_past_what_is_broken(
    run: Run, model: bytes, tmp_path: Path, areas: dict[str, dict[str, Pixels]]
) -> None:
    random = np.random.default_rng(2)
    (tmp_path / "day" / "cam").mkdir(parents=True)
    for number in range(6):
        write_crop(tmp_path / "day" / "cam" / f"{number}.jpg", areas["brick"]["train"], random)
    (tmp_path / "day" / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    (tmp_path / "day" / "notes.json").write_text("{}")
    said: list[str] = []
    seen = calibrate(model, run.spec, of_folder(tmp_path, said.append), source="folder")
    assert (seen.record.images, seen.record.per_class, seen.record.source) == (6, {}, "folder")
    assert len(said) == 1
    assert "broken.jpg" in said[0]


def test_a_folder_without_images_is_refused(run: Run, model: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images to calibrate on"):
        of_folder(tmp_path, print)
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of the calibration images"):
        calibrate(model, run.spec, of_folder(tmp_path, lambda _: None))


def test_images_that_are_all_alike_are_noticed(run: Run, model: bytes, tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    scene = cv2.GaussianBlur(random.integers(0, 256, (120, 160, 3)).astype(np.uint8), (0, 0), 5)
    for number in range(5):
        noise = random.normal(0, 2, scene.shape)
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.clip(scene + noise, 0, 255).astype(np.uint8))
    assert calibrate(model, run.spec, of_folder(tmp_path, print)).spread < MIN_SPREAD
