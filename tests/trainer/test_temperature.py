from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.training.temperature_scaling import fit_temperature, judge, softmax


def drawn(scale: float, *, count: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are ``scale`` times too large for the classes drawn by them."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, 5)) * 2
    truth = np.array([random.choice(5, p=p) for p in softmax(logits)])
    return logits * scale, truth


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_what_made_the_model_too_sure_or_unsure(scale: float) -> None:
    assert fit_temperature(*drawn(scale)) == pytest.approx(scale, rel=0.1)


def test_no_other_temperature_fits_better() -> None:
    logits, truth = drawn(2.5, seed=3)
    best = fit_temperature(logits, truth)

    def loss(temperature: float) -> float:
        return float(-np.log(softmax(logits / temperature)[np.arange(len(truth)), truth]).mean())

    assert loss(best) <= min(loss(t) for t in np.geomspace(0.5, 10, 60)) + 1e-4
    assert judge(logits, truth).loss == pytest.approx(loss(best))


@given(count=st.integers(1, 12), classes=st.integers(2, 6), right=st.booleans())
def test_a_handful_of_images_makes_nobody_certain(count: int, classes: int, right: bool) -> None:  # noqa: FBT001
    truth = np.arange(count) % classes
    logits = 4.0 * np.eye(classes)[truth if right else (truth + 1) % classes]
    temperature = fit_temperature(logits, truth)
    assert 0.6 < temperature <= 1 if right else 1 < temperature <= 20


def test_softmax_survives_large_logits() -> None:
    assert softmax(np.array([[1e4, 0, -1e4]])).tolist() == [[1, 0, 0]]
