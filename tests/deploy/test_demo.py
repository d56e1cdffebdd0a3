"""`edgeloop demo`, whole, as a new user starts it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from deploy.pipelines.demo.photographs import FRAME, SOURCES, view
from deploy.pipelines.demo.video import write_video
from edge_agent.bundle import open_bundle
from edge_agent.preprocessing import Pixels

from ..conftest import Mosquitto, Subscriber


def demo(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    home = folder / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "COLUMNS": "100"}
    command = [sys.executable, "-m", "edge_agent.cli", "demo", *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=800
    )


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the demo printed, and the directory it kept."""
    folder = tmp_path_factory.mktemp("demo")
    ran = demo(folder, "--keep", folder / "kept")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return ran.stdout, folder / "kept"


@pytest.mark.slow
def test_the_table_has_every_figure(told: tuple[str, Path]) -> None:
    said, kept = told
    table = said.split("Summary")[1]
    float_accuracy, int8_accuracy = (float(x) for x in re.findall(r"accuracy, (?:float|int8)\W+([\d.]+) %", table))
    video = re.search(r"accuracy, video\W+([\d.]+) % of (\d+) classified frames \((\d+) in the video\)", table)
    latency = re.search(r"p50 ([\d.]+) ms, p95 ([\d.]+) ms, p99 ([\d.]+) ms", table)
    assert video is not None
    assert latency is not None
    assert float_accuracy >= 95
    assert int8_accuracy >= float_accuracy - 1
    assert float(video[1]) >= 85
    assert int(video[3]) == 456
    p50, p95, p99 = (float(x) for x in latency.groups())
    assert 0 < p50 <= p95 <= p99
    assert "MB int8" in table
    assert "surfaces-1.edgeloop" in table
    assert open_bundle(kept / "surfaces-1.edgeloop").manifest.metrics.images == 180


@pytest.mark.slow
def test_the_figures_are_those_of_the_parts(told: tuple[str, Path]) -> None:
    said, kept = told
    manifest = open_bundle(kept / "surfaces-1.edgeloop").manifest
    assert f"accuracy, int8  │ {100 * manifest.metrics.model.accuracy:.1f} %" in said
    test = json.loads((kept / "run" / "metrics.json").read_text())["test"]
    assert abs(test["accuracy"] - manifest.metrics.float32.accuracy) < 0.02
    log = (kept / "agent.log").read_text()
    classified = re.search(r"bench: (\d+) of (\d+) frames classified", log)
    assert classified is not None
    assert f"of {classified[1]} classified frames ({classified[2]} in the video)" in said


@pytest.mark.slow
def test_it_names_the_photographs_and_their_licences(told: tuple[str, Path]) -> None:
    said = " ".join(told[0].split())
    for source in SOURCES:
        assert f"{source.label} ({source.credit})" in said


@pytest.mark.slow
def test_everything_is_kept_and_nothing_noisy_is_said(told: tuple[str, Path]) -> None:
    said, kept = told
    assert {"photos", "run", "surfaces-1.edgeloop", "video.avi", "agent.yaml", "agent.log"} <= set(os.listdir(kept))
    for noise in ("TensorFlow Lite", "I0000", "W0000", "WARNING", "Traceback", "\x1b["):
        assert noise not in said


@pytest.mark.long
@pytest.mark.needs("mosquitto")
def test_with_a_broker_of_ones_own_and_nothing_kept_only_the_bundle_stays(
    tmp_path: Path, mosquitto: Mosquitto, subscriber: Subscriber
) -> None:
    ran = demo(tmp_path, "--broker", f"127.0.0.1:{mosquitto.port}", "--seed", 1)
    assert ran.returncode == 0, ran.stderr
    assert {message["payload"]["label"] for message in subscriber.messages("/label")} >= {s.label for s in SOURCES}  # type: ignore[index]
    subscriber.wait_for("/status", "offline")
    assert sorted(os.listdir(tmp_path)) == ["home", "mosquitto", "surfaces-1.edgeloop"]
    assert open_bundle(tmp_path / "surfaces-1.edgeloop").manifest.name == "surfaces"


def test_a_broker_that_is_not_there_is_said_before_any_work(tmp_path: Path, free_port: int) -> None:
    ran = demo(tmp_path, "--broker", f"127.0.0.1:{free_port}")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith(f"edgeloop: the broker at 127.0.0.1:{free_port} cannot be reached")
    assert "Train" not in ran.stdout
    assert os.listdir(tmp_path) == ["home"]


def test_no_area_of_a_photograph_overlaps_another(areas: dict[str, dict[str, Pixels]]) -> None:
    assert set(areas) == {source.label for source in SOURCES}
    for parts in areas.values():
        assert set(parts) == {"train", "val", "test", "video"}
        for one, other in combinations(parts.values(), 2):
            # Exact for views of one array: whether any byte belongs to both.
            assert not np.shares_memory(one, other)


@pytest.mark.slow
def test_the_video_shows_nothing_but_its_own_areas(areas: dict[str, dict[str, Pixels]], tmp_path: Path) -> None:
    """Blacken everything else: the video stays the same to the byte."""
    truth = write_video(tmp_path / "a.avi", areas, seed=0, progress=lambda n, _: n)
    dark = {
        label: {name: area if name == "video" else np.zeros_like(area) for name, area in parts.items()}
        for label, parts in areas.items()
    }
    assert write_video(tmp_path / "b.avi", dark, seed=0, progress=lambda n, _: n) == truth
    assert (tmp_path / "a.avi").read_bytes() == (tmp_path / "b.avi").read_bytes()
    assert len(truth) == 456


def test_a_view_shows_what_lies_at_its_centre() -> None:
    area = np.zeros((200, 300, 3), np.uint8)
    area[90:110, 140:160] = 255
    seen = view(area, centre=(0.5, 0.5), height=60, angle=30)
    assert seen.shape == (*FRAME, 3)
    middle = seen[FRAME[0] // 2 - 10 : FRAME[0] // 2 + 10, FRAME[1] // 2 - 10 : FRAME[1] // 2 + 10]
    assert (middle > 250).all()
    assert not seen[0].any()
