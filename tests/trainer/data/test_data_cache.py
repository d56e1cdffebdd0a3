"""The pixels kept between runs: right, resumable, and never half of anything."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from edge_agent.errors import DataError
from edge_agent.images import decode_image, read_image
from edge_agent.preprocessing import Fit, Pixels, PreprocessSpec, preprocess
from trainer.data import Dataset, PixelRows, load_dataset
from trainer.data.cache import PixelCache, cache_key

from ...conftest import CLASSES, NAMESPACE
from ...support.processes import interruptible

SPEC = PreprocessSpec((32, 32))


@pytest.fixture
def photos(photo_folder: Path, tmp_path: Path) -> Path:
    """A copy of the photographs to spoil."""
    return Path(shutil.copytree(photo_folder, tmp_path / "data"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images decoded so far."""
    names: list[str] = []

    def counted(data: bytes, name: Path) -> Pixels:
        names.append(name.name)
        return decode_image(data, name)

    monkeypatch.setattr("trainer.data.ingest.decode_image", counted)
    return names


def check(dataset: Dataset, root: Path, spec: PreprocessSpec = SPEC) -> None:
    """Every row is what the device would see."""
    assert len(dataset.photos) == len(dataset.pixels)
    for i, photo in enumerate(dataset.photos):
        assert np.array_equal(dataset.pixels[i], preprocess(read_image(root / photo.path), spec)), photo.path


def files(cache: Path) -> tuple[Path, Path]:
    """The pixel file and the index of the only cache there."""
    (folder,) = (cache / "pixels").iterdir()
    return folder / "pixels", folder / "index"


# --- what is in it ---


@pytest.mark.parametrize("fit", ["letterbox", "crop", "stretch"])
def test_images_are_preprocessed_by_the_devices_code(photo_folder: Path, cache: Path, fit: Fit) -> None:
    spec = PreprocessSpec((32, 48), fit, "bgr")
    dataset = load_dataset(photo_folder, spec, cache=cache)
    assert dataset.labels == CLASSES
    assert dataset.pixels.shape == (60, 32, 48, 3)
    check(dataset, photo_folder, spec)


def test_room_for_crops_is_preprocessed_by_it_too(photo_folder: Path, cache: Path, decoded: list[str]) -> None:
    assert load_dataset(photo_folder, SPEC, cache=cache).roomy is None
    (narrow,) = cache.glob("pixels/*/pixels")
    size = narrow.stat().st_size
    dataset = load_dataset(photo_folder, SPEC, room=(40, 44), cache=cache)
    assert narrow.stat().st_size == size
    assert len(decoded) == 120  # once for each size, as they were asked for one after the other
    assert dataset.roomy is not None
    assert dataset.roomy.shape == (60, 40, 44, 3)
    check(dataset, photo_folder)
    for i in (0, 31, 59):
        frame = read_image(photo_folder / dataset.photos[i].path)
        assert np.array_equal(dataset.roomy[i], preprocess(frame, PreprocessSpec((40, 44))))
    again = load_dataset(photo_folder, SPEC, room=SPEC.size, cache=cache)
    assert again.roomy is not None
    assert np.array_equal(again.roomy[7], again.pixels[7])
    assert len(decoded) == 120
    load_dataset(photo_folder, PreprocessSpec((36, 36)), room=(48, 48), cache=cache)
    assert len(decoded) == 180  # once for both


def test_formats_depths_and_rotation_are_read_as_the_device_reads_them(tmp_path: Path, cache: Path) -> None:
    random = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for suffix in ("jpg", "JPEG", "png", "webp", "bmp"):
            image = cv2.resize(random.integers(0, 256, (5, 7, 3), np.uint8), (70, 50), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(tmp_path / "data" / label / f"1.{suffix}"), image)
    deep = random.integers(0, 65536, (60, 60, 3), np.uint16)
    cv2.imwrite(str(tmp_path / "data/a/deep.png"), deep)
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(random.integers(0, 256, (40, 90, 3), np.uint8)).save(tmp_path / "data/b/turned.jpg", exif=exif)
    dataset = load_dataset(tmp_path / "data", SPEC, cache=cache)
    assert len(dataset.photos) == 12
    check(dataset, tmp_path / "data")


