from __future__ import annotations

import hashlib
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.preprocessing import PAD_LEVEL, Fit, Pixels, PreprocessSpec, halve, preprocess

SHAPES = ((720, 1280), (727, 1283), (100, 90), (3000, 200), (1, 1), (224, 224), (448, 449))
# Found equal on x86-64 and aarch64 (emulated) with OpenCV 4.11 and 5.0. A change here means that
# every model trained before sees other pixels than it was trained on.
GOLDEN = {
    "stretch": "caf18f496a1aa495",
    "crop": "ac7edac577b5388e",
    "letterbox": "96bdb5a1e6dc9b02",
}


def noise(*shape: int, seed: int = 7) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize("fit", ["stretch", "crop", "letterbox"])
def test_pixels_are_the_same_on_every_processor_and_opencv_version(fit: Fit) -> None:
    spec = PreprocessSpec((224, 224), fit)
    pixels = b"".join(preprocess(noise(*shape), spec).tobytes() for shape in SHAPES)
    assert hashlib.sha256(pixels).hexdigest()[:16] == GOLDEN[fit]


@given(rows=st.integers(16, 64), columns=st.integers(16, 64), down=st.integers(0, 3), across=st.integers(0, 3))
@settings(max_examples=60)
def test_halving_is_the_mean_of_pixel_pairs_rounded_half_up(rows: int, columns: int, down: int, across: int) -> None:
    frame = noise(rows << down, columns << across)
    expected: npt.NDArray[Any] = frame.astype(np.uint16)
    while expected.shape[0] >= 2 * rows or expected.shape[1] >= 2 * columns:
        both = expected.shape[0] >= 2 * rows and expected.shape[1] >= 2 * columns
        if both:
            expected = (expected[::2, ::2] + expected[1::2, ::2] + expected[::2, 1::2] + expected[1::2, 1::2] + 2) >> 2
        elif expected.shape[0] >= 2 * rows:
            expected = (expected[::2] + expected[1::2] + 1) >> 1
        else:
            expected = (expected[:, ::2] + expected[:, 1::2] + 1) >> 1
    assert np.array_equal(halve(frame, rows, columns), expected)


@given(
    rows=st.integers(1, 700),
    columns=st.integers(1, 700),
    height=st.integers(8, 96),
    width=st.integers(8, 96),
    fit=st.sampled_from(["stretch", "crop", "letterbox"]),
    level=st.integers(0, 255),
)
@settings(max_examples=80)
def test_a_flat_frame_of_any_size_stays_flat(
    rows: int, columns: int, height: int, width: int, fit: Fit, level: int
) -> None:
    frame = np.full((rows, columns, 3), level, np.uint8)
    result = preprocess(frame, PreprocessSpec((height, width), fit))
    assert result.shape == (height, width, 3)
    allowed = {level, PAD_LEVEL} if fit == "letterbox" else {level}
    assert set(np.unique(result).tolist()) <= allowed
    assert level in result


def test_the_result_is_written_into_the_given_array_and_the_frame_is_left_alone() -> None:
    frame, spec = noise(333, 517), PreprocessSpec((64, 80), "letterbox")
    before = frame.copy()
    out = np.empty((64, 80, 3), np.uint8)
    assert preprocess(frame, spec, out) is out
    assert np.array_equal(out, preprocess(frame, spec))
    assert np.array_equal(frame, before)


def test_a_view_of_a_larger_array_is_taken_as_frame_and_as_output() -> None:
    frame, spec = noise(400, 400), PreprocessSpec((96, 96))
    sliced = frame[20:380:1, 10:390]
    big = np.zeros((2, 100, 100, 3), np.uint8)
    preprocess(sliced, spec, big[1, 2:98, 2:98])
    assert np.array_equal(big[1, 2:98, 2:98], preprocess(np.ascontiguousarray(sliced), spec))
    assert not big[0].any()
    assert not big[1, :2].any()
    mirrored = preprocess(frame[:, ::-1], spec)
    assert np.array_equal(mirrored, preprocess(np.ascontiguousarray(frame[:, ::-1]), spec))


def test_frames_are_bgr_and_models_get_the_order_they_ask_for() -> None:
    blue = np.zeros((50, 50, 3), np.uint8)
    blue[..., 0] = 255
    assert preprocess(blue, PreprocessSpec((8, 8), channels="rgb"))[0, 0].tolist() == [0, 0, 255]
    assert preprocess(blue, PreprocessSpec((8, 8), channels="bgr"))[0, 0].tolist() == [255, 0, 0]


def test_crop_keeps_the_centre_and_letterbox_keeps_everything() -> None:
    frame = np.zeros((100, 200, 3), np.uint8)
    frame[:, :50] = 255  # outside the central square
    cropped = preprocess(frame, PreprocessSpec((50, 50), "crop"))
    boxed = preprocess(frame, PreprocessSpec((50, 50), "letterbox"))
    assert not cropped.any()
    assert (boxed[:12] == PAD_LEVEL).all()
    assert (boxed[38:] == PAD_LEVEL).all()
    assert (boxed[13:37, :12] == 255).all()


def test_large_reductions_do_not_alias() -> None:
    # One-pixel stripes average to mid-grey; bilinear alone would pick black or white ones.
    stripes = np.zeros((1024, 1024, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(preprocess(stripes, PreprocessSpec((224, 224)))) == 0
    naive = cv2.resize(stripes, (224, 224), interpolation=cv2.INTER_LINEAR)
    assert np.ptp(naive) > 100


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (np.zeros((4, 4, 3), np.float32), TypeError),
        (np.zeros((4, 4), np.uint8), ValueError),
        (np.zeros((4, 4, 4), np.uint8), ValueError),
        (np.zeros((0, 4, 3), np.uint8), ValueError),
        ("image.jpg", TypeError),
    ],
)
def test_what_is_no_frame_is_refused(frame: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="frame must"):
        preprocess(frame, PreprocessSpec((8, 8)))  # type: ignore[arg-type]


def test_an_output_of_another_shape_or_type_is_refused_rather_than_left_unwritten() -> None:
    for out in (np.zeros((8, 9, 3), np.uint8), np.zeros((8, 8, 3), np.int8)):
        with pytest.raises((TypeError, ValueError), match="out must"):
            preprocess(noise(20, 20), PreprocessSpec((8, 8)), out)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(0, 8), (8, 4096), (7, 7)])
def test_impossible_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="8 to 2048"):
        PreprocessSpec(size)
