"""Frames kept for retraining: which, how many, and that the disk survives it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.cameras import ArrayFrame
from edge_agent.cameras.frames import encoded
from edge_agent.cameras.jpeg import JpegFrame
from edge_agent.captures.folder import Capture, Captures, read_capture
from edge_agent.captures.recorder import Budget, Candidate, Recorder, fingerprint, reason
from edge_agent.config import RecordSettings
from edge_agent.messages import ModelId
from edge_agent.preprocessing import Pixels

from ...conftest import NAMESPACE

LABELS = ("brick", "grass", "stars")
MODEL = ModelId("ground", "1", "abc")
SURE, TORN, WEAK = (0.98, 0.01, 0.01), (0.55, 0.42, 0.03), (0.4, 0.1, 0.1)


def image(number: int) -> Pixels:
    """Photographs nobody would take for another: large random patches."""
    patches = np.random.default_rng(number).integers(0, 255, (9, 16, 3), np.uint8)
    return np.asarray(cv2.resize(patches, (320, 180), interpolation=cv2.INTER_CUBIC), np.uint8)


def candidate(
    number: int = 0,
    scores: tuple[float, ...] = WEAK,
    *,
    at: float = 0.0,
    camera: str = "door",
    label: str = "brick",
    changed: bool = False,
) -> Candidate:
    frame = ArrayFrame(image=image(number), seq=number, captured_s=at)
    return Candidate(
        camera=camera,
        frame=frame,
        scores=np.array(scores, np.float32),
        labels=LABELS,
        label=label,
        changed=changed,
        model=MODEL,
        enter=0.7,
    )


def eventually(condition: Callable[[], bool], what: object = "") -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def kept(folder: Path) -> list[Capture]:
    found = [read_capture(line) for line in sorted(folder.glob("*/*.json"))]
    assert all(found)
    return [capture for capture in found if capture is not None]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (candidate(scores=SURE), None),
        (candidate(scores=WEAK), "uncertain"),
        (candidate(scores=TORN), "uncertain"),
        (candidate(scores=(0.75, 0.2, 0.05)), None),
        (candidate(scores=SURE, label="stars"), "disagrees"),
        (candidate(scores=SURE, label="unknown"), None),
        (candidate(scores=SURE, changed=True), "changed"),
    ],
)
def test_a_frame_is_kept_for_a_reason(given: Candidate, expected: str | None) -> None:
    assert reason(given) == expected


@pytest.mark.parametrize("is_set", [True, False])
def test_a_capture_is_the_original_with_all_that_is_known_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_set: bool
) -> None:
    monkeypatch.setattr("edge_agent.captures.recorder.is_clock_set", lambda: is_set)
    data = encoded(image(1))
    frame = JpegFrame(data=data, seq=7, captured_ns=1_769_860_800_123_000_000)
    shown = candidate(1, TORN)
    with Recorder(tmp_path, RecordSettings(min_free_mb=0), "pi") as recorder:
        recorder.offer(Candidate(**{**vars(shown), "frame": frame}))
        eventually(lambda: recorder.health().kept == 1)
    file = tmp_path / "2026-01-31" / "20260131T120000123Z-door-7.jpg"
    assert file.read_bytes() == data
    [capture] = kept(tmp_path)
    assert capture == Capture(
        v=1,
        device="pi",
        camera="door",
        seq=7,
        captured_at="2026-01-31T12:00:00.123Z",
        label="brick",
        scores={"brick": 0.55, "grass": 0.42, "stars": 0.03},
        reason="uncertain",
        model=MODEL,
        width=320,
        height=180,
        sha256=sha256(data).hexdigest(),
        clock=None if is_set else "unset",
        number=1,
    )
    assert file.with_suffix(".json").read_text().count("\n") == 1
    assert os.stat(file).st_mode & 0o007 == 0


def test_near_duplicates_are_passed_over_and_cost_no_budget(
    tmp_path: Path, areas: dict[str, dict[str, Pixels]]
) -> None:
    rng = np.random.default_rng(0)
    scene = cv2.resize(areas["grass"]["video"], (640, 360))
    # A bucket of ten frames: were the like paid for, half of it would soon be gone.
    with Recorder(tmp_path, RecordSettings(per_hour=60, min_free_mb=0), "pi") as recorder:
        for second in range(20):
            noisy = np.clip(scene + rng.normal(0, 4, scene.shape), 0, 255).astype(np.uint8)
            frame = ArrayFrame(image=noisy, seq=second, captured_s=2.0 * second)
            recorder.offer(Candidate(**{**vars(candidate()), "frame": frame}))
            eventually(lambda second=second: sum((recorder.health().kept, recorder.health().skipped)) == second + 1)  # type: ignore[misc]
        assert recorder.health().kept == 1
        for number in range(5):
            recorder.offer(candidate(number, at=41.0 + 2 * number, camera="gate"))
            eventually(lambda number=number: recorder.health().kept == 2 + number)  # type: ignore[misc]


def test_of_one_moment_one_frame_is_looked_at(tmp_path: Path) -> None:
    with Recorder(tmp_path, RecordSettings(per_hour=3600, min_free_mb=0), "pi") as recorder:
        for number in range(10):
            recorder.offer(candidate(number, at=0.05 * number))
            eventually(recorder._queue.empty)
        eventually(lambda: recorder.health().kept == 1)
        recorder.offer(candidate(10, at=2.0))
        eventually(lambda: recorder.health().kept == 2)
    assert [capture.seq for capture in kept(tmp_path)] == [0, 10]


def test_a_disk_that_does_not_take_it_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edge_agent.captures.recorder._RETRY_S", 0.2)
    caplog.set_level("INFO")
    first = candidate(1, at=0.0)
    in_the_way = tmp_path / time.strftime("%Y-%m-%d", time.gmtime(first.frame.captured_ns // 10**9))
    in_the_way.write_text("a file where the day's folder is to be")
    with Recorder(tmp_path, RecordSettings(per_hour=3600, min_free_mb=0), "pi") as recorder:
        recorder.offer(first)
        eventually(lambda: recorder.health().paused is not None)
        assert recorder.health().kept == 0
        in_the_way.unlink()
        for number in range(2, 200):
            recorder.offer(Candidate(**{**vars(first), "frame": shifted(number)}))
            if recorder.health().kept:
                break
            time.sleep(0.05)
        eventually(lambda: recorder.health().paused is None)
    assert kept(tmp_path)
    assert caplog.text.count("recorder: paused") == 1
    assert caplog.text.count("recorder: resumed") == 1


def shifted(number: int) -> ArrayFrame:
    return ArrayFrame(image=image(number), seq=number, captured_s=2.0 * number)


def test_a_frame_that_cannot_be_kept_does_not_end_the_keeping(tmp_path: Path) -> None:
    with Recorder(tmp_path, RecordSettings(per_hour=3600, min_free_mb=0), "pi") as recorder:
        recorder.offer(Candidate(**{**vars(candidate(1)), "labels": ("one too few",)}))
        eventually(lambda: recorder.health().skipped == 1)
        recorder.offer(candidate(2, at=2.0))
        eventually(lambda: recorder.health().kept == 1)


def test_images_that_differ_have_hashes_that_differ() -> None:
    hashes = [fingerprint(image(number)) for number in range(20)]
    assert min((a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]) > 12


@given(
    st.floats(1, 3600),
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["changed", "random"]), st.floats(0, 120)), max_size=300),
)
def test_no_hour_sees_more_than_the_budget_and_what_was_saved_up(
    per_hour: float, wishes: list[tuple[str, str, float]]
) -> None:
    budget, now, drawn = Budget(per_hour), 1000.0, []
    for camera, why, pause in wishes:
        now += pause
        if budget.draw((camera, why), now):
            drawn.append(now)
    for start in drawn:
        assert sum(start <= at < start + 3600 for at in drawn) <= per_hour + budget.capacity + 1


def test_one_flickering_camera_leaves_the_others_their_share() -> None:
    budget, drawn = Budget(60), Counter[str]()
    for second in range(4 * 3600):
        drawn["flicker"] += budget.draw(("flicker", "changed"), float(second))
        if second % 240 == 0:
            drawn["calm"] += budget.draw(("calm", "changed"), float(second))
    assert drawn["calm"] == 60
    assert 120 <= drawn["flicker"] <= 190


def test_ordinary_frames_come_at_random_times(tmp_path: Path) -> None:
    random.seed(1)
    settings = RecordSettings(per_hour=3600, random_every_s=100, min_free_mb=0)
    with Recorder(tmp_path, settings, "pi") as recorder:
        for second in range(0, 2000, 2):
            recorder.offer(candidate(second, SURE, at=float(second)))
            if second % 20 == 0:
                eventually(recorder._queue.empty)
        eventually(recorder._queue.empty)
        count = recorder.health().kept
    assert 8 <= count <= 35
    assert {capture.reason for capture in kept(tmp_path)} == {"random"}


def test_offering_never_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Captures, "keep", lambda *_: time.sleep(3600))
    recorder = Recorder(tmp_path, RecordSettings(per_hour=3600, min_free_mb=0), "pi")
    with recorder:
        start = time.monotonic()
        for number in range(100):
            recorder.offer(candidate(number, at=2.0 * number))
        assert time.monotonic() - start < 60
    assert recorder.health().skipped > 90


def store(captures: Captures, number: int, camera: str, label: str, size: int = 10_000) -> str | None:
    scores = {name: float(name == label) for name in LABELS}
    at = 1_769_860_800_000_000_000 + number * 1_000_000_000
    capture = Capture(1, "pi", camera, number, "", label, scores, "changed", MODEL, 1, 1, "")
    return captures.keep(capture, bytes(size), at)


def test_the_most_frequent_kind_gives_way_first(tmp_path: Path) -> None:
    captures = Captures(tmp_path, max_bytes=210_000, min_free_bytes=0)
    captures.index()
    store(captures, 0, "gate", "stars")
    for number in range(1, 60):
        assert store(captures, number, "door", "brick") is None
    left = Counter((capture.camera, capture.guess) for capture in kept(tmp_path))
    assert left["gate", "stars"] == 1
    assert 15 <= left["door", "brick"] <= 20
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) == captures.size <= 210_000
    last = sorted(capture.seq for capture in kept(tmp_path) if capture.camera == "door")
    assert last == list(range(60 - len(last), 60))  # the oldest went


def test_a_limit_under_a_single_image_keeps_none_and_says_so(tmp_path: Path) -> None:
    captures = Captures(tmp_path, max_bytes=5000, min_free_bytes=0)
    captures.index()
    assert store(captures, 0, "door", "brick") == "record.max_mb is smaller than one image; increase it in agent.yaml"
    assert list(tmp_path.iterdir()) == []


def test_what_was_fetched_meanwhile_makes_room(tmp_path: Path) -> None:
    captures = Captures(tmp_path, max_bytes=100_000, min_free_bytes=0)
    captures.index()
    for number in range(9):
        store(captures, number, "door", "brick")
    for path in sorted(tmp_path.glob("*/*"))[:12]:
        path.unlink()
    store(captures, 9, "door", "brick")
    assert len(kept(tmp_path)) == 4


def test_a_clock_that_was_set_back_overwrites_nothing(tmp_path: Path) -> None:
    captures = Captures(tmp_path, max_bytes=1e9, min_free_bytes=0)
    captures.index()
    for size in (1000, 2000, 3000):
        store(captures, 5, "door", "brick", size)
    assert sorted(path.stat().st_size for path in tmp_path.glob("*/*.jpg")) == [1000, 2000, 3000]


def test_the_oldest_goes_first_whatever_the_clock_said(tmp_path: Path) -> None:
    captures = Captures(tmp_path, max_bytes=210_000, min_free_bytes=0)
    captures.index()
    for number in range(60, 0, -1):  # the clock goes back with each
        store(captures, number, "door", "brick")
    captures = Captures(tmp_path, max_bytes=210_000, min_free_bytes=0)  # after a restart
    captures.index()
    for number in range(200, 210):
        store(captures, number, "door", "brick")
    left = {capture.seq for capture in kept(tmp_path)}
    assert left >= set(range(200, 210))
    assert left - set(range(200, 210)) == set(range(1, len(left) - 9))


def test_the_free_space_asked_for_is_left(tmp_path: Path) -> None:
    free_mb = shutil.disk_usage(tmp_path).free / 1e6
    with Recorder(tmp_path, RecordSettings(min_free_mb=free_mb + 10_000), "pi") as recorder:
        recorder.offer(candidate())
        eventually(lambda: recorder.health().paused is not None)
    assert "min_free_mb" in str(recorder.health().paused)
    assert not kept(tmp_path)


def test_what_an_earlier_process_left_unfinished_is_removed(tmp_path: Path) -> None:
    day = tmp_path / "2026-01-31"
    day.mkdir()
    for name in ("a.jpg", ".b.jpg.x.part", "c.json"):
        (day / name).write_bytes(b"{}")
    with Recorder(tmp_path, RecordSettings(min_free_mb=0), "pi") as recorder:
        recorder.offer(candidate())
        eventually(lambda: recorder.health().kept == 1)
    assert list(day.iterdir()) == []


@pytest.mark.needs("namespace")
def test_a_full_disk_pauses_and_damages_nothing(tmp_path: Path) -> None:
    code = f"""