def test_rows_are_copies_taken_by_number_list_array_and_slice() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 4, 5, 3), np.uint8)
    rows = PixelRows.of(pixels)
    assert (len(rows), rows.shape) == (9, pixels.shape)
    for which in (0, -1, 3):
        assert np.array_equal(rows[which], pixels[which])
    several: list[list[int] | npt.NDArray[np.intp] | slice] = [
        [3, 1, 1],
        np.array([8, 0]),
        slice(2, 7, 2),
        slice(None),
        [],
        [-1],
    ]
    for some in several:
        expected = pixels[some if isinstance(some, slice) else np.asarray(some, np.intp)]
        assert rows[some].shape == expected.shape
        assert np.array_equal(rows[some], expected)
    rows[0][:] = 0
    assert np.array_equal(rows[0], pixels[0])
    assert sum(1 for _ in rows) == 9
    with pytest.raises(IndexError):
        rows[9]


def test_rows_close_their_file_when_they_go(photo_folder: Path, cache: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    dataset = load_dataset(photo_folder, SPEC, room=(40, 40), cache=cache)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del dataset
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_image_is_found_by_its_whole_hash(cache: Path) -> None:
    pixels = np.zeros(SPEC.shape, np.uint8)
    with PixelCache(cache, SPEC) as opened:
        opened.add(b"8 bytes " + b"a" * 24, pixels, 40, 30, bytes(576))
    with PixelCache(cache, SPEC) as opened:
        assert opened.find(b"8 bytes " + b"b" * 24, pixels) is None
        opened.add(b"8 bytes " + b"b" * 24, pixels, 50, 30, bytes(576))
    with PixelCache(cache, SPEC) as opened:
        for row, letter in enumerate(b"ab"):
            found = opened.find(b"8 bytes " + bytes([letter]) * 24, pixels)
            assert found is not None
            assert (found.row, found.width, found.height) == (row, 40 + 10 * row, 30)


# --- what it spares ---


def test_a_second_run_decodes_only_what_is_new(photos: Path, cache: Path, decoded: list[str]) -> None:
    load_dataset(photos, SPEC, cache=cache)
    assert len(decoded) == 60
    (photos / "brick/00.jpg").rename(photos / "brick/moved.jpg")
    cv2.imwrite(str(photos / "grass/new.png"), read_image(photos / "grass/00.jpg")[:100, :100])
    decoded.clear()
    check(load_dataset(photos, SPEC, cache=cache), photos)
    assert decoded == ["new.png"]


def test_another_spec_has_another_cache() -> None:
    fits: tuple[Fit, ...] = ("crop", "letterbox", "stretch")
    specs = [PreprocessSpec((h, w), fit) for h in (32, 33) for w in (32, 33) for fit in fits]
    specs.append(PreprocessSpec((32, 32), "crop", "bgr"))
    assert len({cache_key(spec) for spec in specs}) == len(specs)


def test_another_arithmetic_has_another_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    import trainer.data.cache as module

    before = cache_key(SPEC)
    monkeypatch.setattr(module, "preprocess", lambda frame, spec: preprocess(frame, spec) ^ 1)
    module._arithmetic.cache_clear()
    assert cache_key(SPEC) != before
    monkeypatch.undo()
    module._arithmetic.cache_clear()
    assert cache_key(SPEC) == before


def test_the_default_cache_is_the_users_and_moves_with_xdg_cache_home(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_dataset(photo_folder, SPEC)
    (folder,) = (tmp_path / "xdg/edgeloop/pixels").iterdir()
    assert folder.stat().st_mode & 0o077 == 0


# --- what it survives ---


def flipped(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place, os.SEEK_SET if place >= 0 else os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x40]))


@pytest.mark.parametrize("place", [0, 5 * 3072 + 17, -1])
def test_a_flipped_byte_of_the_pixels_costs_one_image(
    photos: Path, cache: Path, decoded: list[str], place: int
) -> None:
    load_dataset(photos, SPEC, cache=cache)
    flipped(files(cache)[0], place)
    decoded.clear()
    check(load_dataset(photos, SPEC, cache=cache), photos)
    assert len(decoded) == 1
    check(load_dataset(photos, SPEC, cache=cache), photos)
    assert len(decoded) == 1


