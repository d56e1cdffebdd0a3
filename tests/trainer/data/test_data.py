"""Which images there are, how they are split, and what the user is told about them."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.errors import ConfigError, DataError
from edge_agent.preprocessing import Pixels, PreprocessSpec
from trainer.data import SPLITS, Dataset, Finding, Photo, data_root, find_photos, load_dataset, suspicious_labels
from trainer.data.duplicates import near_duplicates
from trainer.data.groups import find_groups, same
from trainer.data.label_errors import confident_errors
from trainer.data.split import split_photos

from ...conftest import CLASSES

SPEC = PreprocessSpec((32, 32))
Load = Callable[..., Dataset]


@pytest.fixture
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Load a data set through one cache of this test's own."""
    cache = tmp_path_factory.mktemp("cache")

    def loaded(root: Path, **choices: object) -> Dataset:
        return load_dataset(root, SPEC, cache=cache, **choices)  # type: ignore[arg-type]

    return loaded


@pytest.fixture
def photos(photo_folder: Path, tmp_path: Path) -> Path:
    """A copy of the photographs to spoil."""
    return Path(shutil.copytree(photo_folder, tmp_path / "data"))


@pytest.fixture
def refusal(load: Load) -> Callable[..., str]:
    """What is said when a data set is refused; always one line."""

    def said(root: Path, **choices: object) -> str:
        with pytest.raises(DataError) as caught:
            load(root, **choices)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return said


Refusal = Callable[..., str]


def scene(seed: int, size: tuple[int, int] = (90, 120)) -> Pixels:
    """An image unlike any with another seed: soft blobs, as of a photograph out of focus, under fine grain."""
    random = np.random.default_rng(seed)
    soft = cv2.resize(random.integers(0, 256, (7, 9, 3)).astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
    grained: Pixels = np.clip(soft + random.normal(0, 6, soft.shape), 0, 255).astype(np.uint8)
    return grained


def write(path: Path, image: Pixels, quality: int = 92) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())


def make_data(root: Path, *, classes: tuple[str, ...] = ("a", "b"), each: int = 8) -> Path:
    """A folder per class of images that are all different."""
    for place, label in enumerate(classes):
        for number in range(each):
            write(root / label / f"{number:03d}.jpg", scene(1000 * place + number))
    return root


def finding(dataset: Dataset, kind: str) -> Finding:
    found = [finding for finding in dataset.findings if finding.kind == kind]
    assert found, f"no finding {kind!r} in {dataset.findings}"
    assert all("\n" not in one.message for one in found)
    return found[0]


def by_path(dataset: Dataset) -> dict[str, Photo]:
    return {photo.path: photo for photo in dataset.photos}


# --- folders ---


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


# --- CSV files ---


@pytest.fixture
def listing(tmp_path: Path) -> Callable[..., Path]:
    """A CSV file beside a folder of images p/0.jpg to p/19.jpg."""
    for number in range(20):
        write(tmp_path / f"p/{number}.jpg", scene(number))

    def written(*rows: str, encoding: str = "utf-8", header: str = "path,label") -> Path:
        path = tmp_path / "photos.csv"
        path.write_bytes("\n".join([header, *rows, ""]).encode(encoding))
        return path

    return written


