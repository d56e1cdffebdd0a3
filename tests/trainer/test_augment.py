"""Augmentation keeps what it must and changes what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.images import read_image
from edge_agent.native_stderr import native_noise_hidden
from edge_agent.preprocessing import Pixels, PreprocessSpec, preprocess


@pytest.fixture(scope="module")
def augment() -> Any:
    with native_noise_hidden():
        import trainer.training.augment
    return trainer.training.augment


@pytest.fixture(scope="module")
def views(photo_folder: Path) -> tuple[Pixels, Pixels]:
    """A photograph as the device sees it (56 pixels), and roomier (64), eight times each."""
    frame = read_image(photo_folder / "brick" / "00.jpg")
    return tuple(np.stack([preprocess(frame, PreprocessSpec((side, side)))] * 8) for side in (56, 64))  # type: ignore[return-value]


def test_without_strength_the_model_trains_on_what_the_device_sees(augment: Any, views: tuple[Pixels, Pixels]) -> None:
    exact, roomy = views
    seen = np.asarray(augment.RandomView((56, 56), strength=0, flip=False, seed=1)(roomy))
    assert seen.shape == exact.shape
    inner = (slice(None), slice(2, -2), slice(2, -2))
    assert np.abs(seen - exact)[inner].mean() < 6
    shifted = np.roll(exact, 1, axis=2).astype(np.float32)
    assert np.abs(seen - exact)[inner].mean() < np.abs(seen - shifted)[inner].mean() / 2


def test_a_flip_is_the_mirror_image_of_half_of_the_images(augment: Any, views: tuple[Pixels, Pixels]) -> None:
    exact, roomy = views
    seen = np.asarray(augment.RandomView((56, 56), strength=0, flip=True, seed=3)(np.concatenate([roomy] * 8)))
    mirrored = np.abs(seen - exact[0, :, ::-1]).mean(axis=(1, 2, 3)) < np.abs(seen - exact[0]).mean(axis=(1, 2, 3))
    assert 16 < mirrored.sum() < 48
    assert (np.abs(seen - np.where(mirrored[:, None, None, None], exact[0, :, ::-1], exact[0])).mean() < 6).all()


def test_every_image_of_a_batch_is_seen_differently(augment: Any, views: tuple[Pixels, Pixels]) -> None:
    layers = [augment.RandomView((56, 56), strength=1, flip=True, seed=1), augment.RandomLight(strength=1, seed=2)]
    seen = views[1]
    for layer in layers:
        seen = np.asarray(layer(seen))
    assert seen.min() >= 0
    assert seen.max() <= 255
    flat = seen.reshape(8, -1)
    assert all(np.abs(flat[i] - flat[j]).mean() > 3 for i in range(8) for j in range(i))


def test_mixing_mixes_images_and_classes_by_the_same_shares(augment: Any) -> None:
    # Image i is all level i, so the mean level of a mixed image tells the shares.
    pixels = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None, None], (8, 16, 16, 3))
    mix = augment.Mix(alpha=0.4, seed=0)
    kinds = set()
    for _ in range(40):
        mixed, truth = (np.asarray(part) for part in mix([pixels, np.eye(8, dtype=np.float32)]))
        assert truth.sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert truth @ np.arange(8) == pytest.approx(mixed.mean(axis=(1, 2, 3)), abs=1e-4)
        assert (np.diagonal(truth) > 0.49).all() or np.ptp(mixed, axis=(1, 2, 3)).any()
        whole = np.array_equal(mixed, pixels)
        kinds.add("none" if whole else "cut" if np.isin(mixed, pixels).all() else "mean")
    assert kinds == {"none", "cut", "mean"}


def test_strength_scales_how_far_views_go(augment: Any, views: tuple[Pixels, Pixels]) -> None:
    def distance(strength: float) -> float:
        layer = augment.RandomView((56, 56), strength=strength, flip=False, seed=5)
        return float(np.abs(np.asarray(layer(views[1])) - views[0]).mean())

    assert distance(0) < distance(0.3) < distance(1.5)


def test_views_turn_zoom_shift_and_mirror_by_as_much_as_they_say(augment: Any) -> None:
    # Red and green of a pixel tell where in the roomy image it is, so a view's own tell where it looks.
    down, across = np.mgrid[0:64, 0:64]
    roomy = np.stack([across, down, 0 * down], axis=-1).astype(np.float32)
    view = augment.RandomView((56, 56), strength=1, flip=True, seed=1)
    seen = np.asarray(view(np.repeat(roomy[None], 200, axis=0)))
    x, y = seen[:, 18:38, 18:38, 0], seen[:, 18:38, 18:38, 1]
    # The affine map's parts: how far the place moves with one step to the right, and one down.
    (a, c), (b, d) = ([np.diff(place, axis=axis).mean((1, 2)) for place in (x, y)] for axis in (2, 1))
    mirrored = a < 0
    angle = np.degrees(np.arctan2(c * np.where(mirrored, -1, 1), d))
    assert 60 < mirrored.sum() < 140
    for found, extent in (
        (np.where(mirrored, -angle, angle), 10 * 1.2),
        (np.log(np.sqrt(np.abs(a * d - b * c)) * 56 / 64), 0.25),
        (x.mean((1, 2)) - 31.5, 0.1 * 56),
        (y.mean((1, 2)) - 31.5, 0.1 * 56),
    ):
        assert np.abs(found).max() <= extent * 1.02
        assert found.std() == pytest.approx(extent / np.sqrt(3), rel=0.25)
        assert abs(found.mean()) < 0.2 * extent


def test_light_changes_exposure_contrast_and_tint_by_as_much_as_it_says(augment: Any) -> None:
    image = np.full((8, 8, 3), 90, np.float32)
    image[:4] = 110
    lit = np.asarray(augment.RandomLight(strength=1, seed=1)(np.repeat(image[None], 300, axis=0)))
    bright, dark = lit[:, 0, 0], lit[:, -1, 0]
    gain = (bright + dark) / 200
    exposure, tint = np.log(gain).mean(1), np.log(gain) - np.log(gain).mean(1, keepdims=True)
    contrast = np.log((bright - dark) / 20 / gain).mean(1)
    assert exposure.std() == pytest.approx(0.25 / np.sqrt(3), rel=0.15)
    assert contrast.std() == pytest.approx(0.25 / np.sqrt(3), rel=0.15)
    assert np.abs(contrast).max() <= 0.2501
    assert tint.std() == pytest.approx(0.1 / np.sqrt(3) * np.sqrt(2 / 3), rel=0.15)
