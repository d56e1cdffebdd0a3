from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import edge_agent
from converter.packaging.canary import CLEAR, CLEAR_MARGIN, CLOSE, choose
from edge_agent.bundle import open_bundle
from edge_agent.images import decode_image
from edge_agent.inference.evaluation import Evaluation


def evaluation(truth: list[int], tops: list[tuple[int, float]], classes: int = 3) -> Evaluation:
    """Each image's highest class and its margin over the next."""
    scores = np.zeros((len(truth), classes), np.float32)
    for row, (best, margin) in zip(scores, tops, strict=True):
        row[(best + 1) % classes] = (1 - margin) / 2
        row[best] = (1 + margin) / 2
    return Evaluation(tuple("abc"[:classes]), np.array(truth), scores)


def margins(scored: Evaluation) -> np.ndarray:
    ordered = np.sort(scored.scores, axis=1)
    found: np.ndarray = ordered[:, -1] - ordered[:, -2]
    return found


@pytest.fixture
def many() -> Evaluation:
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 300).tolist()
    tops = [
        ((label + (random.random() < 0.1)) % 3, float(margin))
        for label, margin in zip(truth, random.uniform(0, 1, 300), strict=True)
    ]
    return evaluation(truth, tops)


def test_most_are_right_and_clear_and_some_are_the_closest_calls(many: Evaluation) -> None:
    chosen = choose(many)
    assert len(chosen) == len(set(chosen)) == CLEAR + CLOSE
    clear, close = chosen[:CLEAR], chosen[CLEAR:]
    assert many.right[clear].all()
    assert (margins(many)[clear] >= CLEAR_MARGIN).all()
    assert margins(many)[clear].min() < 0.5  # not only the easiest
    assert sorted(close) == sorted(np.argsort(margins(many), kind="stable")[:CLOSE].tolist())
    counts = Counter(many.truth[clear].tolist())
    assert max(counts.values()) - min(counts.values()) <= 1


def test_the_same_evaluation_chooses_the_same(many: Evaluation) -> None:
    assert choose(many) == choose(many)


def test_every_class_is_there_even_where_it_is_never_clear_or_never_right() -> None:
    truth = [0] * 20 + [1] * 3 + [2] * 3
    tops = [(0, 0.9)] * 20 + [(1, 0.1), (1, 0.2), (0, 0.8)] + [(0, 0.9), (0, 0.6), (1, 0.7)]
    scored = evaluation(truth, tops)
    chosen = choose(scored)
    assert {0, 1, 2} == set(scored.truth[chosen].tolist())
    assert 21 in chosen[:-CLOSE]  # the best of the class without a clear one
    assert 23 in chosen[:-CLOSE]  # the clearest of the class without a right one
    assert len(chosen) == len(set(chosen))


def test_few_images_are_all_taken() -> None:
    scored = evaluation([0, 1, 2, 0], [(0, 0.9), (1, 0.5), (2, 0.4), (1, 0.2)])
    assert sorted(choose(scored)) == [0, 1, 2, 3]


def test_the_expected_scores_are_those_of_the_packed_images(bundle_file: Path) -> None:
    bundle = open_bundle(bundle_file)
    images = bundle.canary()
    assert {image.label for image in images} == set(bundle.labels)
    with edge_agent.open(bundle_file) as classifier:
        for image in images:
            scores = classifier.classify(decode_image(bundle.read(image.file), image.file)).scores
            np.testing.assert_allclose(scores, image.scores, atol=2e-6)
