from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_agent.errors import ImageError
from edge_agent.image_headers import read_header
from edge_agent.images import MAX_DECODING_BYTES, decode_image, read_image
from edge_agent.preprocessing import Pixels

from ..conftest import Run


@pytest.fixture(scope="module")
def photo(areas: dict[str, dict[str, Pixels]]) -> Image.Image:
    return Image.fromarray(areas["tissue"]["train"][..., ::-1])


def saved(image: Image.Image, path: Path, kind: str, **options: Any) -> Path:
    image.save(path, kind, **options)
    return path


@pytest.mark.parametrize(
    ("suffix", "kind", "options"),
    [
        ("jpg", "JPEG", {"quality": 95}),
        ("jpg", "JPEG", {"progressive": True, "quality": 95}),
        ("png", "PNG", {}),
        ("webp", "WEBP", {"lossless": True}),
        ("bmp", "BMP", {}),
    ],
)
def test_every_kind_is_read_and_every_kind_cut_short_is_refused(
    photo: Image.Image, tmp_path: Path, suffix: str, kind: str, options: dict[str, Any]
) -> None:
    path = saved(photo, tmp_path / f"photo.{suffix}", kind, **options)
    frame = read_image(path)
    assert np.abs(frame[..., ::-1].astype(int) - np.asarray(photo)).mean() < 4
    whole = path.read_bytes()
    for share in (0.999, 0.9, 0.5, 0.01):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError, match=str(path)):
            read_image(path)


def test_a_16_bit_image_keeps_its_upper_8_bits(tmp_path: Path) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    cv2.imwrite(str(tmp_path / "deep.png"), levels)
    assert np.array_equal(read_image(tmp_path / "deep.png")[..., 0], levels >> 8)


def test_a_cmyk_jpeg_is_converted(photo: Image.Image, tmp_path: Path) -> None:
    path = saved(photo.convert("CMYK"), tmp_path / "print.jpg", "JPEG", quality=95)
    expected = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(read_image(path)[..., ::-1] - expected).mean() < 3


def test_exif_rotation_is_honoured(photo: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was held upright: rotate by 90 degrees to see it right
    path = saved(photo, tmp_path / "upright.jpg", "JPEG", exif=exif, quality=95)
    turned = np.rot90(np.asarray(photo), -1).astype(int)
    assert np.abs(read_image(path)[..., ::-1] - turned).mean() < 4


def test_grey_images_and_transparent_ones_become_three_channels(photo: Image.Image, tmp_path: Path) -> None:
    assert read_image(saved(photo.convert("L"), tmp_path / "grey.png", "PNG")).shape == (*photo.size[::-1], 3)
    assert read_image(saved(photo.convert("RGBA"), tmp_path / "alpha.png", "PNG")).shape == (*photo.size[::-1], 3)


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"just some text, called .jpg", "not a complete JPEG"),
        (b"", "not a complete JPEG"),
        (b"\xff\xd8\xff\xe0" + bytes(2000), "not a complete JPEG"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=says):
        read_image(tmp_path / "x.jpg")


def test_a_small_file_that_claims_gigapixels_is_refused(tmp_path: Path, bundle_file: Path, edgeloop: Run) -> None:
    (tmp_path / "bomb.png").write_bytes(png_claiming(30_000, 30_000))
    ran = edgeloop("predict", bundle_file, tmp_path / "bomb.png")
    assert ran.code == 1
    assert "at most 64 megapixels are expected" in ran.line


def test_a_image_of_one_pixel_is_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "dot.png"), np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(ImageError, match="1x1 pixels; at least 16x16"):
        read_image(tmp_path / "dot.png")


def test_missing_files_folders_and_pipes_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "nowhere.jpg", tmp_path, tmp_path / "pipe.jpg"):
        with pytest.raises(ImageError, match=str(path)):
            read_image(path)


def test_a_file_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(10 * 2**30)  # sparse: takes no disk, but would take 10 GiB of memory
    with pytest.raises(ImageError, match="at most"):
        read_image(tmp_path / "huge.jpg")


