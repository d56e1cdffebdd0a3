"""What to do next, in words.

Every function takes plain figures and says nothing where there is nothing to say. `Advice.stake` orders them: the
share of all test images that following one might win, roughly. Half of the mistakes concerned is what a good
remedy can hope for; what wins no accuracy has the stake 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log, pi, sqrt
from typing import Any

import numpy as np

from edge_agent.inference.evaluation import Evaluation, Reliability, wilson_interval

from .learning_curve import MIN_TEST, DataSize

AT_ONCE = 3
"""Pairs and classes named: more at once is not advice."""
FEW = 0.5
"""A class has few images when it has less than this part of what the middle class has."""
IMBALANCE = 3
"""As in `trainer.data.checks`."""
NAME_LENGTH = 40


@dataclass(frozen=True)
class Advice:
    """One thing to do, and the share of all test images it might win."""

    text: str
    stake: float = 0.0


def named(label: str) -> str:
    """A class name as it stands in a sentence."""
    return f"“{label}”" if len(label) <= NAME_LENGTH else f"“{label[: NAME_LENGTH - 1]}…”"


def percent(share: float) -> str:
    """0.8749 as 87.5 %."""
    return f"{100 * share:.1f} %"


def about_confused_pairs(test: Evaluation) -> list[Advice]:
    """The pairs of classes that are taken for one another most."""
    wrong = int((~test.right).sum())
    support = test.support()
    counts: Counter[frozenset[str]] = Counter()
    for label, taken_for, count in test.confused_pairs():
        counts[frozenset((label, taken_for))] += count
    worst = []
    for pair, count in counts.most_common(AT_ONCE):
        images = sum(support[label] for label in pair)
        if count >= 2 and count >= 0.05 * max(wrong, images):
            worst.append((sorted(pair), count, images))
    if not worst:
        return []
    listed = "; ".join(f"{named(one)} and {named(other)} ({count} of {of})" for (one, other), count, of in worst)
    concerned = sum(count for _, count, _ in worst)
    text = (
        f"Tell apart what is confused most: {listed}. That is {100 * concerned / wrong:.0f} % of all mistakes. "
        "Photograph both of a pair in the same places and light, close enough to see what differs; if the difference "
        "does not matter to you, merge them."
    )
    return [Advice(text, concerned / len(test.truth) / 2)]


def about_weak_classes(test: Evaluation, training: Mapping[str, int]) -> list[Advice]:
    """Classes recognised clearly worse than the rest, by what they seem to lack.

    Args:
        test: the scored test images.
        training: number of training images of each class; empty where that is not known.
    """
    support, recall = test.support(), test.recall()
    middle = float(np.median(list(training.values()))) if training else 0.0
    missed = {label: round((1 - share) * support[label]) for label, share in recall.items()}
    weak = [label for label, share in recall.items() if wilson_interval(share, support[label])[1] < test.accuracy]
    weak.sort(key=lambda label: -missed[label])
    few = [label for label in weak if training.get(label, 0) < FEW * middle][:AT_ONCE]
    hard = [label for label in weak if label not in few][:AT_ONCE]
    advice = []
    if few:
        listed = "; ".join(
            f"{named(label)} has {training.get(label, 0)} training images and is recognised in "
            f"{support[label] - missed[label]} of {support[label]}"
            for label in few
        )
        text = f"Photograph more of what is rare: {listed}. The middle class has {middle:.0f} training images."
        advice.append(Advice(text, sum(missed[label] for label in few) / len(test.truth) / 2))
    if hard:
        listed = "; ".join(f"{named(label)} ({support[label] - missed[label]} of {support[label]})" for label in hard)
        text = (
            f"Find out what is hard about what is recognised least: {listed}. "
            f"{'It is not for want of images. ' if training else ''}Look at what the mistakes have in common, and "
            "photograph more of that."
        )
        advice.append(Advice(text, sum(missed[label] for label in hard) / len(test.truth) / 2))
    return advice


def about_imbalance(test: Evaluation, training: Mapping[str, int]) -> list[Advice]:
    """Classes of very different size."""
    if len(training) < 2:
        return []
    rare, common = (pick(training, key=lambda label: training[label]) for pick in (min, max))
    if training[common] < IMBALANCE * training[rare]:
        return []
    few = [label for label, count in training.items() if training[common] >= IMBALANCE * count]
    missed = sum(int(((test.truth == i) & ~test.right).sum()) for i, label in enumerate(test.labels) if label in few)
    others = f" and {len(few) - 1} more are as rare" if len(few) > 1 else ""
    text = (
        f"Even out the classes: {named(common)} has {training[common]} training images, {named(rare)} "
        f"{training[rare]}{others}. Training weighs them up, but an image seen often is no new image."
    )
    return [Advice(text, missed / len(test.truth) / 4)]


def about_test_images(test: Evaluation) -> list[Advice]:
    """Too few test images to trust the figure, or too easy ones."""
    count = len(test.truth)
    low, high = test.interval_95
    advice = []
    if test.right.all():
        advice.append(
            Advice(
                "Test on harder images: all were recognised, so they can no longer tell which change helps. Other "
                "days, other light, other places, other distances than in training show more."
            )
        )
    if high - low > 0.1:
        wanted = _images_for(test.accuracy, 0.05)
        advice.append(
            Advice(
                f"Test on more images: with {count}, one more mistake moves the accuracy by {100 / count:.1f} points "
                f"and the true rate is known to within {100 * (high - low):.0f}. About {wanted} would make that 5."
            )
        )
    return advice


def about_val_and_test(val: Evaluation, test: Evaluation) -> list[Advice]:
    """Test images that are clearly harder than those the training was steered by."""
    # The pooled test of two shares; 3 standard errors are no accident.
    pooled = (val.right.sum() + test.right.sum()) / (len(val.right) + len(test.right))
    error = sqrt(pooled * (1 - pooled) * (1 / len(val.right) + 1 / len(test.right)))
    gap = val.accuracy - test.accuracy
    if gap <= 3 * error or gap < 0.05:
        return []
    text = (
        f"Train on images like the test images: {percent(val.accuracy)} of the validation images are recognised, "
        f"{percent(test.accuracy)} of the test images. Those differ in place, light, time or object: add such to "
        "training."
    )
    return [Advice(text, gap / 2)]


def about_data_size(found: DataSize, error: float) -> list[Advice]:
    """Whether to label more.

    Args:
        found: the learning curve.
        error: share of the test images the model itself gets wrong.
    """
    if not found.forecasts or error == 0:
        return []
    twice = found.forecasts[0]
    if twice.high * error < 0.01:
        text = (
            f"Do not label more of the same kind. {size_sentence(found, error)} Images that differ from those you "
            "have, a larger --image-size or another --backbone are better bets."
        )
        return [Advice(text)]
    if twice.avoided * error < 0.005:
        return []
    return [Advice(f"Label more images. {size_sentence(found, error)}", twice.avoided * error)]


def size_sentence(found: DataSize, error: float) -> str:
    """The answer to "have I labelled enough?".

    Args:
        found: the learning curve.
        error: share of the test images the model itself gets wrong; the curve's avoided mistakes are scaled to it.
    """
    if found.test_images < MIN_TEST:
        return f"{found.test_images} test images cannot tell whether more to train on would help; {MIN_TEST} might."
    if not found.points or (len(found.points) < 3 and not found.forecasts):
        return f"{found.train_images} training images are too few to see where more would lead."
    if not found.forecasts:
        return "These test images cannot tell: even quick heads on the frozen network make no mistake."
    twice = found.forecasts[0]
    gain, low, high = (100 * share * error for share in (twice.avoided, twice.low, twice.high))
    return (
        f"Twice as many training images, {2 * found.train_images:,}, would bring about {gain:+.1f} points "
        f"({low:.1f} to {high:.1f})."
    )


def about_head(found: DataSize, test: Evaluation) -> list[Advice]:
    """A training that did worse than one least squares step on the frozen network."""
    if not found.points:
        return []
    quick = found.points[-1].accuracy
    error = sqrt(max(quick * (1 - quick), 0.01) / found.test_images)
    if quick - test.accuracy < max(0.03, 2 * error):
        return []
    text = (
        f"Train more gently: a plain least squares head on the untouched network reaches {percent(quick)}, this "
        f"training {percent(test.accuracy)}. A lower learning rate, or fewer layers trained, should not lose to it."
    )
    return [Advice(text, quick - test.accuracy)]


def about_fit(history: Sequence[Mapping[str, Any]], kept: int | None, classes: int) -> list[Advice]:
    """Overfitting, underfitting, or a training cut short, from the losses.

    Label smoothing and mixing raise the training loss, never lower it; so a training loss far below the
    validation loss is overfitting for sure, and one near it need not be.
    """
    rows = [row for row in history if row.get("phase") == history[-1].get("phase")]
    losses = [float(row["loss"]) for row in rows]
    validation = [float(row["val_loss"]) for row in rows]
    if kept is not None and kept < len(history) - len(rows):
        text = (
            "Fine-tuning brought nothing here: on the validation images the head alone did best. More --epochs or a "
            "lower --learning-rate may change that; --fine-tune none saves the time."
        )
        return [Advice(text, 0.005)]
    if len(rows) < 4:
        return []
    best = int(np.argmin(validation)) if kept is None else kept - (len(history) - len(rows))
    loss, val_loss = losses[best], validation[best]
    fell_lately = min(validation[: -max(2, len(rows) // 5)]) - min(validation)
    if best == len(rows) - 1 and fell_lately > 0.1 * val_loss and val_loss > 0.05:
        return [Advice("Train longer: the validation loss was still falling at the end. Raise --epochs.", 0.02)]
    if val_loss > 0.3 and val_loss > 3 * loss:
        text = (
            "Give it less to learn by heart: it knows its training images far better than the validation images "
            f"(loss {loss:.2f} against {val_loss:.2f}). More different images, stronger augmentation or a smaller "
            "backbone help."
        )
        return [Advice(text, 0.02)]
    if val_loss > 0.5 * log(classes) and loss > 0.8 * val_loss:
        text = (
            "Give it more to work with: it does not even know its training images well "
            f"(loss {loss:.2f}; guessing has {log(classes):.2f}). A larger --backbone or --image-size sees more."
        )
        return [Advice(text, 0.03)]
    return []


def about_calibration(test: Evaluation) -> list[Advice]:
    """Scores that do not mean what they say, beyond what chance makes of so few images."""
    found = test.reliability()
    error = test.calibration_error()
    # 2.5 times is 2 standard errors where one bin holds everything, and more where several do.
    if len(test.truth) < MIN_TEST or error < max(0.05, 2.5 * calibration_noise(found)):
        return []
    used = found.images > 0
    gap = float((found.images[used] * (found.score[used] - found.accuracy[used])).sum() / found.images.sum())
    too = "too sure" if gap > 0 else "too modest"
    text = (
        f"Do not read scores as probabilities: the model is {too}, by {percent(error)} on average. The validation "
        "images its temperature was fitted on are not like the test images, or too few."
    )
    return [Advice(text)]


def calibration_noise(found: Reliability) -> float:
    """The calibration error that scores which mean just what they say would show on so few images.

    In each bin the mean distance of a binomial share from its expectation, sqrt(2 p (1 - p) / (pi n)).
    """
    used = found.images > 0
    images, share = found.images[used], found.score[used]
    return float((images * np.sqrt(2 * share * (1 - share) / (pi * images))).sum() / images.sum())


def _images_for(accuracy: float, width: float) -> int:
    """Test images whose Wilson interval is about ``width`` wide, to two digits."""
    share = min(max(accuracy, 0.1), 0.9)
    count = share * (1 - share) * (2 * 1.96 / width) ** 2
    return int(round(count, -1 if count < 1000 else -2))
