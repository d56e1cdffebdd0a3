"""Images, labels, groups and splits listed in a CSV file."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edge_agent.errors import DataError
from trainer.data import data_root

from ...support.data_sets import (
    ROWS,
    Listing,
    Load,
    Refusal,
    by_path,
)


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
