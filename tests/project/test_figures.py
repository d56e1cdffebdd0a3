"""Figures of a benchmark are collected, compared with their targets, and written as a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as every
from benchmarks.support.figures import GATHERED, Figure, read_figures, record


@pytest.mark.parametrize(
    ("figure", "target", "reached", "text"),
    [
        (Figure(name="a", value=0.95, at_least=0.95), "at least 0.95", True, "0.95"),
        (Figure(name="a", value=0.949, at_least=0.95), "at least 0.95", False, "0.949"),
        (Figure(name="a", value=1234.5, unit="ms", at_most=1000), "at most 1000", False, "1,234 ms"),
        (Figure(name="a", value=0.94, at_least=0.95, at_most=1.05), "0.95 to 1.05", False, "0.94"),
        (Figure(name="a", value=1.06, at_least=0.95, at_most=1.05), "0.95 to 1.05", False, "1.06"),
        (Figure(name="a", value=3.14159, unit="s"), "", None, "3.14 s"),
    ],
)
def test_a_figure_knows_whether_its_target_is_reached(figure: Figure, target: str, reached: object, text: str) -> None:
    assert (figure.target, figure.reached, figure.text) == (target, reached, text)


def test_figures_become_a_page_that_says_what_was_missed_and_what_was_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(GATHERED, str(tmp_path / "push.figures"))
    record("moving the bundle", 0.5, at_least=0.9)
    record("moved again", 0, "bytes", at_most=0)
    assert capsys.readouterr().out.splitlines() == [
        "moving the bundle: 0.5 (target at least 0.9: missed)",
        "moved again: 0 bytes (target at most 0: reached)",
    ]
    assert [figure.value for figure in read_figures(tmp_path / "push.figures")] == [0.5, 0]
    (tmp_path / "push.json").write_text(json.dumps({"date": "2026-11-28", "took_s": 3}))
    monkeypatch.setattr(every, "RESULTS", tmp_path / "results.md")
    every.write_results(tmp_path)
    page = (tmp_path / "results.md").read_text()
    assert "| push: moving the bundle | 0.5 | at least 0.9 | missed |" in page
    assert "| moved again | 0 bytes |" in page
    assert "2026-11-28" in page
    assert "Not measured in this run: preprocess, bench," in page
