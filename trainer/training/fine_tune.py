"""Fine-tunes the top layers of the backbone together with the head.

This module imports Keras, so import it inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops
from rich.console import Console

from edge_agent.native_stderr import native_noise_hidden

from ..backbones.graph import leaves
from ..progress import Advance, steps
from .augment import Mix, RandomLight, RandomView
from .batches import Batches, Rows, predict
from .checkpoint import Checkpoint, Weights
from .distribution import Team
from .recipe import Plan
from .temperature_scaling import Judged, judge

WEIGHT_DECAY = 1e-3
LABEL_SMOOTHING = 0.1
MIX_ALPHA = 0.4
WARM_UP = 0.1
"""Share of the training steps at the start in which the learning rate rises.

Low learning rates in the first steps protect the pretrained weights."""


def fine_tune(
    classifier: keras.Model,
    base: keras.Model,
    head: keras.Model,
    plan: Plan,
    *,
    roomy: Rows,
    pixels: Rows,
    truth: npt.NDArray[np.intp],
    splits: Mapping[str, npt.NDArray[np.intp]],
    class_weights: npt.NDArray[np.float32],
    team: Team,
    start: Checkpoint,
    keep: Callable[[Checkpoint], None],
    callbacks: Sequence[keras.callbacks.Callback] = (),
    console: Console,
) -> Checkpoint:
    """Train the backbone and the head together.

    Args:
        classifier: ``base`` followed by ``head``; maps pixels, (n, height, width, 3), to logits, (n, classes). After
            every epoch it receives the new weights and is evaluated.
        base: the backbone.
        head: the trained head.
        plan: settings, such as the number of epochs, the share of trained layers and the learning rate.
        roomy: enlarged images for augmentation; indices give (k, height, width, 3) uint8 in the size ``plan.room``.
        pixels: images preprocessed as on the device; indices give (k, height, width, 3) uint8 in the model's size.
        truth: (images,) int, class indices.
        splits: indices of the images in each split.
        class_weights: (classes,) float32, weight of an image of each class.
        team: the processes that train together.
        start: initial state, which is the state after the training of the head, or after the last finished epoch of an
            interrupted training run.
        keep: called after every epoch with the state of the training run.
        callbacks: further Keras callbacks, such as TensorBoard's.
        console: console for the progress.

    Returns:
        The last state. Its attribute ``best`` contains the best weights of the classifier.
    """
    recipe, val = plan.recipe, splits["val"]
    batches = Batches(
        roomy,
        splits["train"],
        truth,
        size=recipe.batch_size,
        classes=len(class_weights),
        seed=recipe.seed,
        part=(team.rank, team.count),
        devices=team.devices,
    )
    # From here on, all processes draw the same random numbers.
    keras.utils.set_random_seed(recipe.seed)
    with team.together():
        student, base, head = compiled_student(base, head, plan, class_weights, steps_per_epoch=len(batches))
    state = [*student.variables, *student.optimizer.variables]
    for variable, value in zip(state, team.share(start.state or _values(state)), strict=True):
        variable.assign(value)

    def judged() -> tuple[Judged, Weights]:
        weights = _values([*base.weights, *head.weights])
        found = Judged(np.zeros(len(val)), 0.0)
        if team.leads:
            with team.apart():
                classifier.set_weights(weights)
                found = judge(predict(classifier, pixels, val, recipe.batch_size), truth[val])
        losses, accuracy = team.share([found.losses, np.array(found.accuracy)])
        return Judged(losses, float(accuracy)), weights

    total, done = plan.epochs * len(batches), start.epoch * len(batches)
    with team.together(), steps(console, "Fine-tuning", total, done=done) as advance, native_noise_hidden():
        epochs = _Epochs(start, judged, keep, plan, advance)
        student.fit(
            batches.for_fit(start.epoch),
            steps_per_epoch=len(batches),
            shuffle=False,
            initial_epoch=start.epoch,
            epochs=plan.epochs,
            callbacks=[epochs, *callbacks],
            verbose=0,
        )
    return epochs.last


def _values(variables: Sequence[Any]) -> Weights:
    return [ops.convert_to_numpy(variable) for variable in variables]


class _Epochs(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Evaluates the averaged weights after every epoch, and ends the training when they no longer improve."""

    def __init__(
        self,
        start: Checkpoint,
        judged: Callable[[], tuple[Judged, Weights]],
        keep: Callable[[Checkpoint], None],
        plan: Plan,
        advance: Advance,
    ) -> None:
        super().__init__()
        self.last = start
        self._judged, self._keep, self._plan, self._advance = judged, keep, plan, advance
        self._averages = keras.callbacks.SwapEMAWeights()

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._averages.set_model(model)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002  Keras' signature
        self._advance(detail=self.last.next_epoch(self._plan.epochs))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._averages.on_test_begin()
        judged, weights = self._judged()
        self._averages.on_test_end()
        optimizer = self.model.optimizer
        row: dict[str, Any] = {
            "phase": "fine-tune",
            "loss": float(logs["loss"]),
            "val_loss": judged.loss,
            "val_accuracy": judged.accuracy,
            "learning_rate": float(ops.convert_to_numpy(optimizer.learning_rate)),
        }
        # Keras' callbacks run after this one and read the same logs.
        logs |= {name: value for name, value in row.items() if name != "phase"}
        state = _values([*self.model.variables, *optimizer.variables])
        self.last = self.last.after(epoch + 1, row, judged.losses, state, weights)
        self._keep(self.last)
        if self.last.epochs_since_best >= self._plan.patience:
            self.model.stop_training = True


