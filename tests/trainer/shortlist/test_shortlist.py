"""The most worthwhile of very many captures: the ranking is the page's, whoever computes it, and nothing is lost."""

from __future__ import annotations

import csv
import errno
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import pytest

from edge_agent.errors import DataError, EdgeloopError, MissingExtraError, ResourceError
from edge_agent.preprocessing import Pixels
from trainer.active_learning.annotations import Annotation, Annotations
from trainer.active_learning.captured_frames import CapturedFrame, find_frames, images_of
from trainer.active_learning.feature_space import build_space, distances_to_known, squared_distances
from trainer.active_learning.ranking import propose, uncertainty
from trainer.shortlist import chunk_tasks
from trainer.shortlist.chunk_tasks import Part
from trainer.shortlist.chunks import CHUNK, Chunk, ChunkEmbeddings, chunks_of, read_embeddings, write_embeddings
from trainer.shortlist.executor import Executor, local_executor, ray_executor
from trainer.shortlist.pipeline import LIST, WORK, Shortlist, make_shortlist
from trainer.shortlist.ranking import Ranking, rank

from ...conftest import CLASSES, QUIET, Run, wait_until
from ...support.captured import keep

HERE = local_executor(QUIET)


# --- the ranking ---


def made_up(
    work: Path, *, chunks: int = 9, learned: int = 10, noise: float = 0.1
) -> tuple[list[Part], np.ndarray, np.ndarray, np.ndarray]:
    """Chunks of frames in bursts, some that are of no use and some settled; with all features, doubts and known."""
    random = np.random.default_rng(3)
    things = random.normal(0, 1, (60, 12))
    wide = random.normal(0, 1, (12, 48))
    parts, features, doubts = [], [], []
    for number in range(chunks):
        count = int(random.integers(20, 90))
        thing = np.repeat(random.integers(0, len(things), count), random.integers(1, 9, count))[:count]
        seen = ((things[thing] + random.normal(0, noise, (count, 12))) @ wide).astype(np.float16)
        scores = random.dirichlet(np.full(4, 0.4), count).astype(np.float32)
        frames = tuple(
            CapturedFrame(f"{number}/{i}", hashlib.sha256(f"{number} {i}".encode()).hexdigest()) for i in range(count)
        )
        write_embeddings(work, str(number), ChunkEmbeddings(frames, seen, scores, np.zeros(count, np.bool_), ()))
        usable = random.random(count) < 0.9
        parts.append(Part(str(number), usable, usable & (random.random(count) < 0.95)))
        features.append(seen.astype(np.float32))
        doubts.append(uncertainty(scores))
    known = ((things[random.integers(0, 10, learned)] + random.normal(0, 0.1, (learned, 12))) @ wide).astype(np.float32)
    return parts, np.concatenate(features), np.concatenate(doubts), known


def by_frame(
    parts: list[Part], features: np.ndarray, doubt: np.ndarray, known: np.ndarray, count: int
) -> list[list[int]]:
    """What the page would propose, all in memory: numbers of each pick and of what is like it."""
    usable = np.flatnonzero(np.concatenate([part.usable for part in parts]))
    free = np.concatenate([part.free for part in parts])[usable]
    space = build_space(features[usable], known)
    nearest = distances_to_known(space.frames, space.known)
    settled = squared_distances(space.frames[~free], space.frames).min(axis=0)
    groups = propose(space, doubt[usable], np.minimum(nearest, settled), free, count, most=len(usable))
    return [usable[group].tolist() for group in groups]