import sys, os
sys.path.insert(0, {str(Path.cwd())!r})
from pathlib import Path
from tests.edge_agent.captures.test_recorder import store, kept
from edge_agent.captures.folder import Captures
folder = Path({str(tmp_path)!r}) / "disk"
captures = Captures(folder, max_bytes=1e9, min_free_bytes=0)
captures.index()
full = 0
for number in range(100):
    try:
        full += store(captures, number, "door", "brick", 30_000) is not None
    except OSError:
        full += 1
assert full > 50, full
whole = kept(folder)
assert 10 < len(whole) < 40
assert len(list(folder.glob("*/*"))) == 2 * len(whole)
"""
    (tmp_path / "disk").mkdir()
    mounted = f'mount -t tmpfs -o size=1m none "{tmp_path}/disk" && exec "{sys.executable}" -c "$CODE"'
    command = [*NAMESPACE, "sh", "-c", mounted]
    ran = subprocess.run(command, env={**os.environ, "CODE": code}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_whole_captures(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path.cwd())!r})
from pathlib import Path
from tests.edge_agent.captures.test_recorder import store
from edge_agent.captures.folder import Captures
captures = Captures(Path(sys.argv[1]), max_bytes=400_000, min_free_bytes=0)
captures.sweep()
captures.index()
print("ready", flush=True)
number = int(sys.argv[2])
while True:
    number += 1
    store(captures, number, "door", "brick", 20_000)
"""
    chance = random.Random(0)
    for run in range(20):
        command = [sys.executable, "-c", code, str(tmp_path), str(run * 100_000)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
        for line in tmp_path.glob("*/*.json"):
            capture = read_capture(line)
            assert capture is not None
            if line.with_suffix(".jpg").exists():  # else eviction was under way
                assert sha256(line.with_suffix(".jpg").read_bytes()).hexdigest() == capture.sha256
    captures = Captures(tmp_path, max_bytes=400_000, min_free_bytes=0)
    captures.sweep()
    captures.index()
    names = sorted(path.stem for path in tmp_path.glob("*/*"))
    assert names[::2] == names[1::2]
    assert captures.size == sum(path.stat().st_size for path in tmp_path.glob("*/*")) > 0
