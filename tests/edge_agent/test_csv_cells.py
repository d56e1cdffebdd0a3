"""CSV files that a spreadsheet opens without running what is in them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.csv_cells import escaped, unescaped
from trainer.data.csv_listing import read_listing
from trainer.review.export import as_csv


@given(st.text(alphabet=st.sampled_from("'=+-@\t\ra1 "), max_size=6))
def test_every_text_comes_back_and_none_begins_a_formula(text: str) -> None:
    (cell,) = escaped([text])
    assert isinstance(cell, str)
    assert unescaped(cell) == text
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))


def test_numbers_stay_numbers() -> None:
    assert escaped([-1, 0.5, None, "-1"]) == [-1, 0.5, None, "'-1"]


@pytest.mark.parametrize("label", ['=HYPERLINK("http://evil.example")', "-2+3", "@SUM(A1)", "+1", "'=x", "robin's"])
def test_exported_labels_are_read_as_they_were(label: str, tmp_path: Path) -> None:
    text = as_csv([("=a/1.jpg", label), ("b/2.jpg", "wren")])
    for row in csv.reader(io.StringIO(text)):
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row)
    (tmp_path / "labels.csv").write_text(text)
    assert {(photo.path, photo.label) for photo in read_listing(tmp_path / "labels.csv")} == {
        ("=a/1.jpg", label),
        ("b/2.jpg", "wren"),
    }
