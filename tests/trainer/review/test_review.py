"""Captured frames to labels: what lies in a folder, the log of decisions, what is asked first, and the page's HTTP."""

from __future__ import annotations

import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.errors import DataError
from edge_agent.images import decode_image
from edge_agent.preprocessing import Pixels
from trainer.active_learning.annotations import LOG, Annotation, Annotations
from trainer.active_learning.captured_frames import find_frames
from trainer.active_learning.embeddings import embed, load_network
from trainer.active_learning.feature_space import build_space, distances_to_known
from trainer.active_learning.label_forecast import forecast_labels
from trainer.active_learning.ranking import fit_head, propose, uncertainty
from trainer.data import find_photos
from trainer.review.filters import FrameFilter
from trainer.review.session import Session

from ...conftest import CLASSES, QUIET, Run, find_free_port, wait_until
from ...support.captured import hash_of, keep
from ...support.processes import interruptible

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


# --- the log of decisions ---


def label(sha256: str, name: str, by: str = "") -> Annotation:
    return Annotation(sha256=sha256, verdict="label", label=name, by=by)


def test_a_decision_is_on_the_disk_when_it_is_made_and_others_take_it_in(tmp_path: Path) -> None:
    mine, yours = Annotations(tmp_path), Annotations(tmp_path)
    mine.add([label(A, "robin", "anna")])
    assert json.loads((tmp_path / LOG).read_text())["label"] == "robin"
    assert [one.label for one in yours.refresh()] == ["robin"]
    yours.add([label(A, "wren", "ben"), Annotation(sha256=B, verdict="none")])
    mine.refresh()
    assert mine.latest[A].label == "wren"
    assert mine.latest[B].verdict == "none"
    assert {one.by for one in mine.disputed[A]} == {"anna", "ben"}


def test_who_thinks_again_disputes_nothing_and_an_open_frame_is_undisputed(tmp_path: Path) -> None:
    log = Annotations(tmp_path)
    log.add([label(A, "robin", "anna"), label(A, "wren", "anna")])
    assert not log.disputed
    log.add([label(A, "robin", "ben"), Annotation(sha256=A, verdict="open", by="ben")])
    assert not log.disputed
    assert log.latest[A].verdict == "open"


def test_a_line_that_was_not_finished_costs_nothing_but_itself(tmp_path: Path) -> None:
    Annotations(tmp_path).add([label(A, "robin")])
    with (tmp_path / LOG).open("ab") as file:
        file.write(b'{"v":1,"sha256":"bbbb')
    log = Annotations(tmp_path)
    assert (log.count, log.problems) == (1, [])  # it may be under way
    log.add([label(C, "wren")])
    assert set(log.latest) == {A, C}
    assert set(Annotations(tmp_path).latest) == {A, C}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{}", "sha256"),
        ("not json", "malformed"),
        ('{"v":1,"sha256":"zz","verdict":"label","label":"robin"}', "sha256"),
        (f'{{"v":1,"sha256":"{B}","verdict":"lable","label":"robin"}}', "verdict"),
        (f'{{"v":1,"sha256":"{B}","verdict":"label"}}', "label"),
        (f'{{"v":1,"sha256":"{B}","verdict":"label","label":"a\\u0007b"}}', "label"),
        (f'{{"v":1,"sha256":"{B}","verdict":"none","label":"robin"}}', "only valid with the verdict"),
        (f'{{"v":9,"sha256":"{B}","verdict":"none"}}', "v"),
        ("\xff\xfe", "UTF|utf|malformed"),
    ],
)
def test_a_line_edited_wrongly_is_named_and_stays_and_the_others_count(tmp_path: Path, line: str, said: str) -> None:
    log = Annotations(tmp_path)
    log.add([label(A, "robin")])
    text = (tmp_path / LOG).read_bytes() + line.encode("latin-1") + b"\n"
    (tmp_path / LOG).write_bytes(text)
    log = Annotations(tmp_path)
    log.add([label(C, "wren")])
    assert set(log.latest) == {A, C}
    (problem,) = log.problems
    assert f"{LOG}, line 2: " in problem
    assert pytest.importorskip("re").search(said, problem)
    assert (tmp_path / LOG).read_bytes().startswith(text)