Listing = Callable[..., Path]
ROWS = [f"p/{i}.jpg,{'ab'[i % 2]}" for i in range(20)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_images_can_be_listed_in_a_csv_file(listing: Listing, load: Load, encoding: str) -> None:
    path = listing(*ROWS, encoding=encoding)
    dataset = load(path)
    assert dataset.labels == ("a", "b")
    assert len(dataset.photos) == 20
    for photo in dataset.photos:
        assert hashlib.sha256((data_root(path) / photo.path).read_bytes()).hexdigest() == photo.sha256


def test_a_csv_file_may_give_groups_and_splits_in_any_order(listing: Listing, load: Load) -> None:
    rows = [f"{('train', 'val', 'test')[i // 2 % 3]},g{i // 2},{'ab'[i % 2]},p/{i}.jpg" for i in range(20)]
    dataset = load(listing(*rows, header="split,group,label,path"))
    photo = by_path(dataset)["p/3.jpg"]
    assert (photo.label, photo.split, photo.group) == ("b", "val", "g1")


def test_class_names_with_slashes_and_commas_are_carried_by_csv(listing: Listing, load: Load) -> None:
    rows = [f'p/{i}.jpg,"{("red/green, mixed", "🍏" * 100)[i % 2]}"' for i in range(20)]
    assert load(listing(*rows)).labels == ("red/green, mixed", "🍏" * 100)
    rows[0] = "p/0.jpg," + "x" * 201
    with pytest.raises(DataError, match="longer than 200"):
        load(listing(*rows))


def test_a_csv_file_is_refused_with_all_its_problems_and_their_lines(
    listing: Listing, tmp_path: Path, refusal: Refusal
) -> None:
    (tmp_path / "p/out.jpg").symlink_to("/etc/hostname")
    (tmp_path / "p/up").symlink_to("/etc", target_is_directory=True)
    (tmp_path / "p/fine.jpg").symlink_to("0.jpg")
    bad = {
        "/etc/passwd,a,": "absolute",
        "../x.jpg,a,": "leads out",
        "p/../../x.jpg,a,": "leads out",
        "p/out.jpg,a,": "out of the list's folder through a link",
        "p/up/hostname,a,": "out of the list's folder through a link",
        "p/./1.jpg,b,": "'p/1.jpg' is already in line 3",
        "p/5.jpg,,": "the label is empty",
        ",a,": "the path is empty",
        "p/6.jpg,a,validation": "did you mean 'val'?",
        "p/7.jpg,a": "2 cells, the header has 3",
        "p/8\0.jpg,a,": "zero byte",
    }
    good = ["p/0.jpg,a,", "p/1.jpg,b,", "p/fine.jpg,a,"]
    said = refusal(listing(*good, *bad, header="path,label,split"))
    for line, problem in enumerate(bad.values(), start=5):
        if line < 15:
            assert f"line {line}: " in said
            assert problem in said
    assert "and 1 more" in said
    alone = refusal(listing(*good, list(bad)[-1], header="path,label,split"))
    assert "zero byte" in alone


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("path,lable", "unknown column 'lable', did you mean 'label'?"),
        ("path;label", "separated by semicolons"),
        ("p/0.jpg,a", "column 'path' is missing"),
        ("path,label,label", "is there twice"),
        ("", "column 'path' is missing"),
    ],
)
def test_a_csv_file_needs_its_header(listing: Listing, refusal: Refusal, header: str, said: str) -> None:
    assert said in refusal(listing(*ROWS, header=header))


def test_csv_files_that_are_none_are_refused(listing: Listing, tmp_path: Path, refusal: Refusal) -> None:
    assert "not UTF-8" in refusal(listing("p/0.jpg,é", encoding="latin-1"))
    assert "not a CSV file" in refusal(listing('p/0.jpg,"never closed', *ROWS))
    assert "no images are listed" in refusal(listing())
    splits = [f"{row},{'train' if i else ''}" for i, row in enumerate(ROWS)]
    assert "line 2: no split, but 19 rows have one" in refusal(listing(*splits, header="path,label,split"))
    (tmp_path / "image.csv").write_bytes((tmp_path / "p/0.jpg").read_bytes())
    assert "not" in refusal(tmp_path / "image.csv")


# --- images that cannot be used ---


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


# --- copies ---


def test_copies_are_left_out_and_contradictions_refused(photos: Path, load: Load, refusal: Refusal) -> None:
    shutil.copy(photos / "brick/00.jpg", photos / "brick/copy.jpg")
    dataset = load(photos)
    note = finding(dataset, "copies")
    assert note.message.startswith("1 image left out")
    assert note.images == (("brick/00.jpg", "brick/copy.jpg"),)
    assert len(dataset.photos) == len(dataset.pixels) == 60
    shutil.copy(photos / "brick/00.jpg", photos / "grass/wrong.jpg")
    said = refusal(photos)
    assert "two classes" in said
    assert "brick/00.jpg and brick/copy.jpg and grass/wrong.jpg" in said


def given_splits(root: Path) -> Path:
    for place, split in enumerate(SPLITS):
        make_data(root / split, each=6)
        for number in range(6):
            for label in "ab":
                seed = 10_000 * (place + 1) + 1000 * (label == "b") + number
                write(root / split / label / f"{number:03d}.jpg", scene(seed))
    return root


