"""Trains the head, a linear softmax layer on frozen features.

This module imports Keras, so import it inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from rich.console import Console

from edge_agent.native_stderr import native_noise_hidden

from ..progress import steps
from .batches import Batches, Rows
from .recipe import HEAD_EPOCHS
from .temperature_scaling import judge, log_loss

LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-3
DROPOUT = 0.2
PATIENCE = 15
MIN_GAIN = 1e-4
STEPS_PER_EPOCH = 20


def new_head(features: int, classes: int) -> keras.Model:
    """Return a model that maps features, (n, features), to logits, (n, classes)."""
    return keras.Sequential(
        [
            keras.Input((features,)),
            keras.layers.Dropout(DROPOUT, name="dropout"),
            keras.layers.Dense(classes, name="logits"),
        ],
        name="head",
    )


def fit_head(
    head: keras.Model,
    features: Rows,
    truth: npt.NDArray[np.intp],
    splits: Mapping[str, npt.NDArray[np.intp]],
    class_weights: npt.NDArray[np.float32],
    *,
    seed: int,
    console: Console,
) -> tuple[npt.NDArray[np.float64], list[dict[str, Any]]]:
    """Fit the head and keep the weights with the best validation loss.

    Args:
        head: model from `new_head`; changed in place.
        features: features of all images, one row per image.
        truth: (images,) int, class indices.
        splits: indices of the images in each split.
        class_weights: (classes,) float32, weight of an image of each class.
        seed: random seed for the order of the images.
        console: console for the progress.

    Returns:
        The loss of every validation image at the fitted temperature; and a dict for each epoch with the keys
        ``phase``, ``loss``, ``val_loss`` and ``val_accuracy``.
    """
    classes = head.output_shape[-1]
    size = int(np.clip(len(splits["train"]) // STEPS_PER_EPOCH, 16, 1024))
    batches = Batches(features, splits["train"], truth, size=size, classes=classes, seed=seed)
    # The head itself is not compiled, because copies of a compiled model would include the optimizer.
    student = keras.Model(head.input, head.output)
    student.compile(
        keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    val, best_loss = splits["val"], np.inf
    rows: list[dict[str, Any]] = []
    best_epoch, best_weights = 0, head.get_weights()
    with steps(console, "Training the head", HEAD_EPOCHS) as advance, native_noise_hidden():
        # Keras' fit is not used, because it takes longer to start an epoch than this loop takes to finish one.
        while len(rows) < HEAD_EPOCHS and len(rows) - best_epoch < PATIENCE:
            student.reset_metrics()
            for inputs, targets in batches.epoch(len(rows)):
                loss = student.train_on_batch(inputs, targets, sample_weight=targets @ class_weights)
            logits = _logits(head, features, val)
            # The loss at the fitted temperature is not used: with few images, it reaches its minimum once all images
            # are classified correctly, while the plain loss continues to fall as their margins grow.
            val_loss = log_loss(logits, truth[val])
            accuracy = float((logits.argmax(axis=1) == truth[val]).mean())
            rows.append({"phase": "head", "loss": float(loss), "val_loss": val_loss, "val_accuracy": accuracy})
            if val_loss < best_loss - MIN_GAIN:
                best_loss, best_epoch, best_weights = val_loss, len(rows), head.get_weights()
            advance()
    head.set_weights(best_weights)
    return judge(_logits(head, features, val), truth[val]).losses, rows


def _logits(head: keras.Model, features: Rows, places: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
    kernel, bias = head.get_layer("logits").get_weights()
    parts = np.array_split(places, -(-len(places) // 4096))
    return np.concatenate([features[part] @ kernel + bias for part in parts])