def test_a_log_that_somebody_replaced_is_read_again(tmp_path: Path) -> None:
    log = Annotations(tmp_path)
    log.add([label(A, "robin"), label(B, "wren")])
    lines = (tmp_path / LOG).read_bytes().splitlines(keepends=True)
    (tmp_path / "edited").write_bytes(lines[1])
    (tmp_path / "edited").rename(tmp_path / LOG)
    log.refresh()
    assert set(log.latest) == {B}
    (tmp_path / LOG).unlink()
    log.refresh()
    assert not log.latest


def test_a_disk_that_takes_half_a_decision_has_taken_none(tmp_path: Path) -> None:
    log = Annotations(tmp_path)
    log.add([label(A, "robin")])
    before = (tmp_path / LOG).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            log.add([label(B, "wren")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / LOG).read_bytes() == before
    assert set(log.latest) == {A}
    log.add([label(B, "wren")])
    assert set(Annotations(tmp_path).latest) == {A, B}


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([A, B, C]), st.sampled_from(["robin", "wren", "crow"]))))
def test_people_who_decide_at_the_same_time_end_with_the_same_labels(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[int, str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    people = [Annotations(folder) for _ in range(4)]

    def work(person: int) -> None:
        for who, sha256, name in made:
            if who == person:
                people[person].add([label(sha256, name, str(person))])

    threads = [threading.Thread(target=work, args=(person,)) for person in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in people:
        one.refresh()
    assert all(one.latest == people[0].latest and one.count == len(made) for one in people)
    assert len((folder / LOG).read_bytes().splitlines()) == len(made) if made else not (folder / LOG).exists()


# --- what lies in a folder ---


def noise(count: int, seed: int = 0) -> list[Pixels]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 255, (64, 80, 3), np.uint8) for _ in range(count)]


def test_frames_are_what_the_device_wrote_of_them(tmp_path: Path) -> None:
    keep(tmp_path / "pi", noise(3), ["robin", "wren", "robin"], classes=["robin", "wren"])
    found = find_frames(tmp_path)
    assert not found.problems
    assert [frame.guess for frame in found.frames] == ["robin", "wren", "robin"]
    first = found.frames[0]
    assert (first.device, first.camera, first.reason, first.model) == ("porch-pi", "door", "uncertain", "ground 1")
    assert first.sha256 == hash_of(tmp_path / first.path)


def test_what_is_wrong_with_a_folder_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    keep(tmp_path, noise(4), ["robin"] * 4, classes=["robin", "wren"])
    images = sorted(tmp_path.rglob("*.jpg"))
    images[0].with_suffix(".json").write_text('{"v": 1, "dev')  # damaged
    images[1].with_suffix(".json").unlink()  # none: any image may be labelled
    images[2].unlink()  # missing
    (tmp_path / "copy.jpg").write_bytes(images[3].read_bytes())
    (tmp_path / ".hidden.jpg").write_bytes(b"x")
    found = find_frames(tmp_path)
    assert {frame.path for frame in found.frames if not frame.device} >= {
        path.relative_to(tmp_path).as_posix() for path in images[:2]
    }
    assert len(found.frames) == 3
    assert len(found.problems) == 2
    assert "damaged" in found.problems[0]
    assert "its image is missing" in found.problems[1]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        find_frames(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        find_frames(tmp_path / "none")


# --- what is asked first ---


def blobs(sizes: list[int], seed: int = 0, spread: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Features in tight heaps, and which heap each is of."""
    random = np.random.default_rng(seed)
    centres = random.normal(0, 1, (len(sizes), 40))
    heap = np.repeat(np.arange(len(sizes)), sizes)
    return (centres[heap] + random.normal(0, spread, (len(heap), 40))).astype(np.float32), heap


def test_frames_that_are_alike_come_together_and_each_heap_once() -> None:
    features, heap = blobs([10] * 8)
    space = build_space(features, np.zeros((0, 40), np.float32))
    nearest = distances_to_known(space.frames, space.known)
    groups = propose(space, np.ones(80, np.float32), nearest, np.ones(80, np.bool_), 8)
    assert all(len(set(heap[group])) == 1 for group in groups)
    assert len({heap[group[0]] for group in groups}) == 8


def test_only_open_frames_are_proposed_each_in_one_group() -> None:
    features, _ = blobs([12, 30, 9])
    space = build_space(features, features[:5])
    is_open = np.random.default_rng(1).random(51) < 0.6
    groups = propose(space, np.ones(51, np.float32), distances_to_known(space.frames, space.known), is_open, 1000)
    proposed = np.concatenate(groups)
    assert sorted(proposed.tolist()) == np.flatnonzero(is_open).tolist()
    assert max(map(len, groups)) <= 24


def test_what_the_model_doubts_and_has_never_seen_comes_first() -> None:
    features, heap = blobs([20, 20, 20])
    space = build_space(features, features[heap == 0])  # the first heap is what it learned from
    for doubtful in (1, 2):
        doubt = np.where(heap == doubtful, 1.0, 0.05).astype(np.float32)
        first, *_ = propose(space, doubt, distances_to_known(space.frames, space.known), np.ones(60, np.bool_), 1)
        assert heap[first[0]] == doubtful
    # As doubtful everywhere, what it never learned from comes before what it did.
    first, *_ = propose(space, np.ones(60, np.float32), distances_to_known(space.frames, space.known), heap != 1, 1)
    assert heap[first[0]] == 2


def test_doubt_is_one_without_two_classes_and_falls_with_the_margin() -> None:
    assert uncertainty(np.ones((3, 1), np.float32)).tolist() == [1, 1, 1]
    scores = np.array([[0.5, 0.5, 0], [0.9, 0.05, 0.05], [0.1, 0.7, 0.2]], np.float32)
    assert uncertainty(scores) == pytest.approx([1, 0.15, 0.5])


def test_asking_in_this_order_finds_every_kind_sooner_than_at_random() -> None:
    sizes = [200, 100, 60, 30, 20, 12, 8, 6, 5, 4]
    features, heap = blobs(sizes, spread=0.6)
    space = build_space(features, np.zeros((0, 40), np.float32))
    everything = np.ones(len(heap), np.bool_)
    groups = propose(
        space, np.ones(len(heap), np.float32), distances_to_known(space.frames, space.known), everything, 15, most=1
    )
    ours = len({heap[group[0]] for group in groups})
    draws = [len(set(heap[np.random.default_rng(seed).choice(len(heap), 15, replace=False)])) for seed in range(50)]
    assert ours >= 9
    assert ours > np.mean(draws) + 2


def test_a_head_knows_the_classes_it_saw_and_gives_the_others_nothing() -> None:
    features, heap = blobs([15, 15, 15])
    head = fit_head(features, np.array([0, 2, 4])[heap])
    assert head is not None
    scores = head.scores(features, 6)
    assert (scores.argmax(axis=1) == np.array([0, 2, 4])[heap]).all()
    assert not scores[:, [1, 3, 5]].any()
    assert fit_head(features[:5], np.zeros(5, np.intp)) is None
    two = fit_head(features[heap < 2], heap[heap < 2])
    assert two is not None
    assert (two.scores(features[heap < 2], 2).argmax(axis=1) == heap[heap < 2]).all()


def test_the_label_forecast_sees_that_labels_helped_and_that_more_would() -> None:
    random = np.random.default_rng(3)
    features, heap = blobs([60] * 6, spread=1.6)
    order = random.permutation(len(heap))
    features, heap = features[order], heap[order]
    guessed = np.where(random.random(len(heap)) < 0.4, heap, 0)
    none = np.zeros((0, 40), np.float32), np.zeros(0, np.intp)
    few = forecast_labels(features[:60], heap[:60], guessed[:60], np.arange(60), none)
    many = forecast_labels(features, heap, guessed, np.arange(len(heap)), none)
    assert few is not None
    assert many is not None
    assert many.now > few.now > (few.before or 0)
    assert few.twice is not None
    assert few.twice.avoided > 0.1
    assert forecast_labels(features[:30], heap[:30], None, np.arange(30), none) is None


# --- a folder under review ---


@pytest.fixture(scope="session")
def scene(areas: dict[str, dict[str, Pixels]]) -> tuple[list[Pixels], list[str]]:
    """Frames of areas that no training saw, darker than it was, in bursts; and what they show."""
    random = np.random.default_rng(8)
    images, shown = [], []
    for burst in range(12):
        name = CLASSES[burst % 3]
        area = areas[name]["video"]
        top, left = (int(random.integers(0, limit - 130)) for limit in area.shape[:2])
        for number in range(5):
            cut = area[top + number : top + number + 120, left : left + 120].astype(np.float32)
            images.append(np.clip(0.6 * cut, 0, 255).astype(np.uint8))
            shown.append(name)
    return images, shown


@pytest.fixture
def folder(scene: tuple[list[Pixels], list[str]], tmp_path: Path) -> Path:
    keep(tmp_path / "captures" / "porch-pi", scene[0], ["brick"] * len(scene[0]), classes=CLASSES)
    return tmp_path / "captures"


def everything(session: Session, client: str = "me", **wanted: Any) -> list[list[dict[str, Any]]]:
    return list(session.groups(client, holding=(), count=50, criteria=FrameFilter(**wanted))["groups"])


def test_a_session_asks_about_every_open_frame_once(folder: Path, run_folder: Path) -> None:
    with Session(folder, run=run_folder, console=QUIET) as session:
        groups = everything(session)
        ids = [frame["id"] for group in groups for frame in group]
        assert len(ids) == len(set(ids)) == 60
        # The guess is the run's, not the device's, which called everything brick.
        network = load_network(run_folder)
        images = [(frame.sha256, folder / frame.path) for frame in session.frames]
        scores = embed(network, images, description="", console=QUIET).scores
        expected = {sha256: network.labels[row.argmax()] for (sha256, _), row in zip(images, scores, strict=True)}
        assert {frame["id"]: frame["guess"] for group in groups for frame in group} == expected
        assert set(expected.values()) != {"brick"}
        assert all(frame["device_guess"] == "brick" for group in groups for frame in group)
        assert everything(session, "you") == []  # they are with the first page
        assert len(everything(session)) == len(groups)  # which may ask again


def test_decisions_survive_and_change_what_is_asked_and_guessed(folder: Path, run_folder: Path) -> None:
    with Session(folder, run=run_folder, console=QUIET) as session:
        first = everything(session)[0]
        session.annotate([frame["id"] for frame in first], "label", "moss", "anna")
        assert "moss" in [one["name"] for one in session.state()["classes"]]
    with Session(folder, run=run_folder, console=QUIET) as session:
        state = session.state()
        assert state["counts"] == {
            "frames": 60, "open": 60 - len(first), "label": len(first), "none": 0, "skip": 0
        }  # fmt: skip
        left = {frame["id"] for group in everything(session) for frame in group}
        assert left.isdisjoint(frame["id"] for frame in first)
        (shown,) = everything(session, status="label", label="moss")
        assert {frame["by"] for frame in shown} == {"anna"}
        # Undone, they are asked about again.
        session.annotate([frame["id"] for frame in first], "open", "", "anna")
        assert len({frame["id"] for group in everything(session) for frame in group}) == 60


def test_what_was_labelled_is_guessed_of_its_likes(folder: Path, run_folder: Path) -> None:
    with Session(folder, run=run_folder, console=QUIET) as session:
        groups = everything(session)
        for number in range(8):
            session.annotate([groups[number][0]["id"]], "label", "moss", "")
        for number in range(8, 12):
            session.annotate([groups[number][0]["id"]], "none", "", "")
        wait_until(
            lambda: {"moss", "none of these"} & {f["guess"] for g in everything(session) for f in g} != set(),
            60,
            "the new class is guessed",
        )


def test_frames_guessed_to_be_none_of_the_classes_stay_so_when_a_class_is_added(folder: Path, run_folder: Path) -> None:
    with Session(folder, run=run_folder, console=QUIET) as session:
        groups = everything(session)
        for number, group in enumerate(groups[:10]):
            session.annotate(
                [frame["id"] for frame in group], "none" if number % 2 else "label", "" if number % 2 else "brick", ""
            )

        def guesses() -> set[str]:
            return {frame["guess"] for group in everything(session) for frame in group}

        wait_until(lambda: "none of these" in guesses(), 60, "a guess that it is none of them")
        before = session.groups("me", holding=(), count=1, criteria=FrameFilter(guess="none of these"))["wanted"]
        session.annotate([everything(session)[0][0]["id"]], "label", "moss", "")
        assert "moss" not in guesses()
        after = session.groups("me", holding=(), count=1, criteria=FrameFilter(guess="none of these"))["wanted"]
        assert before - after in (0, 1)


def test_a_log_replaced_under_the_page_is_what_counts(folder: Path, run_folder: Path) -> None:
    with Session(folder, run=run_folder, console=QUIET) as session:
        ids = [frame["id"] for group in everything(session) for frame in group]
        session.annotate(ids[:3], "label", "brick", "")
        lines = (folder / LOG).read_text().splitlines(keepends=True)
        (folder / "edited").write_text(lines[2] + "".join(line.replace(ids[0], ids[9]) for line in lines[:1]) * 3)
        (folder / "edited").rename(folder / LOG)
        assert session.state()["counts"]["label"] == 2
        left = {frame["id"] for group in everything(session) for frame in group}
        assert set(ids) - left == {ids[2], ids[9]}


def test_frames_are_found_by_camera_day_guess_and_score(folder: Path, run_folder: Path) -> None:
    keep(
        folder / "gate-pi",
        noise(4, seed=3),
        ["grass"] * 4,
        classes=CLASSES,
        camera="gate",
        device="gate-pi",
        start_ns=1_790_000_000_000_000_000,
    )
    with Session(folder, run=run_folder, console=QUIET) as session:

        def count(**wanted: Any) -> int:
            return int(session.groups("me", holding=(), count=1, criteria=FrameFilter(**wanted))["wanted"])

        assert session.state()["cameras"] == ["gate-pi/gate", "porch-pi/door"]
        assert (count(), count(camera="gate-pi/gate")) == (64, 4)
        assert (count(since="2026-09-01"), count(until="2026-09-01")) == (4, 60)
        assert sum(count(guess=name) for name in CLASSES) == 64
        assert count(guess="moss") == 0
        assert count(least=0.5) + count(most=0.4999999) == 64


@pytest.mark.long
def test_two_people_lose_nothing_and_are_told_of_each_other(folder: Path, run_folder: Path) -> None:
    with Session(folder, run=run_folder, console=QUIET) as session, Session(folder, run=None, console=QUIET) as other:
        one = everything(session)[0][0]["id"]
        session.annotate([one], "label", "brick", "anna")
        said = other.annotate([one], "label", "grass", "ben")
        assert said["overridden"] == [{"id": one, "by": "anna", "verdict": "label", "label": "brick"}]
        assert session.state()["disputed"] == 1
        ((shown,),) = everything(session, status="disputed")
        assert (shown["label"], shown["by"]) == ("grass", "ben")
        assert len((folder / LOG).read_text().splitlines()) == 2


def test_captures_of_another_model_and_images_without_a_line_are_reviewed_all_the_same(
    folder: Path, run_folder: Path
) -> None:
    keep(folder / "old", noise(2, seed=5), ["zebra"] * 2, classes=["zebra", "okapi"])
    cv2.imwrite(str(folder / "phone.jpg"), noise(1, seed=6)[0])
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not an image")
    changed = next(iter(sorted((folder / "porch-pi").rglob("*.jpg"))))
    changed.write_bytes(cv2.imencode(".jpg", noise(1, seed=7)[0])[1].tobytes())
    with Session(folder, run=run_folder, console=QUIET, cache=folder.parent / "cache") as session:
        assert len(session.frames) == 62
        assert {frame["guess"] for group in everything(session) for frame in group} <= set(CLASSES)
        assert any("broken.jpg" in problem for problem in session.problems)
        assert any("not the image that was captured" in problem for problem in session.problems)
    with Session(folder, run=None, console=QUIET) as session:  # without a run: what the devices said
        assert {one["name"] for one in session.state()["classes"]} == {*CLASSES, "zebra", "okapi"}


# --- over HTTP, in a process of its own ---


@dataclass
class Server:
    """`edgeloop review`, started as a user does."""

    folder: Path
    arguments: list[str]
    port: int = field(default_factory=find_free_port)
    process: subprocess.Popen[str] | None = None
    printed: Path | None = None

    def start(self) -> None:
        self.printed = self.folder.parent / "printed"
        command = [sys.executable, "-m", "edge_agent.cli", "review", str(self.folder), "--port", str(self.port)]
        with self.printed.open("a") as file:
            self.process = subprocess.Popen(
                interruptible([*command, "--no-open", *self.arguments]),
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        wait_until(self.answers, 90, "the page answers")

    def answers(self) -> bool:
        assert self.process is not None
        assert self.printed is not None
        assert self.process.poll() is None, self.printed.read_text()
        return "label them at" in self.printed.read_text()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        assert self.printed is not None
        self.printed.unlink()

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
            sent = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            answer = response.read()
            kind = response.headers.get("content-type", "")
            return response.status, json.loads(answer) if kind.startswith("application/json") else answer


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Server]:
    server = Server(folder, list(arguments))
    server.start()
    try:
        yield server
    finally:
        assert server.process is not None
        server.process.send_signal(signal.SIGINT)
        try:
            assert server.process.wait(60) == 0
        finally:
            server.process.kill()


@pytest.mark.long
def test_the_page_gives_groups_takes_decisions_and_shows_images(folder: Path, run_folder: Path, edgeloop: Run) -> None:
    with serving(folder, "--run", str(run_folder)) as server:
        assert server.ask("GET", "/")[1].startswith(b"<!doctype html>")
        status, state = server.ask("GET", "/api/state")
        assert (status, state["counts"]["open"]) == (200, 60)
        _, answer = server.ask("POST", "/api/next", {"client": "me", "count": 3})
        group = answer["groups"][0]
        status, jpeg = server.ask("GET", f"/frame/{group[0]['id']}.jpg?side=256")
        assert decode_image(jpeg, "it").shape[:2] == (120, 120)
        ids = [frame["id"] for frame in group]
        assert server.ask("POST", "/api/decide", {"frames": ids, "verdict": "label", "label": "a,b"})[0] == 200
        server.kill()  # not even a moment later
        assert set(Annotations(folder).latest) == set(ids)
        server.start()
        assert server.ask("GET", "/api/state")[1]["counts"]["label"] == len(ids)
        status, text = server.ask("GET", "/labels.csv")
        assert (status, len(text.splitlines())) == (200, len(ids) + 1)
    done = edgeloop("review", folder, "--export", folder.parent / "labels.csv")
    assert (done.code, done.out) == (0, f"wrote {len(ids)} labels for 60 frames to {folder.parent / 'labels.csv'}\n")
    photos = find_photos(folder.parent / "labels.csv")
    assert {photo.label for photo in photos} == {"a,b"}
    assert all((folder.parent / photo.path).is_file() for photo in photos)


@pytest.mark.long
def test_nothing_that_is_sent_stops_the_page_or_decides_anything(folder: Path, run_folder: Path) -> None:
    with serving(folder, "--run", str(run_folder)) as server:
        good = server.ask("POST", "/api/next", {"client": "x"})[1]["groups"][0][0]["id"]
        bodies: list[object] = [
            b"", b"{", b"\xff", [], {"frames": []}, {"frames": [good]}, {"frames": [good], "verdict": "maybe"},
            {"frames": [good], "verdict": "label", "label": ""}, {"frames": [good], "verdict": "label", "label": "\n"},
            {"frames": [good], "verdict": "none", "label": "x"}, {"frames": ["f" * 64], "verdict": "none"},
            {"frames": ["../../etc/passwd"], "verdict": "none"}, {"frames": [good] * 3000, "verdict": "none"},
            {"frames": [good], "verdict": "none", "by": "x" * 101}, {"frames": [good], "verdict": "none", "more": 1},
        ]  # fmt: skip
        for body in bodies:
            status, answer = server.ask("POST", "/api/decide", body)
            assert status == 400, body
            assert "\n" not in answer["error"]
        assert server.ask("POST", "/api/decide", b"x" * 2_000_000)[0] == 413
        for body in ({}, {"client": "x", "count": 0}, {"client": "x", "wanted": {"status": "all"}}):
            assert server.ask("POST", "/api/next", body)[0] == 400
        for path in ("/frame/..%2f..%2fetc%2fpasswd.jpg", f"/frame/{'0' * 64}.jpg"):
            assert server.ask("GET", path)[0] == 404
        assert server.ask("GET", f"/frame/{good}.jpg?side=99999")[0] == 400
        decision = {"frames": [good], "verdict": "none"}
        for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"sec_fetch_site": "cross-site"}):
            assert server.ask("POST", "/api/decide", decision, **headers)[0] in (403, 421)
        assert server.ask("PUT", "/api/decide", decision)[0] == 405
        assert not (folder / LOG).exists()
        assert server.ask("POST", "/api/decide", decision)[0] == 200


@pytest.mark.long
def test_who_is_not_on_this_machine_needs_the_token(folder: Path, run_folder: Path) -> None:
    with serving(folder, "--run", str(run_folder), "--host", "0.0.0.0") as server:
        assert server.printed is not None
        address = next(word for word in server.printed.read_text().split() if "token=" in word)
        token = address.partition("token=")[2]
        assert server.ask("GET", "/api/state")[0] == 401
        assert server.ask("GET", "/?token=wrong")[0] == 401
        assert server.ask("POST", f"/api/decide?token={token}", {})[0] == 401  # in addresses that are opened alone
        assert server.ask("GET", "/api/state", authorization=f"Bearer {token}")[0] == 200
        with closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
            connection.request("GET", f"/?token={token}")
            response = connection.getresponse()
            cookie = response.headers["set-cookie"]
            assert (response.status, response.headers["location"]) == (303, "/")
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert server.ask("GET", "/api/state", cookie=cookie.partition(";")[0])[0] == 200


@pytest.mark.long
@pytest.mark.needs("namespace")
def test_a_full_disk_is_said_and_the_decision_can_be_made_once_there_is_room(folder: Path, run_folder: Path) -> None:
    with serving(folder, "--run", str(run_folder)) as server:
        ids = [group[0]["id"] for group in server.ask("POST", "/api/next", {"client": "x", "count": 3})[1]["groups"]]
        assert server.ask("POST", "/api/decide", {"frames": ids[:1], "verdict": "none"})[0] == 200
        assert server.process is not None
        limit = ["prlimit", "--pid", str(server.process.pid)]
        size = (folder / LOG).stat().st_size
        subprocess.run([*limit, f"--fsize={size + 10}:unlimited"], check=True)
        status, answer = server.ask("POST", "/api/decide", {"frames": ids[1:], "verdict": "none"})
        assert status == 507
        assert "nothing is lost until then" in answer["error"]
        assert (folder / LOG).stat().st_size == size
        subprocess.run([*limit, "--fsize=unlimited"], check=True)
        assert server.ask("POST", "/api/decide", {"frames": ids[1:], "verdict": "none"})[0] == 200
        assert set(Annotations(folder).latest) == set(ids)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none"], "no such folder"),
        (["{folder}", "--run", "none"], "no model.keras in it"),
        (["{folder}", "--port", "{taken}"], "Address already in use; name another --port"),
        (["{folder}", "--export", "{folder}/porch-pi/x.csv"], "the file must be in or above"),
    ],
)
def test_what_cannot_be_reviewed_is_said_in_one_line(
    folder: Path, edgeloop: Run, arguments: list[str], said: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"folder": str(folder), "taken": taken.getsockname()[1]}
        done = edgeloop("review", *(argument.format(**names) for argument in arguments), "--no-open")
    assert done.code in (1, 2)
    assert said in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.slow
def test_what_the_network_saw_is_remembered_and_damage_to_that_is_noticed(
    folder: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.active_learning import embeddings

    asked: list[int] = []
    predict = embeddings.predict

    def counted(network: Any, pixels: Any) -> Any:
        asked.append(len(pixels))
        return predict(network, pixels)

    monkeypatch.setattr(embeddings, "predict", counted)
    network = embeddings.load_network(run_folder)
    images = [(hash_of(path), path) for path in sorted(folder.rglob("*.jpg"))]
    first = embeddings.embed(network, images, description="", console=QUIET, cache=tmp_path)
    assert sum(asked) == 60
    again = embeddings.embed(network, images, description="", console=QUIET, cache=tmp_path)
    assert sum(asked) == 60
    assert (again.features == first.features).all()
    (kept,) = (tmp_path / "sight").iterdir()
    data = bytearray(kept.read_bytes())
    data[100] ^= 1
    kept.write_bytes(bytes(data) + b"half a rec")
    mended = embeddings.embed(network, images, description="", console=QUIET, cache=tmp_path)
    assert sum(asked) == 61
    assert (mended.features == first.features).all()
    assert os.stat(kept).st_mode & 0o077 == 0
