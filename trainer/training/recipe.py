"""Training options (`Recipe`), and the settings that are derived from them for a given amount of data (`Plan`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge_agent.preprocessing import DEFAULT_FIT, Fit

from ..backbones import Backbone

FineTune = Literal["auto", "none", "top", "all"]
Precision = Literal["auto", "float32", "mixed"]

HEAD_EPOCHS = 100
ROOM = 8 / 7
"""Side of the cached training images relative to the side of the model's input: 256 pixels for an input of 224."""

IMAGES_SEEN = 8_000
"""Number of images to process in all fine-tuning epochs together; it determines the default number of epochs.

With 880 training images of 8 classes (`benchmarks/support/synthetic_images.py`), the test accuracy was 53 % with 9
epochs, in which the cosine schedule of the learning rate was completed. It was 50 % with a schedule of 27 epochs, the
same peak learning rate and early stopping."""
MIN_EPOCHS, MAX_EPOCHS = 4, 20
TOP_SHARE = 0.5
LEARNING_RATE = 3e-4


@dataclass(frozen=True)
class Recipe:
    """Training options. `plan` chooses a value for options that are None or "auto".

    The value depends on the backbone, the amount of data and the machine.

    Attributes:
        backbone: name of the backbone; see `trainer.backbones.find_backbone`.
        image_size: side of the square model input, pixels; None for the backbone's default.
        fit: method of fitting an image to that square; see `edge_agent.preprocessing`.
        weights: initial weights of the backbone: ``auto``, ``package``, ``imagenet``, ``none`` or a path; see
            `trainer.backbones.build_backbone`.
        fine_tune: part of the backbone that is trained after the head: ``none``, the ``top`` half of its
            layers, or ``all``.
        epochs: maximum number of fine-tuning epochs.
        batch_size: number of images per training step.
        learning_rate: peak learning rate of fine-tuning.
        augment: strength of the augmentation by random views, light and mixing, 0 to 2. 0 turns it off, 1 is the
            default.
        flip: True to mirror images at random. Use False if left and right are different classes.
        precision: ``float32``, or ``mixed`` to compute in 16 bits where that is safe. ``auto`` is ``mixed`` on a GPU
            or TPU, and ``float32`` otherwise.
        seed: random seed for the initial weights of the head, dropout, augmentation and the order of the images.
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
    """The final settings of a training run, after `plan` has chosen a value for each option that was left open.

    Attributes:
        recipe: the training options.
        size: height and width of the model input, pixels.
        room: height and width of the enlarged images for augmentation, pixels.
        from_scratch: True if the backbone starts with random weights. Then all its layers are trained, including batch
            normalization layers.
        share: share of the backbone's layers that are trained after the head, 0 to 1, counted from the output.
        epochs: maximum number of fine-tuning epochs; 0 for no fine-tuning.
        patience: number of fine-tuning epochs without improvement after which training stops.
        learning_rate: peak learning rate of fine-tuning.
        mixed: True to compute in 16 bits where that is safe.
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
    """Return the height and width, in pixels, of the images to cache for augmentation.

    Return None if there is no fine-tuning, because only fine-tuning augments images.
    """
    return _enlarged(side) if _share(recipe, backbone) else None


def plan(recipe: Recipe, backbone: Backbone, side: int, train_images: int, *, accelerated: bool) -> Plan:
    """Determine the settings that the recipe leaves open.

    Args:
        recipe: the training options.
        backbone: the backbone of the recipe.
        side: side of the square model input, pixels.
        train_images: number of training images.
        accelerated: True if Keras computes on a GPU or TPU.
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
    """Return the share of the backbone's layers that are trained after the head, 0 to 1, counted from the output."""
    if not backbone.fine_tunes:
        return 0.0
    if recipe.weights == "none":
        return 1.0
    return {"auto": 1.0, "none": 0.0, "top": TOP_SHARE, "all": 1.0}[recipe.fine_tune]