def test_reading_is_deterministic_and_like_imread(photo: Image.Image, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    imread = cv2.imread(str(tmp_path / "a.jpg"))
    assert imread is not None
    assert np.array_equal(read_image(tmp_path / "a.jpg"), imread)


@pytest.mark.parametrize(
    ("suffix", "options", "depth", "channels"),
    [
        (".jpg", [], np.uint8, 3),
        (".jpg", [], np.uint8, 1),
        (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], np.uint8, 3),
        (".jpg", [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444], np.uint8, 3),
        (".png", [], np.uint8, 3),
        (".png", [], np.uint16, 3),
        (".png", [], np.uint8, 4),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 80], np.uint8, 3),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 101], np.uint8, 3),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 80], np.uint8, 4),
        (".bmp", [], np.uint8, 3),
        (".bmp", [], np.uint8, 1),
    ],
)
def test_the_size_is_known_before_an_image_is_decoded(
    suffix: str, options: list[int], depth: type, channels: int
) -> None:
    image: np.ndarray[Any, Any] = np.random.default_rng(0).integers(0, 255, (70, 111, channels)).astype(depth)
    data = cv2.imencode(suffix, image, options)[1].tobytes()
    header = read_header(data)
    assert (header.rows, header.columns) == (70, 111) == decode_image(data, "x").shape[:2]
    assert suffix[1:3].upper() == header.format.upper().replace("JPEG", "JPG")[:2]


@pytest.mark.parametrize("suffix", [".tiff", ".ppm", ".gif"])
def test_formats_beyond_those_that_are_promised_are_refused(suffix: str) -> None:
    done, data = cv2.imencode(suffix, np.zeros((30, 40, 3), np.uint8))
    assert done
    with pytest.raises(ImageError, match=r"x: not a complete JPEG, PNG, WebP or BMP image"):
        decode_image(data.tobytes(), "x")


def test_old_and_topmost_first_bitmaps() -> None:
    data = bytearray(cv2.imencode(".bmp", np.zeros((30, 40, 3), np.uint8))[1].tobytes())
    struct.pack_into("<i", data, 22, -30)
    assert (read_header(bytes(data)).rows, decode_image(bytes(data), "x").shape) == (30, (30, 40, 3))
    old = b"BM" + struct.pack("<IHHIIHHHH", 26 + 30 * 120, 0, 0, 26, 12, 40, 30, 1, 24) + bytes(30 * 120)
    assert (read_header(old).columns, decode_image(old, "x").shape) == (40, (30, 40, 3))


@given(st.sampled_from([".jpg", ".png", ".webp", ".bmp"]), st.integers(0, 40), st.binary(max_size=12))
def test_damaged_headers_are_refused_or_read(suffix: str, at: int, noise: bytes) -> None:
    data = bytearray(cv2.imencode(suffix, np.zeros((30, 40, 3), np.uint8))[1].tobytes())
    data[at : at + len(noise)] = noise
    for damaged in (bytes(data), bytes(data[:at])):
        with suppress(ImageError):
            read_header(damaged)


MEASURE = """
import sys
from edge_agent.errors import ImageError
from edge_agent.images import decode_image
def largest():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
data = sys.stdin.buffer.read()
with open("/proc/self/clear_refs", "w") as clear:
    clear.write("5")
before = largest()
try:
    print(*decode_image(data, "x").shape[:2], largest() - before)
except ImageError as error:
    print(error, largest() - before, sep=";")
"""


@pytest.mark.parametrize(
    ("suffix", "options", "says"),
    [
        (".jpg", [], "3200 4000 "),
        (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], "3200 4000 "),
        (
            ".jpg",
            [
                *(cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
                *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
            ],
            "x: 8000x6400 pixels; decoding would take 439 MiB, more than 192; scale it down;",
        ),
        (".png", [], "x: 8000x6400 pixels; decoding would take 292 MiB, more than 192; scale it down;"),
    ],
)
def test_a_large_image_takes_no_more_memory_than_allowed(suffix: str, options: list[int], says: str) -> None:
    data = cv2.imencode(suffix, np.full((6400, 8000, 3), 90, np.uint8), options)[1].tobytes()
    done = subprocess.run([sys.executable, "-c", MEASURE], input=data, capture_output=True, check=True)
    said = done.stdout.decode()
    assert said.startswith(says)
    assert int(said.replace(";", " ").split()[-1]) < 1.05 * MAX_DECODING_BYTES
