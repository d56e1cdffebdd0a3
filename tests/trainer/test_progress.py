"""Progress of long work: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

import converter.progress
import trainer.progress
from edge_agent import progress_lines
from trainer.evaluation import evaluate
from trainer.pipeline import Reading, train
from trainer.training.recipe import Recipe

from ..conftest import wait_until

BOTH = pytest.mark.parametrize("progress", [trainer.progress, converter.progress], ids=["trainer", "converter"])


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_lines, "INTERVAL_S", 0.002)


def work(progress: ModuleType, console: Console, steps: int = 3) -> None:
    with progress.steps(console, "Fine-tuning", steps) as advance:
        for _ in range(steps):
            advance(detail="epoch 1 of 1")
            time.sleep(0.03)


@BOTH
def test_short_work_prints_nothing_into_a_file(progress: ModuleType) -> None:
    out = io.StringIO()
    work(progress, Console(file=out))
    assert list(progress.track(range(3), "Evaluating", total=3, console=Console(file=out))) == [0, 1, 2]
    assert out.getvalue() == ""


@BOTH
@pytest.mark.usefixtures("often")
def test_long_work_prints_plain_lines_into_a_file(progress: ModuleType) -> None:
    out = io.StringIO()
    with progress.steps(Console(file=out, width=20), "Fine-tuning", 3) as advance:
        wait_until(lambda: "fine-tuning: 0 %, 0 s so far\n" in out.getvalue(), 60, "a line before the first step")
        for _ in range(3):
            advance(detail="epoch 1 of 1")
        last_step = re.compile(r"^fine-tuning: 100 %, epoch 1 of 1, 0 s left$", re.MULTILINE)
        wait_until(lambda: bool(last_step.search(out.getvalue())), 60, "a line after the last step")
    assert re.fullmatch(r"fine-tuning: done in \d+ s", out.getvalue().splitlines()[-1])


@BOTH
@pytest.mark.usefixtures("often")
def test_a_terminal_gets_a_bar_and_no_lines(progress: ModuleType) -> None:
    out = io.StringIO()
    work(progress, Console(file=out, force_terminal=True, force_interactive=True, width=100))
    assert "Fine-tuning, epoch 1 of 1" in out.getvalue()
    assert "100%" in out.getvalue()
    assert "fine-tuning:" not in out.getvalue()


@pytest.mark.long
@pytest.mark.usefixtures("often")
def test_training_and_evaluation_print_lines_for_every_long_stage(photo_folder: Path, tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, width=200)
    recipe = Recipe(image_size=32, fine_tune="top", epochs=2, batch_size=8)
    train(photo_folder, tmp_path / "run", recipe, console=console, reading=Reading(cache=tmp_path / "cache"))
    printed = out.getvalue()
    assert re.search(r"^fine-tuning: \d+ %, epoch 2 of 2, validation [\d.]+ %, .* left$", printed, re.MULTILINE)
    for stage in ("reading images", "computing features", "training the head", "fine-tuning"):
        assert re.search(rf"^{stage}: .* (left|so far)$", printed, re.MULTILINE), stage
    assert "━" not in printed
    evaluate(tmp_path / "run", photo_folder, console=console, everything=True)
    assert re.search(r"^evaluating: \d+ %", out.getvalue(), re.MULTILINE)
