"""Labels that look wrong."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from trainer.data import Finding, Photo, suspicious_labels
from trainer.data.label_errors import confident_errors


def clusters(per_class: list[int], seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp], list[Photo]]:
    """Features around a centre for each class, their classes, and photos to go with them."""
    random = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(per_class)), per_class)
    centres = random.normal(size=(len(per_class), 200))
    features = centres[truth] * 0.5 + random.normal(size=(len(truth), 200))
    photos = [Photo(f"{i}.jpg", str(label), "train", f"{i:064x}") for i, label in enumerate(truth)]
    return features.astype(np.float32), truth, photos


def test_flipped_labels_are_found_with_few_false_alarms() -> None:
    features, truth, photos = clusters([60, 100, 150, 80], 0)
    random = np.random.default_rng(1)
    flipped = random.permutation(len(truth))[:20]
    wrong = truth.copy()
    wrong[flipped] = (wrong[flipped] + random.integers(1, 4, 20)) % 4
    note = suspicious_labels(features, wrong, photos, "abcd", seed=0)
    assert note is not None
    assert int(note.message.split()[0]) == len(note.images)
    shown = {int(path.removesuffix(".jpg")) for (path,) in note.images}
    assert len(shown & set(flipped.tolist())) >= 17
    assert len(shown - set(flipped.tolist())) <= 3


def test_the_least_believable_label_comes_first() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.7, 0.3], [0.02, 0.98], [0.1, 0.9], [0.3, 0.7]])
    places, meant = confident_errors(scores, np.array([0, 0, 0, 1, 0, 1, 1]))
    assert places.tolist() == [4, 2, 3]
    assert meant.tolist() == [1, 1, 0]


def test_right_labels_are_left_alone() -> None:
    features, truth, photos = clusters([60, 100, 150, 80], 2)
    note = suspicious_labels(features, truth, photos, "abcd", seed=0)
    assert note is None or int(note.message.split()[0]) <= 4


def test_labels_that_mean_nothing_are_called_mixed_up() -> None:
    features, truth, photos = clusters([100, 100], 3)
    shuffled = np.random.default_rng(0).permutation(truth)
    note = suspicious_labels(features, shuffled, photos, "ab", seed=0)
    assert note is not None
    assert "hard to tell apart" in note.message


@pytest.mark.parametrize("counts", [[5, 5], [2, 2], [1, 5], [6], [5, 0, 5]])
def test_few_images_are_judged_or_left_alone(counts: list[int]) -> None:
    features, truth, photos = clusters(counts, 4)
    note = suspicious_labels(features, truth, photos, "abc", seed=0)
    assert note is None or isinstance(note, Finding)


def test_a_wrong_burst_does_not_vouch_for_itself() -> None:
    features, truth, photos = clusters([60, 60], 5)
    wrong = truth.copy()
    wrong[:10] = 1
    features[:10] = features[0] + np.random.default_rng(0).normal(size=(10, 200)) * 0.05
    burst = [Photo(p.path, p.label, p.split, p.sha256, "burst" if i < 10 else "") for i, p in enumerate(photos)]
    note = suspicious_labels(features, wrong, burst, "ab", seed=0)
    assert note is not None
    assert {f"{i}.jpg" for i in range(10)} <= {path for (path,) in note.images}


def test_a_large_set_is_sampled_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.label_errors.MAX_IMAGES", 100)
    features, truth, photos = clusters([300, 300], 6)
    wrong = truth.copy()
    wrong[::10] = 1 - wrong[::10]
    one = suspicious_labels(features, wrong, photos, "ab", seed=0)
    assert one is not None
    assert "of 600 labels (100 were checked)" in one.message
    assert one == suspicious_labels(features, wrong, photos, "ab", seed=0)