def test_a_byte_flipped_anywhere_in_the_index_is_never_believed(photos: Path, cache: Path, decoded: list[str]) -> None:
    for name in os.listdir(photos / "brick")[5:]:
        (photos / "brick" / name).unlink()
    shutil.rmtree(photos / "stars")
    load_dataset(photos, SPEC, cache=cache)
    index = files(cache)[1]
    size = index.stat().st_size
    record = (size - 64) // 25
    offsets = [0, 7, 8, 31, 32, 36, 40, 44, 300, record - 5, record - 4, record - 1]
    for number, offset in enumerate(offsets):
        flipped(index, 64 + number * record + offset)
        decoded.clear()
        check(load_dataset(photos, SPEC, cache=cache), photos)
        assert len(decoded) == 1, offset
    for place in (0, 20, 63):
        flipped(index, place)
        decoded.clear()
        check(load_dataset(photos, SPEC, cache=cache), photos)
        assert len(decoded) == 25


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_cut_short_costs_what_was_cut(
    photos: Path, cache: Path, decoded: list[str], which: int, share: float
) -> None:
    load_dataset(photos, SPEC, cache=cache)
    path = files(cache)[which]
    os.truncate(path, int(path.stat().st_size * share))
    decoded.clear()
    check(load_dataset(photos, SPEC, cache=cache), photos)
    assert 60 * (1 - share) - 1 <= len(decoded) <= 60 * (1 - share) + 1
    decoded.clear()
    check(load_dataset(photos, SPEC, cache=cache), photos)
    assert decoded == []


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("content", [b"", b"something else entirely", bytes(100_000), b"\xff" * 300_000])
def test_foreign_files_in_its_place_are_replaced(photos: Path, cache: Path, which: int, content: bytes) -> None:
    load_dataset(photos, SPEC, cache=cache)
    files(cache)[which].write_bytes(content)
    check(load_dataset(photos, SPEC, cache=cache), photos)


def test_an_index_of_absurd_length_is_not_read(photos: Path, cache: Path) -> None:
    load_dataset(photos, SPEC, cache=cache)
    index = files(cache)[1]
    os.truncate(index, 2**42)  # sparse: no disk is that large
    check(load_dataset(photos, SPEC, cache=cache), photos)
    assert index.stat().st_size < 2**20


@pytest.mark.parametrize("which", [0, 1])
def test_something_that_is_no_file_in_its_place_is_named(photos: Path, cache: Path, which: int) -> None:
    load_dataset(photos, SPEC, cache=cache)
    path = files(cache)[which]
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"cannot be used.*--cache or XDG_CACHE_HOME"):
        load_dataset(photos, SPEC, cache=cache)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(DataError, match="cannot be used"):
        load_dataset(photos, SPEC, cache=cache)


