"""What a user may choose about a training, and what follows from it for a given amount of data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge_agent.preprocess import DEFAULT_FIT, Fit

from ..backbones import Backbone

FineTune = Literal["auto", "none", "top", "all"]
Precision = Literal["auto", "float32", "mixed"]

HEAD_EPOCHS = 100
ROOM = 8 / 7
"""The cached training images are this much larger than the model's input: 256 for 224."""

IMAGES_SEEN = 8_000
"""By all fine-tuning epochs together. With 880 training images of 8 classes
(`benchmarks/support/synthetic_images.py`), 9 epochs to the end of the cosine came to 53 % of the test images, 27
stopped early at the same rate to 50 %."""
MIN_EPOCHS, MAX_EPOCHS = 4, 20
TOP_SHARE = 0.5
LEARNING_RATE = 3e-4


@dataclass(frozen=True)
class Recipe:
    """The choices. None and "auto" leave one to `plan`, by the amount of data and the machine.

    Attributes:
        backbone: see `trainer.backbones.find_backbone`.
        image_size: side of the square model input, pixels; the backbone's own when None.
        fit: how frames are brought to that square; see `edge_agent.preprocess`.
        weights: of the backbone to start from: ``auto``, ``package``, ``imagenet``, ``none`` or a file.
        fine_tune: how much of the backbone learns after the head: ``none``, the ``top`` half of its
            layers, or ``all``.
        epochs: fine-tuning passes over the training images, at most.
        batch_size: images a training step.
        learning_rate: of the fine-tuning, at its peak.
        augment: strength of the random views, light and mixing; 0 is none, 1 the usual, at most 2.
        flip: whether a mirrored image is still of its class.
        precision: ``mixed`` computes in 16 bits where that is safe; ``auto`` does so on a GPU.
        seed: of the head's first weights, dropout, augmentation and the order of images.
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
    """A recipe with nothing left open.

    Attributes:
        size: height and width of the model input, pixels.
        room: height and width of the images augmentation starts from.
        from_scratch: the backbone starts from random weights, so all of it learns, batch norms too.
        share: of the backbone's layers, counted from the top, that learn after the head; 0 is none.
        epochs: of fine-tuning, at most.
        patience: fine-tuning epochs without a better validation loss after which it ends.
        learning_rate: of the fine-tuning, at its peak.
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
    """Height and width of the images to cache for augmentation; None where nothing is fine-tuned."""
    return _enlarged(side) if _share(recipe, backbone) else None


def plan(recipe: Recipe, backbone: Backbone, side: int, train_images: int, *, accelerated: bool) -> Plan:
    """Settle what the recipe leaves open.

    Args:
        recipe: the choices.
        backbone: the one chosen.
        side: of the square model input, pixels.
        train_images: how many there are to learn from.
        accelerated: whether a GPU or TPU does the work.
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
    """Of the backbone's layers, from the top, that learn after the head."""
    if not backbone.fine_tunes:
        return 0.0
    if recipe.weights == "none":
        return 1.0
    return {"auto": 1.0, "none": 0.0, "top": TOP_SHARE, "all": 1.0}[recipe.fine_tune]
