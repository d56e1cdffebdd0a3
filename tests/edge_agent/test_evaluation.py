"""The one scorer, against scikit-learn's figures and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edge_agent.inference.evaluation import Evaluation, wilson_interval


def random_evaluation(seed: int, classes: int = 5, images: int = 400) -> Evaluation:
    """Answers right about two times in three; the last class has no images and is never named."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes - 1, images)
    logits = random.normal(size=(images, classes))
    logits[np.arange(images), truth] += 1.5
    logits[:, -1] = -20
    powers = np.exp(logits)
    scores = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return Evaluation(tuple("abcdefghij"[:classes]), truth, scores)


def test_its_figures_are_scikit_learns() -> None:
    from sklearn import metrics

    found = random_evaluation(1)
    names = list(found.labels)
    truth, said = ([names[i] for i in places] for places in (found.truth, found.predicted))
    there = names[:-1]
    precision, recall, f1, support = metrics.precision_recall_fscore_support(truth, said, labels=there)
    assert found.precision() == pytest.approx(dict(zip(there, precision, strict=True)))
    assert found.recall() == pytest.approx(dict(zip(there, recall, strict=True)))
    assert found.f1() == pytest.approx(dict(zip(there, f1, strict=True)))
    assert found.support() == {**dict(zip(there, support.tolist(), strict=True)), "e": 0}
    assert found.macro_f1 == pytest.approx(metrics.f1_score(truth, said, labels=there, average="macro"))
    assert found.accuracy == pytest.approx(metrics.accuracy_score(truth, said))
    assert np.array_equal(found.confusion(), metrics.confusion_matrix(truth, said, labels=names))
    scores = found.scores.astype(np.float64)
    scores /= scores.sum(axis=1, keepdims=True)
    assert found.log_loss == pytest.approx(metrics.log_loss(found.truth, scores, labels=range(5)), rel=1e-5)
    for count in (1, 2, 4):
        expected = metrics.top_k_accuracy_score(found.truth, found.scores, k=count, labels=range(5))
        assert found.top_accuracy(count) == pytest.approx(expected)


def test_top_one_is_the_accuracy_even_among_equal_scores() -> None:
    found = Evaluation(("a", "b", "c"), np.array([0, 1, 2]), np.full((3, 3), 1 / 3, np.float32))
    assert found.top_accuracy(1) == found.accuracy == pytest.approx(1 / 3)
    assert found.top_accuracy(2) == pytest.approx(2 / 3)
    assert found.top_accuracy(3) == 1


def test_confused_pairs_are_counted_most_frequent_first() -> None:
    scores = np.eye(3, dtype=np.float32)[[1, 1, 2, 1, 0, 0]]
    found = Evaluation(("a", "b", "c"), np.array([0, 0, 0, 1, 1, 0]), scores)
    assert found.confused_pairs() == [("a", "b", 2), ("a", "c", 1), ("b", "a", 1)]
    assert Evaluation(("a", "b"), np.array([1]), np.array([[0, 1]], np.float32)).confused_pairs() == []


def test_calibration_error_by_hand() -> None:
    # Two images at 0.9, one right; two at 0.6, both right: |0.5 - 0.9| / 2 + |1 - 0.6| / 2.
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]], np.float32)
    found = Evaluation(("a", "b"), np.array([0, 1, 0, 1]), scores)
    assert found.calibration_error() == pytest.approx(0.4)
    bins = found.reliability(10)
    assert bins.images.tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 2, 0]  # float32's 0.6 is a little more than 0.6
    assert bins.score[8] == pytest.approx(0.9)
    assert bins.accuracy[8] == 0.5
    assert np.isnan(bins.accuracy[0])


def test_scores_that_mean_what_they_say_have_no_calibration_error_but_chance() -> None:
    random = np.random.default_rng(0)
    top = random.uniform(0.5, 1, 100_000).astype(np.float32)
    truth = (random.random(100_000) > top).astype(np.intp)
    found = Evaluation(("a", "b"), truth, np.stack([top, 1 - top], axis=1))
    assert found.calibration_error() < 0.01
    assert Evaluation(("a", "b"), 1 - truth, found.scores).calibration_error() > 0.4


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_scores_at_the_ends_fall_into_the_outer_bins(score: float) -> None:
    bins = Evaluation(("a",), np.array([0]), np.array([[score]], np.float32)).reliability(15)
    assert bins.images[-1 if score else 0] == 1


def test_a_quantized_score_of_nothing_costs_much_and_not_everything() -> None:
    found = Evaluation(("a", "b"), np.array([0]), np.array([[0, 1]], np.float32))
    assert found.log_loss == pytest.approx(16.118, abs=1e-3)


def test_the_interval_is_wilsons() -> None:
    assert wilson_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)
    assert wilson_interval(1.0, 10)[1] == pytest.approx(1.0)
    assert wilson_interval(0.0, 10)[0] == pytest.approx(0.0, abs=1e-9)
    found = random_evaluation(2)
    assert found.interval_95 == wilson_interval(found.accuracy, 400)