def test_a_image_in_two_given_splits_stays_in_the_test_alone(tmp_path: Path, load: Load) -> None:
    given_splits(tmp_path)
    shutil.copy(tmp_path / "test/a/000.jpg", tmp_path / "train/a/leaked.jpg")
    shutil.copy(tmp_path / "test/a/000.jpg", tmp_path / "val/a/leaked.jpg")
    shutil.copy(tmp_path / "val/b/001.jpg", tmp_path / "train/b/leaked.jpg")
    dataset = load(tmp_path)
    paths = by_path(dataset)
    assert "test/a/000.jpg" in paths
    assert "val/b/001.jpg" in paths
    assert not any("leaked" in path for path in paths)
    note = finding(dataset, "leak")
    assert note.message.startswith("2 images found in more than one of train, val and test")
    assert ("test/a/000.jpg", "val/a/leaked.jpg", "train/a/leaked.jpg") in note.images


# --- near duplicates ---


def changed(image: Pixels) -> dict[str, Pixels]:
    """What happens to an image on its way through people's hands."""
    height, width = image.shape[:2]
    recompressed = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], 1)
    assert recompressed is not None
    return {
        "recompressed": recompressed.astype(np.uint8),
        "smaller": cv2.resize(image, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA).astype(np.uint8),
        "brighter": np.clip(image * 1.08 + 5.0, 0, 255).astype(np.uint8),
        "cropped": np.ascontiguousarray(image[round(0.025 * height) :, : width - round(0.025 * width)]),
        "cropped all round": np.ascontiguousarray(
            image[round(0.015 * height) : -round(0.015 * height), round(0.015 * width) : -round(0.015 * width)]
        ),
    }


def test_near_duplicates_never_straddle_our_splits(tmp_path: Path, load: Load) -> None:
    make_data(tmp_path, each=12)
    for number in range(4):
        for name, image in changed(scene(number)).items():
            write(tmp_path / f"a/{number:03d} {name}.jpg", image)
    dataset = load(tmp_path)
    paths = by_path(dataset)
    for number in range(4):
        family = [photo for path, photo in paths.items() if path.startswith(f"a/{number:03d}")]
        assert len(family) == 6
        assert len({photo.split for photo in family}) == 1
        assert {photo.group for photo in family} == {"near:" + min(photo.sha256 for photo in family)[:12]}
    others = [photo for path, photo in paths.items() if path.startswith("b/") or path > "a/004"]
    assert not any(photo.group for photo in others)
    note = finding(dataset, "near-duplicates")
    assert note.message.startswith("24 of 44 images")
    assert len(note.images) == 4
    assert not any(one.kind == "leak" for one in dataset.findings)


@pytest.mark.parametrize("count", [700, 2500])
def test_near_duplicates_are_found_among_many(count: int) -> None:
    random = np.random.default_rng(0)
    soft = random.integers(0, 256, (count, 6, 6)).astype(np.uint8)
    thumbs = np.stack([cv2.resize(one, (24, 24), interpolation=cv2.INTER_CUBIC) for one in soft])
    first, second = random.permutation(count)[:200].reshape(2, 100)
    thumbs[second] = np.clip(thumbs[first] * 0.9 + random.normal(8, 2, (100, 24, 24)), 0, 255)
    together = near_duplicates(count, lambda places: np.repeat(thumbs[places, :, :, None], 3, axis=-1))
    assert (together[first] == together[second]).sum() >= 99
    assert len(set(together.tolist())) <= count - 99
    assert np.bincount(together).max() == 2


def test_objects_that_differ_in_colour_alone_are_not_near_duplicates(tmp_path: Path, load: Load) -> None:
    make_data(tmp_path)
    for label, colour in (("a", (40, 40, 200)), ("b", (200, 40, 40))):
        image = scene(500)
        image[20:60, 30:70] = colour
        write(tmp_path / label / "object.jpg", image)
        write(tmp_path / label / "again.jpg", image, quality=60)
    notes = [one for one in load(tmp_path).findings if one.kind == "near-duplicates"]
    assert [set(pair) for note in notes for pair in note.images] == [
        {f"{label}/object.jpg", f"{label}/again.jpg"} for label in ("a", "b")
    ]


def test_near_duplicates_in_given_splits_are_reported_as_leaks(tmp_path: Path, load: Load) -> None:
    given_splits(tmp_path)
    for place, (name, image) in enumerate(changed(scene(30_000)).items()):
        write(tmp_path / f"train/a/leak {name}.jpg", image, quality=80 + place)
    dataset = load(tmp_path)
    note = finding(dataset, "leak")
    assert note.message.startswith("1 image for validation or testing and 5 for training are near duplicates")
    assert note.images[0][0] == "test/a/000.jpg"
    assert note.images[0][1].startswith("train/a/leak")


