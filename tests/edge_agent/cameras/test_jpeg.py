from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.cameras.frames import ArrayFrame, encoded
from edge_agent.cameras.jpeg import JpegFrame, jpeg_header
from edge_agent.errors import ImageError
from edge_agent.preprocessing import Pixels


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


def test_a_small_decode_shows_the_same_image() -> None:
    frame = JpegFrame(data=jpeg(720, 1280), seq=0)
    small: Pixels = frame.at_least(180, 320)
    assert small.shape == (180, 320, 3)
    means = cv2.resize(frame.full(), (320, 180), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - means.astype(int)).mean() < 4


def test_the_cameras_own_bytes_are_kept() -> None:
    data = jpeg()
    assert JpegFrame(data=data, seq=0).jpeg() is data


def test_images_that_differ_have_other_fingerprints() -> None:
    assert JpegFrame(data=jpeg(), seq=0).fingerprint() == JpegFrame(data=jpeg(), seq=1).fingerprint()
    assert JpegFrame(data=jpeg(), seq=0).fingerprint() != JpegFrame(data=jpeg(122), seq=0).fingerprint()


def test_padding_behind_the_image_is_no_damage() -> None:
    rest = bytes(np.random.default_rng(1).integers(0, 255, 2048, np.uint8))  # ESP32 cameras send an older frame's
    for padding in (bytes(100), bytes(2048), rest):
        assert JpegFrame(data=jpeg() + padding, seq=0).full().shape == (121, 163, 3)


@pytest.mark.parametrize("keep", [0, 1, 2, 10, 200, 0.5, 0.99])
def test_a_frame_cut_short_is_refused(keep: float) -> None:
    data = jpeg()
    cut = data[: keep if isinstance(keep, int) else int(keep * len(data))]
    # Told by us: some versions of OpenCV decode what there is, and the rest is grey.
    with pytest.raises(ImageError, match="truncated" if keep in (0.5, 0.99) else "JPEG"):
        JpegFrame(data=cut, seq=0).full()


@pytest.mark.parametrize(("size", "shown"), [(b"\xff\xff\xff\xff", "65535x65535"), (b"\0\0\0\x08", "8x0")])
def test_a_frame_that_claims_to_be_huge_or_empty_is_not_decoded(size: bytes, shown: str) -> None:
    data = bytearray(jpeg())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = size
    with pytest.raises(ImageError, match=f"of {shown} pixels"):
        JpegFrame(data=bytes(data), seq=0).at_least(10, 10)


def test_a_rotation_in_the_header_is_ignored_so_that_size_and_image_agree() -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    data = jpeg()
    turned = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    read = np.frombuffer(turned, np.uint8)
    assert cv2.imdecode(read, cv2.IMREAD_COLOR).shape == (163, 121, 3)  # type: ignore[union-attr]
    frame = JpegFrame(data=turned, seq=0)
    assert frame.size == frame.full().shape[:2] == (121, 163)
    assert frame.at_least(30, 40).shape == (31, 41, 3)


def test_progressive_images_and_padded_headers_are_understood() -> None:
    done, data = cv2.imencode(".jpg", np.full((40, 60, 3), 9, np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    progressive = data.tobytes()
    assert done
    assert b"\xff\xc2" in progressive
    baseline = jpeg(40, 60)
    padded = baseline.replace(b"\xff\xc0", b"\xff\xff\xff\xc0", 1)
    for image in (progressive, padded):
        assert JpegFrame(data=image, seq=0).size == JpegFrame(data=image, seq=0).full().shape[:2] == (40, 60)
    with pytest.raises(ImageError, match="not a JPEG image, but PNG"):
        jpeg_header(cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes())


def test_a_image_written_as_jpeg_looks_the_same() -> None:
    ramp = np.linspace(0, 255, 120 * 160, dtype=np.uint8).reshape(120, 160)
    image = np.dstack([ramp, ramp[::-1], ramp[:, ::-1]])
    again = JpegFrame(data=encoded(image), seq=0).full()
    assert np.abs(again.astype(int) - image.astype(int)).mean() < 2


def test_a_change_anywhere_in_a_decoded_image_changes_its_fingerprint() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    noisy = image.copy()
    noisy[32:, 5] = 1
    prints = {ArrayFrame(image=image, seq=0).fingerprint() for image in (image, noisy, image[:, ::-1])}
    assert len(prints) == 2


@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 255))
def test_no_bytes_do_more_than_be_refused(noise: bytes, at: int, value: int) -> None:
    changed = bytearray(jpeg(40, 40))
    changed[min(at, len(changed) - 1)] = value
    for data in (noise, b"\xff\xd8" + noise, bytes(changed)):
        try:
            header = jpeg_header(data)
            assert min(header.rows, header.columns) > 0
            assert JpegFrame(data=data, seq=0).at_least(8, 8).ndim == 3
        except ImageError:
            pass
