"""Whether a model still fits its scene: what it thinks of its frames, counted, kept, compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.bundle import open_bundle
from edge_agent.monitoring.drift import compare, index, judge
from edge_agent.monitoring.score_counts import (
    BINS,
    FILE,
    KEPT_DAYS,
    DailyScoreCounts,
    ScoreCounter,
    ScoreCounts,
    bin_of,
    since,
    total,
)
from edge_agent.preprocessing import Pixels
from edge_agent.store.model_store import ModelStore

from ...conftest import Mosquitto, Run, Subscriber, wait_until
from ...support.bundles import ONE
from ...support.fleet import agents, fleet

COUNTS = st.lists(st.integers(0, 10_000), min_size=BINS, max_size=BINS)


def around(score: float, frames: int = 1000, spread: float = 0.05, seed: int = 0) -> ScoreCounts:
    """Frames whose highest scores lie about one value."""
    counted = ScoreCounter()
    for value in np.clip(np.random.default_rng(seed).normal(score, spread, frames), 0, 1):
        counted.add("robin", float(value))
    return counted.now()


# --- counting ---


@given(st.floats(0, 1))
def test_every_score_has_its_bin(score: float) -> None:
    place = bin_of(score)
    assert 0 <= place < BINS
    assert place / BINS <= score + 1e-9
    assert score <= (place + 1) / BINS + 1e-9


@given(COUNTS, COUNTS)
def test_what_came_since_and_what_was_there_make_the_whole(one: list[int], other: list[int]) -> None:
    before, more = ScoreCounts(tuple(one), {"a": sum(one)}), ScoreCounts(tuple(other), {"a": sum(other), "b": 1})
    assert since(total([before, more]), before) == ScoreCounts(
        tuple(other), {k: v for k, v in more.labels.items() if v}
    )


def test_days_are_kept_added_to_and_forgotten_after_a_season(tmp_path: Path) -> None:
    days = DailyScoreCounts(tmp_path)
    days.add("ab", "door", around(0.9, 100), day="2026-01-01")
    days.add("ab", "door", around(0.9, 50), day="2026-01-02")
    days.add("ab", "door", around(0.9, 50), day="2026-01-02")
    days.add("cd", "gate", around(0.5, 10), day="2026-01-02")
    days.save()
    again = DailyScoreCounts(tmp_path)
    assert {day: seen.frames for day, seen in again.of("ab")["door"].items()} == {"2026-01-01": 100, "2026-01-02": 100}
    assert list(again.of("cd")) == ["gate"]
    again.add("cd", "gate", around(0.5, 10), day="2080-01-01")  # by a clock that was wrong for once
    again.save()
    assert set(DailyScoreCounts(tmp_path).of("ab")["door"]) == {"2026-01-01", "2026-01-02"}
    for number in range(KEPT_DAYS - 1):
        again.add("cd", "gate", around(0.5, 10), day=f"2026-{3 + number // 28:02d}-{1 + number % 28:02d}")
    again.save()
    assert DailyScoreCounts(tmp_path).of("ab") == {}
    assert len(DailyScoreCounts(tmp_path).of("cd")["gate"]) == KEPT_DAYS


def test_what_is_counted_while_the_clock_is_not_set_belongs_to_the_newest_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = DailyScoreCounts(tmp_path)
    days.add("ab", "door", around(0.9, 100), day="2020-01-02")
    monkeypatch.setattr("edge_agent.monitoring.score_counts.is_clock_set", lambda: False)
    days.add("ab", "door", around(0.9, 50))
    assert {day: seen.frames for day, seen in days.of("ab")["door"].items()} == {"2020-01-02": 150}
    monkeypatch.setattr("edge_agent.monitoring.score_counts.is_clock_set", lambda: True)
    days.add("ab", "door", around(0.9, 50))
    assert len(days.of("ab")["door"]) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"models": {"ab": {"2026-01-01": {"door": {"scores": [1]}}}}}'])
def test_a_damaged_count_is_begun_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    days = DailyScoreCounts(tmp_path)
    assert days.of("ab") == {}
    days.add("ab", "door", around(0.9, 3))
    days.save()
    assert len(DailyScoreCounts(tmp_path).of("ab")["door"]) == 1


# --- comparing ---


@given(COUNTS, COUNTS)
def test_the_index_is_0_of_the_same_and_never_less(one: list[int], other: list[int]) -> None:
    first, second = ScoreCounts(tuple(one)), ScoreCounts(tuple(other))
    assert index(first, first) == 0
    assert index(first, second) == pytest.approx(index(second, first))
    assert index(first, second) >= 0


def test_less_sure_frames_are_drift_and_surer_ones_are_not() -> None:
    assert compare(around(0.9), around(0.6)).drifted
    assert not compare(around(0.6), around(0.9)).drifted
    assert not compare(around(0.9), around(0.88, seed=1)).drifted


def test_a_camera_is_judged_beside_its_test_images_and_its_first_days() -> None:
    test = around(0.9)
    days = {f"2026-01-{day:02d}": around(0.9, 600, seed=day) for day in range(1, 8)}
    fits = judge("door", days, test, threshold=0.6)
    assert (fits.verdict, fits.frames) == ("fits", 1800)
    late = days | {f"2026-02-{day:02d}": around(0.55, 600, seed=day) for day in range(1, 4)}
    drifting = judge("door", late, test, threshold=0.6)
    assert drifting.verdict == "drifting"
    assert drifting.unsure > 0.5
    # Bundles of before do not say how sure they were: then by the first days alone.
    assert judge("door", late, None, threshold=0.6).verdict == "drifting"
    assert judge("door", days, None, threshold=0.6).verdict == "fits"
    few = judge("door", {"2026-01-01": around(0.4, 100)}, test, threshold=0.6)
    assert few.verdict == "too few frames"


# --- on devices ---


@pytest.mark.long
@pytest.mark.needs("mosquitto")
def test_a_device_whose_scene_changed_says_so_and_one_that_sees_the_same_does_not(
    efficientnet_bundle: Path,
    areas: dict[str, dict[str, Pixels]],
    photo_folder: Path,
    mosquitto: Mosquitto,
    subscriber: Subscriber,
    tmp_path: Path,
    edgeloop: Run,
) -> None:
    manifest = open_bundle(efficientnet_bundle).manifest
    seen = manifest.metrics.score_counts
    assert seen is not None
    assert seen.frames == manifest.metrics.images
    # One device sees what it learned; the other all of that at once, dark and blurred.
    scenes = {"same": tmp_path / "same", "other": tmp_path / "other"}
    for folder in scenes.values():
        folder.mkdir()
    mixed = np.mean([areas[name]["video"][:120, :120].astype(np.float32) for name in ("brick", "grass", "stars")], 0)
    for number, path in enumerate(sorted(photo_folder.rglob("*.jpg"))[::5]):
        (scenes["same"] / path.name.replace(".", f"-{number}.")).write_bytes(path.read_bytes())
        blurred = cv2.GaussianBlur(np.roll(0.3 * mixed, 7 * number, axis=1), (0, 0), 3)
        cv2.imwrite(str(scenes["other"] / f"{number}.png"), blurred.astype(np.uint8))
    with fleet(tmp_path, list(scenes)) as devices:
        for name in scenes:
            store = ModelStore(devices.root / name / "var/lib/edgeloop")
            store.install(efficientnet_bundle, signers=None, limits=ONE)
            store.good()

        def drift(*options: object) -> tuple[int, dict[str, dict[str, object]]]:
            command = ["deploy", "drift", "--inventory", devices.inventory(), "-F", devices.ssh_config, "--json"]
            done = edgeloop(*command, *options)
            assert done.err == ""
            return done.code, json.loads(done.out)

        assert drift()[1]["same"]["cameras"] == []
        for name, shown in scenes.items():
            settings = {
                "cameras": {"door": {"source": str(shown), "loop": True, "fps": 60, "frozen_s": 0}},
                "mqtt": {"host": "127.0.0.1", "port": mosquitto.port},
                "threads": 1,
                "health_every_s": 5,
            }
            one = type(devices)(devices.root, [name], devices.ssh_config)
            with agents(one, settings):
                wait_until(lambda: counted(subscriber, name) > 550, 90, f"550 frames of {name}")  # noqa: B023  now
        code, told = drift()
        verdicts = {name: [camera["verdict"] for camera in told[name]["cameras"]] for name in scenes}  # type: ignore[attr-defined]
        assert (code, verdicts) == (1, {"same": ["fits"], "other": ["drifting"]}), told
        table = edgeloop("deploy", "drift", "--inventory", devices.inventory(), "-F", devices.ssh_config)
        assert (table.code, "drifting" in table.out) == (1, True)
        words = edgeloop("drift", "--root", devices.root / "other")
        assert words.code == 1
        assert "door: drifting" in words.out
        assert "on its test images" in words.out


def counted(subscriber: Subscriber, device: str) -> int:
    """Frames that the device's health messages told of."""
    told: list[Any] = [m for m in subscriber.messages("/health") if f"/{device}/" in str(m["topic"])]
    return int(sum(sum(message["payload"]["cameras"]["door"]["scores"]) for message in told))
