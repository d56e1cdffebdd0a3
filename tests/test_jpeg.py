from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.cameras.frames import encoded
from edge_agent.cameras.jpeg import JpegFrame, jpeg_size
from edge_agent.errors import PictureError
from edge_agent.preprocess import Pixels


def jpeg(rows: int = 121, columns: int = 163) -> bytes:
    ramp = np.linspace(0, 255, rows * columns, dtype=np.uint8).reshape(rows, columns)
    return encoded(np.dstack([ramp, ramp[::-1], ramp.T.reshape(rows, columns)]))


@given(st.integers(16, 300), st.integers(16, 300), st.integers(1, 400), st.integers(1, 400))
def test_a_frame_is_decoded_as_small_as_may_be_and_never_smaller(
    rows: int, columns: int, height: int, width: int
) -> None:
    frame = JpegFrame(data=encoded(np.full((rows, columns, 3), 90, np.uint8)), seq=0)
    assert frame.size == (rows, columns) == frame.full().shape[:2]
    sizes = [(-(-rows // scale), -(-columns // scale)) for scale in (8, 4, 2, 1)]
    enough = [size for size in sizes if size[0] >= height and size[1] >= width]
    assert frame.at_least(height, width).shape[:2] == (enough or sizes[-1:])[0]


def test_a_small_decode_shows_the_same_picture() -> None:
    frame = JpegFrame(data=jpeg(720, 1280), seq=0)
    small: Pixels = frame.at_least(180, 320)
    assert small.shape == (180, 320, 3)
    means = cv2.resize(frame.full(), (320, 180), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - means.astype(int)).mean() < 4


def test_the_cameras_own_bytes_are_kept() -> None:
    data = jpeg()
    assert JpegFrame(data=data, seq=0).jpeg() is data


def test_pictures_that_differ_have_other_fingerprints() -> None:
    assert JpegFrame(data=jpeg(), seq=0).fingerprint() == JpegFrame(data=jpeg(), seq=1).fingerprint()
    assert JpegFrame(data=jpeg(), seq=0).fingerprint() != JpegFrame(data=jpeg(122), seq=0).fingerprint()


def test_padding_behind_the_picture_is_no_damage() -> None:
    assert JpegFrame(data=jpeg() + bytes(100), seq=0).full().shape == (121, 163, 3)


@pytest.mark.parametrize("keep", [0, 1, 2, 10, 200, 0.5, 0.99])
def test_a_frame_cut_short_is_refused(keep: float) -> None:
    data = jpeg()
    cut = data[: keep if isinstance(keep, int) else int(keep * len(data))]
    with pytest.raises(PictureError):
        JpegFrame(data=cut, seq=0).full()


def test_a_frame_that_claims_to_be_huge_is_not_decoded() -> None:
    data = bytearray(jpeg())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(PictureError, match="65535x65535"):
        JpegFrame(data=bytes(data), seq=0).at_least(10, 10)


@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 255))
def test_no_bytes_do_more_than_be_refused(noise: bytes, at: int, value: int) -> None:
    changed = bytearray(jpeg(40, 40))
    changed[min(at, len(changed) - 1)] = value
    for data in (noise, b"\xff\xd8" + noise, bytes(changed)):
        try:
            assert min(jpeg_size(data)) > 0
            assert JpegFrame(data=data, seq=0).at_least(8, 8).ndim == 3
        except PictureError:
            pass
