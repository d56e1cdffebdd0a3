"""What the model looks at of a frame, and whether it looks at all."""

from __future__ import annotations

from math import ceil

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.cameras import ArrayFrame
from edge_agent.cameras.frames import encoded
from edge_agent.cameras.jpeg import JpegFrame
from edge_agent.cameras.motion import CHECKS_PER_S, GRID, MotionGate, cells, difference
from edge_agent.cameras.region import crop, view
from edge_agent.config import MotionSettings
from edge_agent.preprocessing import Pixels, PreprocessSpec, preprocess

SIDES = st.floats(0, 1, width=32)


@given(st.integers(1, 50), st.integers(1, 50), st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES))
def test_a_cut_holds_the_region_and_at_least_a_pixel(
    rows: int, columns: int, across: tuple[float, float], down: tuple[float, float]
) -> None:
    (left, right), (top, bottom) = sorted(across), sorted(down)
    image = np.arange(rows * columns, dtype=np.int64).reshape(rows, columns)
    part = crop(image, (left, top, right, bottom))  # type: ignore[arg-type]
    # Rounded outwards: never less than what was asked for.
    assert max(1, (bottom - top) * rows - 1e-6) <= part.shape[0] <= ceil((bottom - top) * rows) + 1
    assert max(1, (right - left) * columns - 1e-6) <= part.shape[1] <= ceil((right - left) * columns) + 1
    assert np.isin(part, image).all()


def test_a_region_is_what_it_says() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[25:75, 150:200] = 255
    assert crop(image, (0.75, 0.25, 1.0, 0.75)).shape == (50, 50, 3)
    assert crop(image, (0.75, 0.25, 1.0, 0.75)).min() == 255


@pytest.mark.parametrize("fit", ["crop", "stretch", "letterbox"])
@pytest.mark.parametrize("region", [(0.0, 0.0, 1.0, 1.0), (0.25, 0.1, 0.75, 0.9)])
def test_the_model_sees_nearly_the_same_of_a_frame_that_was_decoded_small(
    areas: dict[str, dict[str, Pixels]], fit: str, region: tuple[float, float, float, float]
) -> None:
    large = cv2.resize(areas["brick"]["video"], (1280, 720), interpolation=cv2.INTER_CUBIC)
    spec = PreprocessSpec((96, 96), fit)  # type: ignore[arg-type]
    frame = JpegFrame(data=encoded(np.asarray(large, np.uint8)), seq=0)
    small = view(frame, spec, region)
    whole = view(ArrayFrame(image=frame.full(), seq=0), spec, region)
    assert small.size * 4 <= whole.size
    off = np.abs(preprocess(small, spec).astype(int) - preprocess(whole, spec).astype(int))
    assert off.mean() < 3


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_a_narrow_region_is_decoded_as_large_as_the_model_needs_it_and_no_larger(fit: str) -> None:
    image = np.zeros((720, 1280, 3), np.uint8)
    image[:, :640] = 255
    frame = JpegFrame(data=encoded(image), seq=0)
    # A quarter of the columns: 96 of them are left at half the size, 80 would be at a quarter.
    seen = view(frame, PreprocessSpec((96, 96), fit), (0.25, 0.0, 0.5, 1.0))  # type: ignore[arg-type]
    assert seen.shape == (360, 160, 3)
    assert seen[:, :-4].min() > 250


def scene(level: int = 100) -> Pixels:
    return np.full((360, 640, 3), level, np.uint8)


def frame(image: Pixels, at: float) -> ArrayFrame:
    return ArrayFrame(image=image, seq=0, captured_s=at)


def test_a_still_scene_passes_once_and_then_every_so_often() -> None:
    gate = MotionGate(MotionSettings(every_s=2.0))
    noise = np.random.default_rng(0)
    passed = [
        round(at, 2)
        for at in np.arange(0, 10, 1 / 30)
        if gate.passes(frame(scene() + noise.integers(0, 8, (360, 640, 3), np.uint8), float(at)), settle_s=0.0)
    ]
    assert [round(at) for at in passed] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("size", [(40, 40), (360, 640)])
def test_a_change_passes_at_once_and_until_it_is_decided(size: tuple[int, int]) -> None:
    gate = MotionGate(MotionSettings(every_s=1000))
    changed = scene()
    changed[: size[0], : size[1]] = 140
    assert gate.passes(frame(scene(), 0.0), settle_s=0.5)
    for at in (0.6, 0.7, 0.8, 0.9):
        assert not gate.passes(frame(scene(), at), settle_s=0.5)
    assert gate.passes(frame(changed, 1.01), settle_s=0.5)
    assert all(gate.passes(frame(changed, 1.01 + step), settle_s=0.5) for step in (0.01, 0.2, 0.4))
    assert not gate.passes(frame(changed, 1.8), settle_s=0.5)


def test_a_change_is_seen_within_one_look_however_fast_the_camera() -> None:
    gate = MotionGate(MotionSettings(every_s=1000))
    gate.passes(frame(scene(), 0.0), settle_s=0.0)
    times = np.arange(0.001, 1.0, 0.001)
    first = next(at for at in times if gate.passes(frame(scene(200 if at >= 0.5 else 100), float(at)), settle_s=0.0))
    assert 0.5 <= first <= 0.5 + 1 / CHECKS_PER_S + 0.002


@pytest.mark.parametrize("colour", [(100, 100, 60), (60, 100, 100), (160, 100, 100), (100, 100, 160)])
def test_darker_and_lighter_and_any_colour_are_changes(colour: tuple[int, int, int]) -> None:
    gate = MotionGate(MotionSettings(every_s=1000, threshold=4))
    changed = scene()
    changed[100:200, 100:200] = colour
    assert gate.passes(frame(scene(), 0.0), settle_s=0.0)
    assert gate.passes(frame(changed, 1.0), settle_s=0.0)


def test_a_still_scene_is_decoded_small_and_five_times_a_second() -> None:
    asked: list[tuple[int, int]] = []

    class Asked(ArrayFrame):
        def at_least(self, height: int, width: int) -> Pixels:
            asked.append((height, width))
            return self.image

    gate = MotionGate(MotionSettings())
    for hundredth in range(200):
        gate.passes(Asked(image=scene(), seq=hundredth, captured_s=hundredth / 100), settle_s=0.0)
    assert set(asked) == {(90, 160)}
    assert 9 <= len(asked) <= 2 * CHECKS_PER_S


def test_what_changes_outside_the_region_is_not_looked_at() -> None:
    gate = MotionGate(MotionSettings(every_s=1000), region=(0.5, 0.0, 1.0, 1.0))
    left, right = scene(), scene()
    left[:, :300], right[:, 340:] = 200, 200
    assert gate.passes(frame(scene(), 0.0), settle_s=0.0)
    assert not gate.passes(frame(left, 1.0), settle_s=0.0)
    assert gate.passes(frame(right, 2.0), settle_s=0.0)


def test_a_slow_change_adds_up() -> None:
    gate = MotionGate(MotionSettings(every_s=1000, threshold=6))
    passed = [second for second in range(60) if gate.passes(frame(scene(100 + second), float(second)), settle_s=0.0)]
    assert passed == list(range(0, 60, 6))


@given(st.integers(1, 400), st.integers(1, 700))
def test_images_of_any_size_can_be_compared(rows: int, columns: int) -> None:
    seen = cells(np.full((rows, columns, 3), 77, np.uint8))
    assert seen.shape == GRID
    assert difference(seen, cells(np.full((columns, rows, 3), 87, np.uint8))) == pytest.approx(10, abs=0.01)
