"""Groups, and how images are split into train, val and test."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.errors import ConfigError, DataError
from trainer.data import SPLITS, Photo, data_root
from trainer.data.groups import find_groups, same
from trainer.data.split import split_photos

from ...support.data_sets import (
    ROWS,
    Listing,
    Load,
    Refusal,
    by_path,
    finding,
    given_splits,
    make_data,
    scene,
    write,
)


def photo_list(counts: list[list[int]]) -> list[Photo]:
    """Photos by class and group size."""
    return [
        Photo(
            f"{label}/{group}/{i}.jpg",
            f"c{label}",
            "",
            hashlib.sha256(f"{label} {group} {i}".encode()).hexdigest(),
            f"{label}-{group}",
        )
        for label, sizes in enumerate(counts)
        for group, size in enumerate(sizes)
        for i in range(size)
    ]


unhurried = settings(suppress_health_check=[HealthCheck.too_slow])
"""Machines are shared; how long an example takes says nothing."""


def split_of(photos: list[Photo], frozen: dict[str, str] | None = None) -> list[Photo]:
    return split_photos(photos, same([photo.group or photo.sha256 for photo in photos]), frozen=frozen or {})


@unhurried
@given(counts=st.lists(st.integers(5, 60), min_size=2, max_size=6))
def test_splits_are_stratified_and_depend_on_content_alone(counts: list[int]) -> None:
    photos = photo_list([[1] * count for count in counts])
    split = {photo.sha256: photo.split for photo in split_of(photos)}
    again = {photo.sha256: photo.split for photo in split_of(photos[::-1])}
    assert split == again
    for label, count in enumerate(counts):
        members = sorted(photo.sha256 for photo in photos if photo.label == f"c{label}")
        found = Counter(split[sha256] for sha256 in members)
        assert set(found) == set(SPLITS)
        assert found["test"] == found["val"] == max(1, round(0.15 * count))
        assert {split[sha256] for sha256 in members[: found["test"]]} == {"test"}


@unhurried
@given(counts=st.lists(st.lists(st.integers(1, 6), min_size=3, max_size=40), min_size=2, max_size=5))
def test_groups_never_straddle_splits_and_every_class_is_in_each(counts: list[list[int]]) -> None:
    photos = split_of(photo_list(counts))
    of_group = defaultdict(set)
    for photo in photos:
        of_group[photo.group].add(photo.split)
    assert all(len(splits) == 1 for splits in of_group.values())
    for label, sizes in enumerate(counts):
        found = Counter(photo.split for photo in photos if photo.label == f"c{label}")
        assert set(found) == set(SPLITS)
        for split in ("test", "val"):
            wanted = max(1, round(0.15 * sum(sizes)))
            # One group over where none is small enough; under only where none that is left would fit.
            assert found[split] <= max(wanted, *sizes)
            assert found[split] > wanted - max(sizes) or len(sizes) <= 4


@unhurried
@given(data=st.data())
def test_groups_of_several_classes_never_straddle_either(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 4))
    members = data.draw(
        st.lists(st.lists(st.integers(0, classes - 1), min_size=1, max_size=8), min_size=6, max_size=15)
    )
    photos = [
        Photo(f"{g}/{i}.jpg", f"c{label}", "", hashlib.sha256(f"{g} {i}".encode()).hexdigest(), f"g{g}")
        for g, labels in enumerate(members)
        for i, label in enumerate(labels)
    ]
    try:
        split = split_of(photos)
    except DataError as error:
        assert "cannot be split" in str(error)  # noqa: PT017  either is right; hypothesis finds both
        return
    assert all(len({photo.split for photo in split if photo.group == f"g{g}"}) == 1 for g in range(len(members)))
    for label in {photo.label for photo in photos}:
        assert {photo.split for photo in split if photo.label == label} == set(SPLITS)


def test_days_that_hold_all_classes_can_be_groups() -> None:
    photos = [
        Photo(f"{day}/{label}{i}.jpg", label, "", hashlib.sha256(f"{day}{label}{i}".encode()).hexdigest(), day)
        for day in ("mon", "tue", "wed", "thu", "fri")
        for label in ("a", "b", "c", "d", "e", "f")
        for i in range(4)
    ]
    found = Counter(photo.split for photo in split_of(photos))
    assert found == {"train": 72, "val": 24, "test": 24}


def test_a_group_that_is_nearly_a_whole_class_trains() -> None:
    for order in ([98, 1, 1], [1, 98, 1], [1, 1, 98]):
        assert Counter(photo.split for photo in split_of(photo_list([order]))) == {"train": 98, "val": 1, "test": 1}


def test_a_class_that_comes_away_empty_chooses_before_the_others() -> None:
    members = [[2], [0], [0, 0, 3], [2, 3, 0], [3, 2, 2]]
    photos = [
        Photo(f"{g}/{i}.jpg", f"c{label}", "", hashlib.sha256(f"{g} {i}".encode()).hexdigest(), f"g{g}")
        for g, labels in enumerate(members)
        for i, label in enumerate(labels)
    ]
    found = split_of(photos)
    for label in ("c0", "c2", "c3"):
        assert {photo.split for photo in found if photo.label == label} == set(SPLITS)


def test_new_images_of_a_group_that_is_apart_already_go_where_most_of_it_is() -> None:
    photos = photo_list([[6, 2, 2, 2]])
    frozen = {photo.sha256: split for photo, split in zip(photos, ("test", "val", "val", "train"), strict=False)}
    found = split_of(photos, frozen)
    assert [photo.split for photo in found[:6]] == ["test", "val", "val", "train", "val", "val"]


@unhurried
@given(data=st.data())
def test_frozen_images_keep_their_split_and_their_group_follows(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.lists(st.integers(1, 4), min_size=3, max_size=12), min_size=2, max_size=3))
    photos = photo_list(counts)
    before = {photo.sha256: photo.split for photo in split_of(photos)}
    known = data.draw(st.sets(st.sampled_from(sorted(before))))
    frozen = {sha256: before[sha256] for sha256 in known}
    try:
        after = split_of(photos, frozen)
    except DataError:
        return
    groups = defaultdict(set)
    for photo in after:
        if photo.sha256 in frozen:
            assert photo.split == frozen[photo.sha256]
        groups[photo.group].add(photo.split)
    assert all(len(splits) == 1 for splits in groups.values())


def test_new_images_join_a_frozen_split(tmp_path: Path, load: Load) -> None:
    make_data(tmp_path, each=20)
    first = load(tmp_path)
    frozen = {photo.sha256: photo.split for photo in first.photos}
    tested = next(photo for photo in first.photos if photo.split == "test")
    write(tmp_path / "a/new like one tested.jpg", scene(int(tested.path[-7:-4]) + 1000 * (tested.label == "b")), 50)
    for number in range(40):
        write(tmp_path / f"b/new{number}.jpg", scene(7000 + number))
    label = tested.label
    (tmp_path / "a/new like one tested.jpg").rename(tmp_path / label / "new like one tested.jpg")
    second = load(tmp_path, frozen=frozen)
    for photo in second.photos:
        if photo.sha256 in frozen:
            assert photo.split == frozen[photo.sha256]
    assert by_path(second)[f"{label}/new like one tested.jpg"].split == "test"
    tests = Counter(photo.label for photo in second.photos if photo.split == "test")
    assert tests["b"] >= 9
    with pytest.raises(DataError, match="the earlier split names dev"):
        load(tmp_path, frozen={"0" * 64: "dev"})


def test_a_frozen_test_image_never_trains_whatever_its_folder_says(tmp_path: Path, load: Load) -> None:
    given_splits(tmp_path)
    tested = next(photo for photo in load(tmp_path).photos if photo.split == "train")
    dataset = load(tmp_path, frozen={tested.sha256: "test"})
    assert by_path(dataset)[tested.path].split == "test"


def test_groups_can_be_read_from_names(tmp_path: Path, load: Load) -> None:
    for label in "ab":
        for burst in range(8):
            for number in range(3):
                seed = 100 * burst + number + 5000 * (label == "b")
                write(tmp_path / label / f"{label}burst{burst}_{number}.jpg", scene(seed))
    dataset = load(tmp_path, group_by=r"([ab]burst\d)")
    groups = defaultdict(set)
    for photo in dataset.photos:
        groups[photo.group].add(photo.split)
    assert sorted(groups) == sorted(f"{label}burst{burst}" for label in "ab" for burst in range(8))
    assert all(len(splits) == 1 for splits in groups.values())
    assert {photo.group for photo in load(tmp_path, group_by=r"burst\d").photos} == {f"burst{i}" for i in range(8)}
    assert not any(photo.group for photo in load(tmp_path, group_by="nothing like it").photos)
    with pytest.raises(ConfigError, match="not a regular expression"):
        load(tmp_path, group_by="(")


def test_groups_from_names_do_not_override_those_of_a_list(listing: Listing, load: Load) -> None:
    rows = [f"{row},g{i}" for i, row in enumerate(ROWS)]
    with pytest.raises(ConfigError, match="groups already"):
        load(listing(*rows, header="path,label,group"), group_by="p")


def test_classes_with_fewer_than_three_groups_are_all_named(listing: Listing, refusal: Refusal) -> None:
    rows = [f"p/{i}.jpg,{'ab'[i % 2]},g{i % 4}" for i in range(20)]
    said = refusal(listing(*rows, header="path,label,group"))
    assert "class 'a' has 2 groups; class 'b' has 2 groups" in said


def test_groups_across_given_splits_are_reported(listing: Listing, load: Load) -> None:
    rows = [f"p/{i}.jpg,{'ab'[i % 2]},g{i // 4},{SPLITS[i // 2 % 3]}" for i in range(20)]
    note = finding(load(listing(*rows, header="path,label,group,split")), "leak")
    assert "one group in different splits" in note.message


def test_groups_that_leave_little_to_test_with_are_reported(listing: Listing, load: Load) -> None:
    sizes = {"a": ["day1"] * 8 + ["day2", "day3"], "b": [f"day{i}" for i in range(4, 14)]}
    rows = [f"p/{i}.jpg,{'ab'[i // 10]},{sizes['ab'[i // 10]][i % 10]}" for i in range(20)]
    found = load(listing(*rows, header="path,label,group")).findings
    assert not any(one.kind == "groups" for one in found)  # one of a share of two is still half of it
    for number in range(20, 40):
        write(data_root(listing()) / f"p/{number}.jpg", scene(number))
    rows += [f"p/{i}.jpg,a,day1" for i in range(20, 40)]
    note = finding(load(listing(*rows, header="path,label,group")), "groups")
    assert "class 'a' 1 of 30 images" in note.message


def test_a_users_group_keeps_its_name_beside_near_duplicates(listing: Listing, load: Load) -> None:
    path = listing(*ROWS)
    write(path.parent / "p/again.jpg", scene(0), quality=60)
    rows = [f"{row},{'mine' if i == 0 else ''}" for i, row in enumerate(ROWS)]
    photos = by_path(load(listing(*rows, "p/again.jpg,a,", header="path,label,group")))
    assert photos["p/0.jpg"].group == "mine"
    assert photos["p/again.jpg"].group.startswith("near:")
    assert photos["p/0.jpg"].split == photos["p/again.jpg"].split


def test_near_duplicates_join_groups() -> None:
    photos = photo_list([[2, 2, 2, 2], [2, 2, 2, 2]])
    similar = np.arange(len(photos))
    similar[2] = 0  # the first image of group 0-1 resembles that of 0-0
    groups = find_groups(photos, similar)
    assert len(set(groups.together[:4])) == 1
    assert len(set(groups.together)) == 7
