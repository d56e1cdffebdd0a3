"""Training options (`Recipe`), and the settings derived from them for a given amount of data (`Plan`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge_agent.preprocessing import DEFAULT_FIT, Fit

from ..backbones import Backbone

FineTune = Literal["auto", "none", "top", "all"]
Precision = Literal["auto", "float32", "mixed"]

HEAD_EPOCHS = 100
ROOM = 8 / 7
"""Size of the cached training images relative to the model's input: 256 pixels for 224."""

IMAGES_SEEN = 8_000
"""Number of images processed in all fine-tuning epochs together. With 880 training images of 8 classes
(`benchmarks/support/synthetic_images.py`), the test accuracy was 53 % with 9 epochs to the end of the cosine schedule,
and 50 % with early stopping in a schedule of 27 epochs at the same rate."""
MIN_EPOCHS, MAX_EPOCHS = 4, 20
TOP_SHARE = 0.5
LEARNING_RATE = 3e-4


@dataclass(frozen=True)
class Recipe:
    """Training options. `plan` chooses those that are None or "auto", by the amount of data and the machine.

    Attributes:
        backbone: name of the backbone; see `trainer.backbones.find_backbone`.
        image_size: side of the square model input, pixels; None for the backbone's default.
        fit: method that fits frames to that square; see `edge_agent.preprocessing`.
        weights: initial weights of the backbone: ``auto``, ``package``, ``imagenet``, ``none`` or a file.
        fine_tune: part of the backbone that is trained after the head: ``none``, the ``top`` half of its
            layers, or ``all``.
        epochs: maximum number of fine-tuning epochs.
        batch_size: images per training step.
        learning_rate: peak learning rate of fine-tuning.
        augment: strength of random views, light and mixing, 0 to 2; 0 turns them off, 1 is the default.
        flip: mirror images at random; False if left and right are different classes.
        precision: ``mixed`` computes in 16 bits where that is safe; ``auto`` does so on a GPU.
        seed: random seed of the head's initial weights, dropout, augmentation and the order of images.
    """

    backbone: str = "efficientnet-lite0"
    image_size: int | None = None
    fit: Fit = DEFAULT_FIT
    weights: str = "auto"
    fine_tune: FineTune = "auto"
    epochs: int | None = None
    batch_size: int = 32
    learning_rate: float | None = None
    augment: float = 1.0
    flip: bool = True
    precision: Precision = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """A recipe in which all settings are determined.

    Attributes:
        recipe: the training options.
        size: height and width of the model input, pixels.
        room: height and width of the enlarged images for augmentation, pixels.
        from_scratch: the backbone starts from random weights, so all of it is trained, including batch norms.
        share: share of the backbone's layers, counted from the top, that is trained after the head, 0 to 1.
        epochs: maximum number of fine-tuning epochs; 0 for no fine-tuning.
        patience: number of fine-tuning epochs without improvement after which training stops.
        learning_rate: peak learning rate of fine-tuning.
        mixed: compute in 16 bits.
    """

    recipe: Recipe
    size: tuple[int, int]
    room: tuple[int, int]
    from_scratch: bool
    share: float
    epochs: int
    patience: int
    learning_rate: float
    mixed: bool


def room_for(recipe: Recipe, backbone: Backbone, side: int) -> tuple[int, int] | None:
    """Return height and width of the images to cache for augmentation; None without fine-tuning."""
    return _enlarged(side) if _share(recipe, backbone) else None


def plan(recipe: Recipe, backbone: Backbone, side: int, train_images: int, *, accelerated: bool) -> Plan:
    """Determine the settings that the recipe leaves open.

    Args:
        recipe: the training options.
        backbone: the backbone of the recipe.
        side: side of the square model input, pixels.
        train_images: number of training images.
        accelerated: whether Keras computes on a GPU or TPU.
    """
    share = _share(recipe, backbone)
    epochs = recipe.epochs or min(MAX_EPOCHS, max(MIN_EPOCHS, round(IMAGES_SEEN / train_images)))
    return Plan(
        recipe=recipe,
        size=(side, side),
        room=_enlarged(side),
        from_scratch=recipe.weights == "none",
        share=share,
        epochs=epochs if share else 0,
        patience=max(3, epochs // 3),
        learning_rate=recipe.learning_rate or LEARNING_RATE,
        mixed=recipe.precision == "mixed" or (recipe.precision == "auto" and accelerated),
    )


def _enlarged(side: int) -> tuple[int, int]:
    return round(side * ROOM), round(side * ROOM)


def _share(recipe: Recipe, backbone: Backbone) -> float:
    """Return the share of the backbone's layers, from the top, that is trained after the head."""
    if not backbone.fine_tunes:
        return 0.0
    if recipe.weights == "none":
        return 1.0
    return {"auto": 1.0, "none": 0.0, "top": TOP_SHARE, "all": 1.0}[recipe.fine_tune]