def test_a_cache_that_cannot_be_made_is_named(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be used: Not a directory"):
        load_dataset(photos, SPEC, cache=tmp_path / "file")


def test_rows_in_use_outlive_a_cache_that_starts_anew(photos: Path, cache: Path) -> None:
    dataset = load_dataset(photos, SPEC, cache=cache)
    files(cache)[1].write_bytes(b"broken")
    for label in CLASSES[1:]:
        for path in (photos / label).iterdir():
            path.rename(path.with_name(f"other-{path.name}"))
    load_dataset(photos, SPEC, cache=cache)
    for label in CLASSES[1:]:
        for path in (photos / label).iterdir():
            path.rename(path.with_name(path.name.removeprefix("other-")))
    check(dataset, photos)


def test_a_cache_cut_short_while_in_use_is_an_error_and_not_a_crash(photos: Path, cache: Path) -> None:
    dataset = load_dataset(photos, SPEC, cache=cache)
    os.truncate(files(cache)[0], 3072 * 3 + 5)
    with pytest.raises(DataError, match="cut short"):
        dataset.pixels[:]


# --- other processes ---

LOAD = """
import sys
from pathlib import Path
from edge_agent.errors import DataError
from edge_agent.preprocessing import PreprocessSpec
from trainer.data import load_dataset
try:
    data = load_dataset(Path(sys.argv[1]), PreprocessSpec((160, 160)), cache=Path(sys.argv[2]))
    print(len(data.photos), data.pixels[len(data.photos) - 1].sum())
except DataError as error:
    print("refused:", error)
"""
BIG = PreprocessSpec((160, 160))
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Start:
    """Start a process that loads a data set."""
    path = os.pathsep.join([str(Path.cwd()), *sys.path])

    def started(*arguments: object, before: str = "", wrap: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        command = [*wrap, sys.executable, "-c", before + LOAD, *map(str, arguments)]
        return subprocess.Popen(
            interruptible(command),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    return started


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 images, enough to be interrupted."""
    root = tmp_path_factory.mktemp("many")
    random = np.random.default_rng(0)
    for number in range(400):
        soft = cv2.resize(random.integers(0, 256, (7, 9, 3), np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
        (root / "ab"[number % 2]).mkdir(exist_ok=True)
        cv2.imwrite(str(root / "ab"[number % 2] / f"{number}.jpg"), soft)
    return root


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_nothing_half_done(
    many: Path, cache: Path, start: Start, decoded: list[str]
) -> None:
    progress = [0]
    ends = [(1, signal.SIGKILL), (60, signal.SIGINT), (130, signal.SIGKILL), (200, signal.SIGTERM)]
    for target, end in ends:
        process = start(many, cache)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            indices = list(cache.glob("pixels/*/index"))
            if indices and (indices[0].stat().st_size - 64) // 600 >= target:
                break
            time.sleep(0.002)
        process.send_signal(end)
        process.communicate(timeout=120)
        progress.append(files(cache)[1].stat().st_size)
    assert progress == sorted(progress)
    check(load_dataset(many, BIG, cache=cache), many, BIG)
    assert progress[1] < progress[-1], "the first kill came too late to hit anything"
    assert len(decoded) < 400


def test_two_processes_fill_one_cache_at_once(many: Path, cache: Path, start: Start, decoded: list[str]) -> None:
    processes = [start(many, cache) for _ in range(3)]
    said = {process.communicate(timeout=120)[0] for process in processes}
    assert len(said) == 1
    assert said.pop().startswith("400 ")
    assert files(cache)[0].stat().st_size == 400 * 160 * 160 * 3
    check(load_dataset(many, BIG, cache=cache), many, BIG)
    assert decoded == []


def test_the_second_process_says_that_it_waits(photos: Path, cache: Path) -> None:
    import io
    import threading

    from rich.console import Console

    said = io.StringIO()
    with PixelCache(cache, SPEC):
        thread = threading.Thread(
            target=load_dataset,
            args=(photos, SPEC),
            kwargs={"cache": cache, "console": Console(file=said, force_terminal=True)},
        )
        thread.start()
        deadline = time.monotonic() + 120
        while "Waiting for another edgeloop" not in said.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "Reading images" not in said.getvalue()
    thread.join(30)
    assert "Waiting for another edgeloop" in said.getvalue()
    assert "Reading images" in said.getvalue()


# --- disks that are full ---


def test_a_file_that_may_not_grow_is_one_line_and_gives_its_room_back(many: Path, cache: Path, start: Start) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))\n"
    said = start(many, cache, before=limit).communicate(timeout=120)[0]
    assert said.startswith("refused: ")
    assert "no room for the pixels of 400 images: File too large; they take up to 31 MB" in said
    assert "--cache or XDG_CACHE_HOME" in said
    assert files(cache)[0].stat().st_size == 0
    check(load_dataset(many, BIG, cache=cache), many, BIG)


@pytest.mark.needs("namespace")
def test_a_full_disk_is_one_line_and_gives_its_room_back(many: Path, cache: Path, start: Start) -> None:
    cache.mkdir()
    mount = (
        "import subprocess, sys, atexit, shutil\n"
        "subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', sys.argv[2]], check=True)\n"
        "atexit.register(lambda: print('free', shutil.disk_usage(sys.argv[2]).free > 7_500_000))\n"
    )
    said = start(many, cache, before=mount, wrap=NAMESPACE).communicate(timeout=120)[0]
    assert "refused: " in said
    assert "no room for the pixels of 400 images: No space left on device" in said
    assert said.endswith("free True\n")
