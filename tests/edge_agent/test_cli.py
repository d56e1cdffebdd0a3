"""Every kind of bad input: one clear line, exit code 1 or 2, nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from edge_agent.cli import COMMANDS, cli

from ..conftest import IMAGE_SIZE, Run


@pytest.fixture(scope="module")
def image(photo_folder: Path) -> Path:
    return photo_folder / "brick" / "00.jpg"


def test_predict_names_labels_for_people_and_programs(edgeloop: Run, bundle_file: Path, photo_folder: Path) -> None:
    images = [photo_folder / label / "00.jpg" for label in ("brick", "stars")]
    ran = edgeloop("predict", bundle_file, *images)
    assert ran.code == 0
    assert ran.err == ""
    assert [line.split(": ")[1].split()[0] for line in ran.out.splitlines()] == ["brick", "stars"]
    ran = edgeloop("predict", bundle_file, *images, "--json", "--top", 2)
    objects = [json.loads(line) for line in ran.out.splitlines()]
    assert [o["top"][0]["label"] for o in objects] == ["brick", "stars"]
    assert all(len(o["top"]) == 2 for o in objects)


def test_inspect_shows_what_is_inside(edgeloop: Run, bundle_file: Path) -> None:
    ran = edgeloop("inspect", bundle_file)
    assert ran.code == 0
    for said in (
        "ground 1.2",
        "brick, grass, stars",
        f"{IMAGE_SIZE}x{IMAGE_SIZE} rgb, letterbox",
        "uint8",
        "scale 1",
        "model.tflite",
        "recall",
    ):
        assert said in ran.out
    value = json.loads(edgeloop("inspect", bundle_file, "--json").out)
    assert value["labels"] == ["brick", "grass", "stars"]
    assert value["manifest"]["metrics"]["float"]["accuracy"] >= 0.8


def test_predict_refuses_each_bad_image_in_one_line_and_goes_on_with_the_rest(
    edgeloop: Run, bundle_file: Path, image: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.jpg").write_bytes(image.read_bytes()[:900])
    cv2.imwrite(str(tmp_path / "dot.png"), np.zeros((1, 1, 3), np.uint8))
    (tmp_path / "cut.png").write_bytes(cv2.imencode(".png", np.zeros((50, 50, 3), np.uint8))[1].tobytes()[:-20])
    bad = [tmp_path / name for name in ("text.jpg", "cut.jpg", "dot.png", "cut.png", "missing.jpg")]
    ran = edgeloop("predict", bundle_file, *bad, image)
    assert ran.code == 1
    assert len(ran.err.splitlines()) == len(bad)
    for line, path in zip(ran.err.splitlines(), bad, strict=True):
        assert line.startswith(f"edgeloop: {path}: ")
    assert len(ran.out.splitlines()) == 1


def test_names_that_would_steer_the_terminal_are_shown_harmless(
    edgeloop: Run, bundle_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "a\x1b[2Jb.jpg").write_text("no image")
    (tmp_path / "a\nb-1.edgeloop").write_text("no bundle")
    for arguments in (("predict", bundle_file, tmp_path / "a\x1b[2Jb.jpg"), ("inspect", tmp_path / "a\nb-1.edgeloop")):
        ran = edgeloop(*arguments)
        assert ran.code == 1
        assert "\x1b" not in ran.err
        assert ran.line.startswith("edgeloop: ")


def test_deep_and_cmyk_images_are_classified(edgeloop: Run, bundle_file: Path, image: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.open(image).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    pixels = cv2.imread(str(image))
    assert pixels is not None
    cv2.imwrite(str(tmp_path / "deep.png"), pixels.astype(np.uint16) * 257)
    ran = edgeloop("predict", bundle_file, tmp_path / "cmyk.jpg", tmp_path / "deep.png")
    assert ran.code == 0
    assert all(": brick" in line for line in ran.out.splitlines())


@pytest.mark.parametrize("command", ["inspect", "predict"])
def test_a_bundle_with_a_byte_flipped_is_refused(
    edgeloop: Run, bundle_file: Path, image: Path, tmp_path: Path, command: str
) -> None:
    data = bytearray(bundle_file.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x-1.edgeloop").write_bytes(data)
    ran = edgeloop(command, tmp_path / "x-1.edgeloop", *([image] if command == "predict" else []))
    assert ran.code == 1
    assert "damaged" in ran.line
    assert ran.out == ""


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("inspect", "nowhere.edgeloop"), 1, "No such file"),
        (("run", "--config", "nowhere.yaml"), 2, "cannot be read"),
        (("convert", "nowhere", "--out", "x-1.edgeloop"), 1, "not a run directory"),
        (("convert", "nowhere", "--out", "x.zip"), 2, "NAME-VERSION"),
        (("train", "nowhere", "--out", "run"), 1, "no such file or directory"),
        (("demo", "--broker", "host:port:x"), 2, "HOST:PORT"),
        (("demo", "--keep", "full"), 2, "contains files that no demo wrote"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(
    edgeloop: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    ran = edgeloop(*arguments)
    assert ran.code == code
    assert ran.line.startswith("edgeloop: ")
    assert says in ran.line
    assert sorted(os.listdir(tmp_path)) == ["full"]
    assert os.listdir(tmp_path / "full") == ["precious"]


def test_run_refuses_bad_settings_bundles_and_videos_in_one_line(
    edgeloop: Run, tmp_path: Path, bundle_file: Path, free_port: int
) -> None:
    good = (
        f"device: pi\nstate: state\nbundle: {bundle_file}\n"
        f"cameras: {{a: {{source: {tmp_path}/none.avi}}}}\nmqtt: {{port: {free_port}}}\n"
    )
    config = tmp_path / "agent.yaml"
    config.write_text(good.replace("device", "devise"))
    ran = edgeloop("run", "--config", config)
    assert (ran.code, "did you mean 'device'" in ran.line) == (2, True)
    config.write_text(good.replace(str(bundle_file), "none-1.edgeloop"))
    ran = edgeloop("run", "--config", config)
    assert (ran.code, "none-1.edgeloop: not a usable bundle" in ran.line) == (1, True)
    config.write_text(good)
    ran = edgeloop("run", "--config", config)
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith("edgeloop: a: ")
    assert "no such video file" in ran.err.splitlines()[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    runner = CliRunner()
    ran = runner.invoke(cli, [command, "--help"], prog_name="edgeloop")
    assert ran.exit_code == 0
    assert f"Usage: edgeloop {command}" in ran.output
    assert runner.invoke(cli, [command, "--nonsense"], prog_name="edgeloop").exit_code == 2


def test_wrong_use_exits_2_and_an_unknown_command_is_named(edgeloop: Run) -> None:
    ran = edgeloop("nonsense")
    assert ran.code == 2
    assert "No such command 'nonsense'" in ran.err
    assert edgeloop("predict").code == 2
    assert edgeloop("--version").out.startswith("edgeloop, version ")


def test_a_reader_that_goes_away_is_no_crash(bundle_file: Path, photo_folder: Path) -> None:
    import subprocess
    import sys

    images = sorted(str(path) for path in photo_folder.rglob("*.jpg")) * 20
    command = [sys.executable, "-m", "edge_agent.cli", "predict", str(bundle_file), *images]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1


def test_a_camera_that_hangs_while_the_agent_stops_does_not_abort_it(video_file: Path) -> None:
    code = f"""
import threading, time
import cv2
from edge_agent import cli
from edge_agent.cameras.reconnect import READER
def read():
    while True:
        capture = cv2.VideoCapture({str(video_file)!r})
        while capture.read()[0]:
            pass
def run(*arguments, **options):
    for _ in range(3):
        threading.Thread(target=read, name=READER, daemon=True).start()
    time.sleep(0.3)
    print("stopped")
    return 3
cli.cli.main = run
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (3, "stopped\n", "")