def told(found: Ranking) -> list[list[int]]:
    return [[int(number), *likes.tolist()] for number, likes in zip(found.numbers, found.similar, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("considered", [3, 40, 20_000])
def test_the_ranking_is_the_one_that_the_page_would_give(
    tmp_path: Path, considered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_tasks, "_BLOCK", 4)
    parts, features, doubt, known = made_up(tmp_path)
    wanted = by_frame(parts, features, doubt, known, 25)
    assert max(map(len, wanted)) > 1
    found = rank(tmp_path, parts, known, 25, HERE, considered=considered)
    assert told(found) == wanted
    assert (np.diff(found.worth) <= 0).all()


@pytest.mark.parametrize("considered", [2, 20_000])
def test_frames_of_a_camera_that_stands_still_are_each_picked_once(tmp_path: Path, considered: int) -> None:
    parts, features, doubt, known = made_up(tmp_path, noise=0)
    found = rank(tmp_path, parts, known, 20, HERE, considered=considered)
    assert len(np.unique(features[found.numbers], axis=0)) == len(found.numbers) == 20
    # Which of the same is nearest is a matter of rounding, as is what comes after everything new is picked.
    ours, theirs = told(found), by_frame(parts, features, doubt, known, 20)
    assert [(group[0], set(group)) for group in ours] == [(group[0], set(group)) for group in theirs]


def test_it_ends_when_every_frame_is_a_pick_or_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_tasks, "_BLOCK", 4)
    parts, features, doubt, known = made_up(tmp_path, chunks=3)
    found = rank(tmp_path, parts, known, 10_000, HERE, considered=50)
    assert told(found) == by_frame(parts, features, doubt, known, 10_000)
    free = np.flatnonzero(np.concatenate([part.free for part in parts]))
    assert sorted(number for group in told(found) for number in group) == free.tolist()


def test_nothing_is_picked_where_nothing_may_be_asked(tmp_path: Path) -> None:
    parts, *_, known = made_up(tmp_path, chunks=2)
    settled = [Part(part.name, part.usable, part.usable & False) for part in parts]
    assert told(rank(tmp_path, settled, known, 5, HERE)) == []


# --- several processes ---


@pytest.fixture(scope="module")
def three_workers() -> Iterator[Executor]:
    with ray_executor(QUIET, workers=3) as spread:
        yield spread


@pytest.mark.needs("ray")
def test_three_workers_rank_as_one_process_does_to_the_bit(tmp_path: Path, three_workers: Executor) -> None:
    parts, *_, known = made_up(tmp_path, chunks=30, learned=3000)
    alone = rank(tmp_path, parts, known, 40, HERE, considered=250)
    together = rank(tmp_path, parts, known, 40, three_workers, considered=250)
    assert told(together) == told(alone)
    assert together.worth.tolist() == alone.worth.tolist()


def _who(_item: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def _dies_once(folder: Path, item: int) -> int:
    if item == 5 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def _lacks_keras(item: int) -> int:
    if item == 7:
        raise MissingExtraError("looking", "train", "keras")
    return item


def _divides(item: int) -> float:
    return 1 / (item - 7)


def _loads(folder: Path) -> Callable[[int], int]:
    (folder / str(time.monotonic_ns())).touch()
    return lambda item: item + 1


@pytest.mark.long
@pytest.mark.needs("ray")
def test_the_work_is_done_by_several_processes_that_load_once_each(tmp_path: Path, three_workers: Executor) -> None:
    assert len(set(three_workers(_who, list(range(30)), "")) - {os.getpid()}) > 1
    assert three_workers(partial(_loads, tmp_path), list(range(50)), "", factory=True) == list(range(1, 51))
    assert 1 <= len(list(tmp_path.iterdir())) <= 3


@pytest.mark.needs("ray")
def test_a_worker_that_is_killed_costs_nothing_but_time(tmp_path: Path, three_workers: Executor) -> None:
    assert three_workers(partial(_dies_once, tmp_path), list(range(20)), "") == [item * item for item in range(20)]
    assert (tmp_path / "died").exists()


@pytest.mark.needs("ray")
@pytest.mark.parametrize(
    ("work", "words"),
    [
        (_lacks_keras, "^looking needs the package keras; install it with: .*$"),
        (_divides, "^a worker failed: ZeroDivisionError.*by zero.*; finished work is kept"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_said_in_one_line(
    three_workers: Executor, work: Callable[[int], float], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for done, factory in ((work, False), (partial(work, 7), True)):
        with pytest.raises(EdgeloopError, match=words) as caught:
            three_workers(done, list(range(20)), "", factory=factory)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert three_workers(abs, [-1], "") == [1]


@pytest.mark.needs("ray")
def test_nobody_else_can_reach_the_workers(three_workers: Executor) -> None:
    """Sockets that Ray listens on are loopback's, and what it says there needs a token."""
    assert three_workers(abs, [-1], "") == [1]
    ours = _family(os.getpid())
    listening = [address for process, address in _listening() if process in ours]
    assert len(listening) > 3
    assert set(listening) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def _family(process: int) -> set[int]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, new = {process}, {process}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def _listening() -> Iterator[tuple[int, str]]:
    """Processes and the addresses they listen on."""
    sockets = {}
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                raw = bytes.fromhex(fields[1].partition(":")[0])
                words = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
                sockets[fields[9]] = socket.inet_ntop(family, words)
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith("socket:[") and target[8:-1] in sockets:
            yield int(link.parts[2]), sockets[target[8:-1]]


@pytest.mark.needs("ray")
@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "the cluster 127.0.0.1:1 does not answer: .*refused; give the address that `ray start --head`"),
        ("nonsense", "the cluster nonsense cannot be used: "),
    ],
)
def test_a_cluster_that_is_not_there_is_said_at_once(address: str, words: str) -> None:
    with pytest.raises(ResourceError, match=words), ray_executor(QUIET, workers=None, cluster=address):
        pass


# --- captures ---


@pytest.fixture(scope="module")
def images(areas: dict[str, dict[str, Pixels]]) -> dict[str, list[Pixels]]:
    """Photographs of each class, 14 in two bursts of 7."""
    random = np.random.default_rng(11)
    found: dict[str, list[Pixels]] = {}
    for label in CLASSES:
        area = areas[label]["test"]
        found[label] = []
        for _ in range(2):
            row, column = (int(random.integers(0, side - 90)) for side in area.shape[:2])
            found[label] += [area[row + i : row + i + 80, column + i : column + i + 80] for i in range(7)]
    return found


@pytest.fixture
def store(tmp_path: Path, images: dict[str, list[Pixels]]) -> Path:
    """Captures of two devices, 42 images."""
    store = tmp_path / "store"
    for device, labels in (("porch", CLASSES[:2]), ("gate", CLASSES[2:])):
        frames = [(image, label) for label in labels for image in images[label]]
        (store / device).mkdir(parents=True)
        keep(store / device, *map(list, zip(*frames, strict=True)), classes=CLASSES, device=device)
    return store


def shortlist(store: Path, out: Path, run: Path | None, **given: Any) -> Shortlist:
    chosen = {"count": 5, "similar": 0, "executor": HERE, "console": QUIET, **given}
    return make_shortlist(store, out, run=run, **chosen)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / LIST).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.long
def test_the_list_is_a_folder_to_review_with_what_the_devices_knew(
    store: Path, efficientnet_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made = shortlist(store, out, efficientnet_run, similar=2)
    assert (made.images, made.copies, made.failed, made.labelled, made.picks) == (42, 0, 0, 0, 5)
    assert made.represented >= made.similar > 0
    listed = rows(out)
    assert [row["rank"] for row in listed] == ["1", "2", "3", "4", "5"]
    found = find_frames(out)
    assert len(found.frames) == 5 + made.similar
    assert not found.problems
    by_hash = {frame.sha256: frame for frame in found.frames}
    for row in listed:
        frame = by_hash[row["sha256"]]
        assert frame.path == row["path"]
        assert frame.device in ("porch", "gate")
        assert row["guess"] in CLASSES
        assert 1 / 3 <= float(row["score"]) <= 1
    assert sum(int(row["alike"]) for row in listed) == made.represented
    assert sorted(path.name for path in out.iterdir()) == sorted(
        {".seen", LIST, *(row["path"].split("/")[0] for row in listed)}
        | {frame.path.split("/")[0] for frame in found.frames}
    )


@pytest.mark.slow
def test_what_is_labelled_is_not_asked_again_and_a_second_list_adds_to_the_first(
    store: Path, run_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shortlist(store, out, run_folder, count=3)
    first = [row["sha256"] for row in rows(out)]
    Annotations(out).add(
        [Annotation(sha256=first[0], verdict="label", label="brick"), Annotation(sha256=first[1], verdict="open")]
    )
    Annotations(store).add([Annotation(sha256=first[2], verdict="none")])
    made = shortlist(store, out, run_folder, count=3)
    second = [row["sha256"] for row in rows(out)]
    assert made.labelled == 2
    assert not {first[0], first[2]} & set(second)
    assert {frame.sha256 for frame in find_frames(out).frames} == {*first, *second}


def test_on_another_disk_frames_are_copied_and_a_copy_that_is_broken_off_leaves_none(
    store: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_disk(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def full(_: object, copy: BinaryIO) -> None:
        copy.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "out"
    monkeypatch.setattr(os, "link", other_disk)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(DataError, match="No space left on device; make room"):
            shortlist(store, out, run_folder)
    assert [path for path in out.rglob("*") if path.is_file() and path.parent.name != WORK] == []
    shortlist(store, out, run_folder)
    for row in rows(out):
        assert hashlib.sha256((out / row["path"]).read_bytes()).hexdigest() == row["sha256"]


def test_copies_count_once_and_what_cannot_be_read_is_named(store: Path, run_folder: Path, tmp_path: Path) -> None:
    frames = sorted(store.rglob("*.jpg"))
    (store / "again").mkdir()
    shutil.copy(frames[0], store / "again" / "copy.jpg")
    frames[3].write_bytes(frames[3].read_bytes()[:200])  # not what its line says
    frames[4].with_suffix(".json").write_text("{")
    (store / "again" / "broken.png").write_bytes(b"\x89PNG nothing")
    (store / "again" / "nowhere.jpg").symlink_to("gone.jpg")
    made = shortlist(store, tmp_path / "out", run_folder, count=100)
    assert (made.images, made.copies, made.failed) == (45, 1, 3)
    told = "\n".join(made.problems)
    assert len(made.problems) == 4
    for name in (
        frames[3],
        frames[4].with_suffix(".json"),
        store / "again" / "broken.png",
        store / "again" / "nowhere.jpg",
    ):
        assert str(name) in told
    listed = {row["path"] for row in rows(tmp_path / "out")}
    assert not listed & {frames[3].relative_to(store).as_posix(), "again/broken.png", "again/nowhere.jpg"}
    assert len(listed & {frames[0].relative_to(store).as_posix(), "again/copy.jpg"}) <= 1


@pytest.mark.long
def test_without_a_run_the_frames_are_still_told_apart(store: Path, tmp_path: Path) -> None:
    made = shortlist(store, tmp_path / "out", None, count=4)
    assert made.picks == 4
    assert {(row["guess"], row["score"]) for row in rows(tmp_path / "out")} == {("", "")}


@pytest.mark.parametrize(
    ("folder", "out", "words"),
    [
        ("store", "store/list", "is inside the store or contains it"),
        ("store", ".", "is inside the store or contains it"),
        ("none", "out", "no such folder"),
        ("empty", "out", "no images"),
        ("broken", "out", "none of the 2 images can be read, first: "),
        ("store", "file/out", "cannot be created: Not a directory"),
    ],
)
def test_what_cannot_be_a_store_or_a_list_is_refused(
    folder: str, out: str, words: str, store: Path, run_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "broken" / name).write_bytes(b"\xff\xd8\xff nothing")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=words):
        shortlist(tmp_path / folder, tmp_path / out, run_folder)


# --- what was seen is kept ---


def test_what_was_seen_is_not_looked_at_again_but_what_is_damaged_is(
    store: Path, run_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shortlist(store, out, run_folder)
    before = (out / LIST).read_bytes()
    (kept,) = (out / WORK).glob("*.looked.npz")
    at = kept.stat().st_mtime_ns
    shortlist(store, out, run_folder)
    assert kept.stat().st_mtime_ns == at
    kept.write_bytes(kept.read_bytes()[:-300])
    shortlist(store, out, run_folder)
    assert kept.stat().st_mtime_ns != at
    assert (out / LIST).read_bytes() == before


def chunks(store: Path, key: str = "key") -> list[Chunk]:
    return chunks_of(store, images_of(store), key)


def test_new_images_change_the_chunks_they_fall_into_and_no_others(tmp_path: Path) -> None:
    for number in range(20 * CHUNK):
        (tmp_path / f"{number:06d}.jpg").touch()
    before = chunks(tmp_path)
    assert 10 < len(before) < 40
    assert max(len(chunk.paths) for chunk in before) <= 4 * CHUNK
    assert [path for chunk in before for path in chunk.paths] == [f"{number:06d}.jpg" for number in range(20 * CHUNK)]
    for name in ("000100-1.jpg", "000101-1.jpg", "004000-1.jpg"):
        (tmp_path / name).touch()
    after = chunks(tmp_path)
    assert len({chunk.name for chunk in after} - {chunk.name for chunk in before}) <= 4
    assert not {chunk.name for chunk in chunks(tmp_path, "another")} & {chunk.name for chunk in after}
    os.utime(tmp_path / "000000.jpg", ns=(5, 5))
    assert chunks(tmp_path)[0].name != after[0].name


def test_chunks_that_are_no_more_are_forgotten(store: Path, run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shortlist(store, out, run_folder)
    before = {path.name for path in (out / WORK).iterdir()}
    shutil.rmtree(store / "gate")
    made = shortlist(store, out, run_folder)
    assert made.images == 28
    assert not before & {path.name for path in (out / WORK).iterdir()}


def test_damaged_files_of_what_was_seen_are_not_believed(tmp_path: Path) -> None:
    made_up(tmp_path, chunks=1)
    whole, looked = (tmp_path / "0.looked.npz").read_bytes(), read_embeddings(tmp_path, "0")
    assert looked is not None
    random = np.random.default_rng(0)
    for damaged in (
        b"",
        b"PK",
        whole[:-1],
        whole[: len(whole) // 2],
        whole.replace(b"features", b"futures_"),
        b"\0" * 99,
    ):
        (tmp_path / "0.looked.npz").write_bytes(damaged)
        assert read_embeddings(tmp_path, "0") is None
    write_embeddings(tmp_path, "0", replace(looked, frames=looked.frames[1:]))
    assert read_embeddings(tmp_path, "0") is None
    for _ in range(200):
        mutated = bytearray(whole)
        mutated[int(random.integers(len(whole)))] ^= int(random.integers(1, 256))
        (tmp_path / "0.looked.npz").write_bytes(mutated)
        found = read_embeddings(tmp_path, "0")  # whatever it is, nothing is raised
        assert found is None or len(found.frames) == len(found.features)


# --- as a user starts it ---


@pytest.mark.long
@pytest.mark.needs("ray")
def test_two_workers_killed_half_way_end_with_the_list_of_one_process(
    store: Path, run_folder: Path, tmp_path: Path, edgeloop: Run, images: dict[str, list[Pixels]]
) -> None:
    random = np.random.default_rng(2)
    (store / "many").mkdir()
    for number in range(700):
        image = images[CLASSES[number % 3]][number % 14].astype(np.int16) + random.integers(-20, 20, (80, 80, 3))
        cv2.imwrite(str(store / "many" / f"{number}.png"), np.clip(image, 0, 255).astype(np.uint8))
    alone, together = tmp_path / "alone", tmp_path / "together"
    given = ["--run", run_folder, "--count", 12, "--alike", 1]
    made = shortlist(store, alone, run_folder, count=12, similar=1)
    command = [sys.executable, "-m", "edge_agent.cli", "shortlist", store, *given, "--out", together, "--workers", 2]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        wait_until(lambda: any((together / WORK).glob("*.looked.npz")), 60, "the first chunk")
        running.kill()
    kept = {path.name: path.stat().st_mtime_ns for path in (together / WORK).glob("*.looked.npz")}
    two = edgeloop("shortlist", store, *given, "--out", together, "--workers", 2)
    assert two.code == 0, two.err
    assert not two.err.strip()
    assert (together / LIST).read_bytes() == (alone / LIST).read_bytes()
    for name, at in kept.items():
        assert (together / WORK / name).stat().st_mtime_ns == at
    assert "raylet" not in two.out
    assert two.out.splitlines()[-3:] == [
        f"{made.images} images",
        f"12 selected, {made.represented} more are similar to one of them: {together / LIST}",
        f"next: edgeloop review {together} --run {run_folder}",
    ]