def test_parts_of_one_texture_and_dark_frames_are_not_near_duplicates(
    areas: dict[str, dict[str, Pixels]], tmp_path: Path, load: Load
) -> None:
    random = np.random.default_rng(3)
    for label in ("brick", "grass", "gravel"):
        area = areas[label]["train"]
        side = min(area.shape[:2]) // 4
        for number, (row, column) in enumerate(np.ndindex(area.shape[0] // side, area.shape[1] // side)):
            part = area[row * side : (row + 1) * side, column * side : (column + 1) * side]
            write(tmp_path / label / f"{number:02d}.jpg", np.ascontiguousarray(part))
    for number in range(20):
        dark = random.normal(3, 2, (90, 120, 3))
        write(tmp_path / "dark" / f"{number:02d}.png", np.clip(dark, 0, 255).astype(np.uint8))
    dataset = load(tmp_path)
    assert len(dataset.photos) > 60
    assert [one for one in dataset.findings if one.kind == "near-duplicates"] == []


def test_a_fixed_cameras_images_are_split_one_by_one_and_it_is_said(tmp_path: Path, load: Load) -> None:
    make_data(tmp_path, each=12)
    still = scene(99).astype(np.float32)
    random = np.random.default_rng(0)
    for number in range(30):
        frame = np.clip(still * random.uniform(0.9, 1.1) + random.normal(0, 3, still.shape), 0, 255)
        write(tmp_path / f"still/{number:02d}.jpg", frame.astype(np.uint8))
    dataset = load(tmp_path)
    counts = Counter(photo.split for photo in dataset.photos if photo.label == "still")
    assert counts == {"train": 22, "val": 4, "test": 4}
    assert "class 'still': nearly all images are near duplicates" in finding(dataset, "groups").message
    assert not any(photo.group for photo in dataset.photos)
    assert not any(one.kind == "leak" for one in dataset.findings)


def test_near_duplicates_with_different_labels_are_pointed_out(tmp_path: Path, load: Load) -> None:
    make_data(tmp_path)
    write(tmp_path / "b/odd.jpg", scene(3), quality=60)
    notes = [one for one in load(tmp_path).findings if one.kind == "near-duplicates"]
    assert len(notes) == 1
    assert "more than one class" in notes[0].message
    assert set(notes[0].images[0]) == {"a/003.jpg", "b/odd.jpg"}


# --- groups and splits ---


def photo_list(counts: list[list[int]]) -> list[Photo]:
    """Photos by class and group size."""
    return [
        Photo(
            f"{label}/{group}/{i}.jpg",
            f"c{label}",
            "",
            hashlib.sha256(f"{label} {group} {i}".encode()).hexdigest(),
            f"{label}-{group}",
        )
        for label, sizes in enumerate(counts)
        for group, size in enumerate(sizes)
        for i in range(size)
    ]


unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Machines are shared; how long an example takes says nothing."""


def split_of(photos: list[Photo], frozen: dict[str, str] | None = None) -> list[Photo]:
    return split_photos(photos, same([photo.group or photo.sha256 for photo in photos]), frozen=frozen or {})


@unhurried
@given(counts=st.lists(st.integers(5, 60), min_size=2, max_size=6))
def test_splits_are_stratified_and_depend_on_content_alone(counts: list[int]) -> None:
    photos = photo_list([[1] * count for count in counts])
    split = {photo.sha256: photo.split for photo in split_of(photos)}
    again = {photo.sha256: photo.split for photo in split_of(photos[::-1])}
    assert split == again
    for label, count in enumerate(counts):
        members = sorted(photo.sha256 for photo in photos if photo.label == f"c{label}")
        found = Counter(split[sha256] for sha256 in members)
        assert set(found) == set(SPLITS)
        assert found["test"] == found["val"] == max(1, round(0.15 * count))
        assert {split[sha256] for sha256 in members[: found["test"]]} == {"test"}


@unhurried
@given(counts=st.lists(st.lists(st.integers(1, 6), min_size=3, max_size=40), min_size=2, max_size=5))
def test_groups_never_straddle_splits_and_every_class_is_in_each(counts: list[list[int]]) -> None:
    photos = split_of(photo_list(counts))
    of_group = defaultdict(set)
    for photo in photos:
        of_group[photo.group].add(photo.split)
    assert all(len(splits) == 1 for splits in of_group.values())
    for label, sizes in enumerate(counts):
        found = Counter(photo.split for photo in photos if photo.label == f"c{label}")
        assert set(found) == set(SPLITS)
        for split in ("test", "val"):
            wanted = max(1, round(0.15 * sum(sizes)))
            # One group over where none is small enough; under only where none that is left would fit.
            assert found[split] <= max(wanted, *sizes)
            assert found[split] > wanted - max(sizes) or len(sizes) <= 4


@unhurried
@given(data=st.data())
def test_groups_of_several_classes_never_straddle_either(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 4))
    members = data.draw(
        st.lists(st.lists(st.integers(0, classes - 1), min_size=1, max_size=8), min_size=6, max_size=15)
    )
    photos = [
        Photo(f"{g}/{i}.jpg", f"c{label}", "", hashlib.sha256(f"{g} {i}".encode()).hexdigest(), f"g{g}")
        for g, labels in enumerate(members)
        for i, label in enumerate(labels)
    ]
    try:
        split = split_of(photos)
    except DataError as error:
        assert "cannot be split" in str(error)  # noqa: PT017  either is right; hypothesis finds both
        return
    assert all(len({photo.split for photo in split if photo.group == f"g{g}"}) == 1 for g in range(len(members)))
    for label in {photo.label for photo in photos}:
        assert {photo.split for photo in split if photo.label == label} == set(SPLITS)


def test_days_that_hold_all_classes_can_be_groups() -> None:
    photos = [
        Photo(f"{day}/{label}{i}.jpg", label, "", hashlib.sha256(f"{day}{label}{i}".encode()).hexdigest(), day)
        for day in ("mon", "tue", "wed", "thu", "fri")
        for label in ("a", "b", "c", "d", "e", "f")
        for i in range(4)
    ]
    found = Counter(photo.split for photo in split_of(photos))
    assert found == {"train": 72, "val": 24, "test": 24}


def test_a_group_that_is_nearly_a_whole_class_trains() -> None:
    for order in ([98, 1, 1], [1, 98, 1], [1, 1, 98]):
        assert Counter(photo.split for photo in split_of(photo_list([order]))) == {"train": 98, "val": 1, "test": 1}


def test_a_class_that_comes_away_empty_chooses_before_the_others() -> None:
    members = [[2], [0], [0, 0, 3], [2, 3, 0], [3, 2, 2]]
    photos = [
        Photo(f"{g}/{i}.jpg", f"c{label}", "", hashlib.sha256(f"{g} {i}".encode()).hexdigest(), f"g{g}")
        for g, labels in enumerate(members)
        for i, label in enumerate(labels)
    ]
    found = split_of(photos)
    for label in ("c0", "c2", "c3"):
        assert {photo.split for photo in found if photo.label == label} == set(SPLITS)


def test_new_images_of_a_group_that_is_apart_already_go_where_most_of_it_is() -> None:
    photos = photo_list([[6, 2, 2, 2]])
    frozen = {photo.sha256: split for photo, split in zip(photos, ("test", "val", "val", "train"), strict=False)}
    found = split_of(photos, frozen)
    assert [photo.split for photo in found[:6]] == ["test", "val", "val", "train", "val", "val"]


@unhurried
@given(data=st.data())
def test_frozen_images_keep_their_split_and_their_group_follows(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.lists(st.integers(1, 4), min_size=3, max_size=12), min_size=2, max_size=3))
    photos = photo_list(counts)
    before = {photo.sha256: photo.split for photo in split_of(photos)}
    known = data.draw(st.sets(st.sampled_from(sorted(before))))
    frozen = {sha256: before[sha256] for sha256 in known}
    try:
        after = split_of(photos, frozen)
    except DataError:
        return
    groups = defaultdict(set)
    for photo in after:
        if photo.sha256 in frozen:
            assert photo.split == frozen[photo.sha256]
        groups[photo.group].add(photo.split)
    assert all(len(splits) == 1 for splits in groups.values())


def test_new_images_join_a_frozen_split(tmp_path: Path, load: Load) -> None:
    make_data(tmp_path, each=20)
    first = load(tmp_path)
    frozen = {photo.sha256: photo.split for photo in first.photos}
    tested = next(photo for photo in first.photos if photo.split == "test")
    write(tmp_path / "a/new like one tested.jpg", scene(int(tested.path[-7:-4]) + 1000 * (tested.label == "b")), 50)
    for number in range(40):
        write(tmp_path / f"b/new{number}.jpg", scene(7000 + number))
    label = tested.label
    (tmp_path / "a/new like one tested.jpg").rename(tmp_path / label / "new like one tested.jpg")
    second = load(tmp_path, frozen=frozen)
    for photo in second.photos:
        if photo.sha256 in frozen:
            assert photo.split == frozen[photo.sha256]
    assert by_path(second)[f"{label}/new like one tested.jpg"].split == "test"
    tests = Counter(photo.label for photo in second.photos if photo.split == "test")
    assert tests["b"] >= 9
    with pytest.raises(DataError, match="the earlier split names dev"):
        load(tmp_path, frozen={"0" * 64: "dev"})


def test_a_frozen_test_image_never_trains_whatever_its_folder_says(tmp_path: Path, load: Load) -> None:
    given_splits(tmp_path)
    tested = next(photo for photo in load(tmp_path).photos if photo.split == "train")
    dataset = load(tmp_path, frozen={tested.sha256: "test"})
    assert by_path(dataset)[tested.path].split == "test"


def test_groups_can_be_read_from_names(tmp_path: Path, load: Load) -> None:
    for label in "ab":
        for burst in range(8):
            for number in range(3):
                seed = 100 * burst + number + 5000 * (label == "b")
                write(tmp_path / label / f"{label}burst{burst}_{number}.jpg", scene(seed))
    dataset = load(tmp_path, group_by=r"([ab]burst\d)")
    groups = defaultdict(set)
    for photo in dataset.photos:
        groups[photo.group].add(photo.split)
    assert sorted(groups) == sorted(f"{label}burst{burst}" for label in "ab" for burst in range(8))
    assert all(len(splits) == 1 for splits in groups.values())
    assert {photo.group for photo in load(tmp_path, group_by=r"burst\d").photos} == {f"burst{i}" for i in range(8)}
    assert not any(photo.group for photo in load(tmp_path, group_by="nothing like it").photos)
    with pytest.raises(ConfigError, match="not a regular expression"):
        load(tmp_path, group_by="(")


def test_groups_from_names_do_not_override_those_of_a_list(listing: Listing, load: Load) -> None:
    rows = [f"{row},g{i}" for i, row in enumerate(ROWS)]
    with pytest.raises(ConfigError, match="groups already"):
        load(listing(*rows, header="path,label,group"), group_by="p")


def test_classes_with_fewer_than_three_groups_are_all_named(listing: Listing, refusal: Refusal) -> None:
    rows = [f"p/{i}.jpg,{'ab'[i % 2]},g{i % 4}" for i in range(20)]
    said = refusal(listing(*rows, header="path,label,group"))
    assert "class 'a' has 2 groups; class 'b' has 2 groups" in said


def test_groups_across_given_splits_are_reported(listing: Listing, load: Load) -> None:
    rows = [f"p/{i}.jpg,{'ab'[i % 2]},g{i // 4},{SPLITS[i // 2 % 3]}" for i in range(20)]
    note = finding(load(listing(*rows, header="path,label,group,split")), "leak")
    assert "one group in different splits" in note.message


def test_groups_that_leave_little_to_test_with_are_reported(listing: Listing, load: Load) -> None:
    sizes = {"a": ["day1"] * 8 + ["day2", "day3"], "b": [f"day{i}" for i in range(4, 14)]}
    rows = [f"p/{i}.jpg,{'ab'[i // 10]},{sizes['ab'[i // 10]][i % 10]}" for i in range(20)]
    found = load(listing(*rows, header="path,label,group")).findings
    assert not any(one.kind == "groups" for one in found)  # one of a share of two is still half of it
    for number in range(20, 40):
        write(data_root(listing()) / f"p/{number}.jpg", scene(number))
    rows += [f"p/{i}.jpg,a,day1" for i in range(20, 40)]
    note = finding(load(listing(*rows, header="path,label,group")), "groups")
    assert "class 'a' 1 of 30 images" in note.message


def test_a_users_group_keeps_its_name_beside_near_duplicates(listing: Listing, load: Load) -> None:
    path = listing(*ROWS)
    write(path.parent / "p/again.jpg", scene(0), quality=60)
    rows = [f"{row},{'mine' if i == 0 else ''}" for i, row in enumerate(ROWS)]
    photos = by_path(load(listing(*rows, "p/again.jpg,a,", header="path,label,group")))
    assert photos["p/0.jpg"].group == "mine"
    assert photos["p/again.jpg"].group.startswith("near:")
    assert photos["p/0.jpg"].split == photos["p/again.jpg"].split


def test_near_duplicates_join_groups() -> None:
    photos = photo_list([[2, 2, 2, 2], [2, 2, 2, 2]])
    similar = np.arange(len(photos))
    similar[2] = 0  # the first image of group 0-1 resembles that of 0-0
    groups = find_groups(photos, similar)
    assert len(set(groups.together[:4])) == 1
    assert len(set(groups.together)) == 7


# --- what else is said ---


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


# --- labels that look wrong ---


def clusters(per_class: list[int], seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp], list[Photo]]:
    """Features around a centre for each class, their classes, and photos to go with them."""
    random = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(per_class)), per_class)
    centres = random.normal(size=(len(per_class), 200))
    features = centres[truth] * 0.5 + random.normal(size=(len(truth), 200))
    photos = [Photo(f"{i}.jpg", str(label), "train", f"{i:064x}") for i, label in enumerate(truth)]
    return features.astype(np.float32), truth, photos


def test_flipped_labels_are_found_with_few_false_alarms() -> None:
    features, truth, photos = clusters([60, 100, 150, 80], 0)
    random = np.random.default_rng(1)
    flipped = random.permutation(len(truth))[:20]
    wrong = truth.copy()
    wrong[flipped] = (wrong[flipped] + random.integers(1, 4, 20)) % 4
    note = suspicious_labels(features, wrong, photos, "abcd", seed=0)
    assert note is not None
    assert int(note.message.split()[0]) == len(note.images)
    shown = {int(path.removesuffix(".jpg")) for (path,) in note.images}
    assert len(shown & set(flipped.tolist())) >= 17
    assert len(shown - set(flipped.tolist())) <= 3


def test_the_least_believable_label_comes_first() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.7, 0.3], [0.02, 0.98], [0.1, 0.9], [0.3, 0.7]])
    places, meant = confident_errors(scores, np.array([0, 0, 0, 1, 0, 1, 1]))
    assert places.tolist() == [4, 2, 3]
    assert meant.tolist() == [1, 1, 0]


def test_right_labels_are_left_alone() -> None:
    features, truth, photos = clusters([60, 100, 150, 80], 2)
    note = suspicious_labels(features, truth, photos, "abcd", seed=0)
    assert note is None or int(note.message.split()[0]) <= 4


def test_labels_that_mean_nothing_are_called_mixed_up() -> None:
    features, truth, photos = clusters([100, 100], 3)
    shuffled = np.random.default_rng(0).permutation(truth)
    note = suspicious_labels(features, shuffled, photos, "ab", seed=0)
    assert note is not None
    assert "hard to tell apart" in note.message


@pytest.mark.parametrize("counts", [[5, 5], [2, 2], [1, 5], [6], [5, 0, 5]])
def test_few_images_are_judged_or_left_alone(counts: list[int]) -> None:
    features, truth, photos = clusters(counts, 4)
    note = suspicious_labels(features, truth, photos, "abc", seed=0)
    assert note is None or isinstance(note, Finding)


def test_a_wrong_burst_does_not_vouch_for_itself() -> None:
    features, truth, photos = clusters([60, 60], 5)
    wrong = truth.copy()
    wrong[:10] = 1
    features[:10] = features[0] + np.random.default_rng(0).normal(size=(10, 200)) * 0.05
    burst = [Photo(p.path, p.label, p.split, p.sha256, "burst" if i < 10 else "") for i, p in enumerate(photos)]
    note = suspicious_labels(features, wrong, burst, "ab", seed=0)
    assert note is not None
    assert {f"{i}.jpg" for i in range(10)} <= {path for (path,) in note.images}


def test_a_large_set_is_sampled_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.label_errors.MAX_IMAGES", 100)
    features, truth, photos = clusters([300, 300], 6)
    wrong = truth.copy()
    wrong[::10] = 1 - wrong[::10]
    one = suspicious_labels(features, wrong, photos, "ab", seed=0)
    assert one is not None
    assert "of 600 labels (100 were checked)" in one.message
    assert one == suspicious_labels(features, wrong, photos, "ab", seed=0)