def compiled_student(
    base: keras.Model,
    head: keras.Model,
    plan: Plan,
    class_weights: npt.NDArray[np.float32],
    *,
    steps_per_epoch: int,
) -> tuple[keras.Model, keras.Model, keras.Model]:
    """Build the model that is trained, which consists of augmentation, backbone and head.

    The model does not share its weights with the classifier, because the two models may differ in precision, and
    because this model may be distributed over several devices.

    Returns:
        The model, its backbone and its head. The model maps
        ``{"pixels": (n, room height, room width, 3) uint8, "truth": (n, classes) one-hot}`` to (n, 2 * classes). The
        first half of the columns are the logits. The second half are the true classes, mixed in the same
        proportions as the images, then smoothed and multiplied by the class weights.
    """
    recipe, classes = plan.recipe, len(class_weights)
    base, head = _twin(base, mixed=plan.mixed), _twin(head, mixed=plan.mixed)
    thaw(base, plan.share, batch_norms=plan.from_scratch)

    pixels = keras.Input((*plan.room, 3), dtype="uint8", name="pixels")
    truth = keras.Input((classes,), name="truth")
    views = RandomView(plan.size, strength=recipe.augment, flip=recipe.flip, seed=recipe.seed)(pixels)
    mixed = truth
    if recipe.augment:
        views = RandomLight(strength=recipe.augment, seed=recipe.seed + 1)(views)
        views, mixed = Mix(alpha=MIX_ALPHA, seed=recipe.seed + 2)([views, truth])
    weighted = (mixed * (1 - LABEL_SMOOTHING) + LABEL_SMOOTHING / classes) * class_weights
    logits = ops.cast(head(base(views)), "float32")
    student = keras.Model({"pixels": pixels, "truth": truth}, ops.concatenate([logits, weighted], axis=-1))

    optimizer = _optimizer(plan, steps_per_epoch)
    student.compile(optimizer, loss=_cross_entropy)
    optimizer.build(student.trainable_variables)
    return student, base, head


def _twin(model: keras.Model, *, mixed: bool) -> keras.Model:
    """Return a copy of the model with its own weights. If ``mixed`` is True, the copy computes in 16 bits."""
    policy = {"dtype": "mixed_bfloat16"} if mixed else {}
    twin = keras.models.clone_model(
        model, clone_function=lambda layer: type(layer).from_config(layer.get_config() | policy)
    )
    twin.set_weights(model.get_weights())
    return twin


def _cross_entropy(_: Any, outputs: Any) -> Any:
    """Return the cross-entropy of the logits and the mixed truth. Both are columns of ``outputs``."""
    logits, truth = ops.split(outputs, 2, axis=-1)
    return -ops.sum(truth * ops.log_softmax(logits), axis=-1)


def _optimizer(plan: Plan, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """Return an AdamW optimizer that also averages the weights over about one epoch.

    Its learning rate first rises from zero, and then falls to zero again with cosine decay.
    """
    total = plan.epochs * steps_per_epoch
    warm_up = round(WARM_UP * total)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, total - warm_up, warmup_target=plan.learning_rate, warmup_steps=warm_up
    )
    horizon = min(1000, max(10, steps_per_epoch))
    optimizer = keras.optimizers.AdamW(
        rate, weight_decay=WEIGHT_DECAY, global_clipnorm=1.0, use_ema=True, ema_momentum=1 - 1 / horizon
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def thaw(base: keras.Model, share: float, *, batch_norms: bool) -> None:
    """Make a share of the backbone's layers trainable, counted from the output, and freeze the remaining layers.

    Only layers that have weights are counted.

    Unless ``batch_norms`` is True, batch normalization layers stay frozen. They keep their pretrained statistics and
    scales, which are better than estimates from a few small batches. In Keras, a frozen batch normalization layer uses
    its stored statistics also during training.
    """
    layers = [layer for layer in leaves(base) if layer.weights]
    frozen = round(len(layers) * (1 - share))
    for number, layer in enumerate(layers):
        norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = number >= frozen and (batch_norms or not norm)
