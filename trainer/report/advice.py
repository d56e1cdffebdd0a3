"""Writes the advice of a report: sentences that tell the user what to do next.

Each `about_*` function checks one topic and returns an empty list if it has no advice. The report sorts the advice by
`Advice.stake`, a rough estimate of the gain in accuracy on the test images. Most estimates assume that the advice
corrects half of the mistakes that it is about. Advice that does not raise the accuracy has the stake 0.
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
"""Maximum number of pairs or classes that one piece of advice names. A longer list would be hard to act on."""
FEW = 0.5
"""A class counts as rare if its number of training images is less than this fraction of the median of all classes."""
IMBALANCE = 3
"""Minimum ratio of the sizes of the largest and the smallest class at which the advice is to balance the classes."""
NAME_LENGTH = 40


@dataclass(frozen=True)
class Advice:
    """One piece of advice.

    Attributes:
        text: one or more sentences.
        stake: estimated gain in accuracy if the user follows the advice, 0 to 1.
    """

    text: str
    stake: float = 0.0


def quoted(label: str) -> str:
    """Return a class name in quotation marks, shortened to NAME_LENGTH characters."""
    return f"“{label}”" if len(label) <= NAME_LENGTH else f"“{label[: NAME_LENGTH - 1]}…”"


def percent(share: float) -> str:
    """Format a share as a percentage, for example 0.8749 as "87.5 %"."""
    return f"{100 * share:.1f} %"


def about_confused_pairs(test: Evaluation) -> list[Advice]:
    """Name the pairs of classes that are most often confused with each other."""
    wrong = int((~test.right).sum())
    support = test.support()
    counts: Counter[frozenset[str]] = Counter()
    for label, predicted, count in test.confused_pairs():
        counts[frozenset((label, predicted))] += count
    worst = []
    for pair, count in counts.most_common(AT_ONCE):
        images = sum(support[label] for label in pair)
        if count >= 2 and count >= 0.05 * max(wrong, images):
            worst.append((sorted(pair), count, images))
    if not worst:
        return []
    listed = "; ".join(f"{quoted(one)} and {quoted(other)} ({count} of {of})" for (one, other), count, of in worst)
    concerned = sum(count for _, count, _ in worst)
    text = (
        f"Separate the most confused classes: {listed}. These are {100 * concerned / wrong:.0f} % of all mistakes. "
        "Photograph both classes of a pair in the same places and light, close enough to show the differences. If "
        "the difference does not matter to you, merge the two classes."
    )
    return [Advice(text, concerned / len(test.truth) / 2)]


def about_weak_classes(test: Evaluation, training: Mapping[str, int]) -> list[Advice]:
    """Name the classes whose recall is significantly lower than the accuracy, with a likely reason.

    Args:
        test: scores of the test images.
        training: number of training images of each class; empty if unknown.
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
            f"{quoted(label)} has {training.get(label, 0)} training images and is recognised in "
            f"{support[label] - missed[label]} of {support[label]}"
            for label in few
        )
        text = f"Photograph more of the rare classes: {listed}. The median class has {middle:.0f} training images."
        advice.append(Advice(text, sum(missed[label] for label in few) / len(test.truth) / 2))
    if hard:
        listed = "; ".join(f"{quoted(label)} ({support[label] - missed[label]} of {support[label]})" for label in hard)
        text = (
            f"Find out why these classes are hard to recognise: {listed}. "
            f"{'They do not lack training images. ' if training else ''}Look at what the mistakes have in common, and "
            "take more photos of those situations."
        )
        advice.append(Advice(text, sum(missed[label] for label in hard) / len(test.truth) / 2))
    return advice


def about_imbalance(test: Evaluation, training: Mapping[str, int]) -> list[Advice]:
    """Name the largest and the smallest class if their sizes differ by a factor of `IMBALANCE` or more."""
    if len(training) < 2:
        return []
    rare, common = (pick(training, key=lambda label: training[label]) for pick in (min, max))
    if training[common] < IMBALANCE * training[rare]:
        return []
    few = [label for label, count in training.items() if training[common] >= IMBALANCE * count]
    missed = sum(int(((test.truth == i) & ~test.right).sum()) for i, label in enumerate(test.labels) if label in few)
    others = f", and {len(few) - 1} more classes are similarly small" if len(few) > 1 else ""
    text = (
        f"Balance the classes: {quoted(common)} has {training[common]} training images, {quoted(rare)} "
        f"{training[rare]}{others}. Training gives rare classes more weight, but this does not replace new images."
    )
    return [Advice(text, missed / len(test.truth) / 4)]


def about_test_images(test: Evaluation) -> list[Advice]:
    """Check whether the test images are too easy, or too few for a reliable accuracy."""
    count = len(test.truth)
    low, high = test.interval_95
    advice = []
    if test.right.all():
        advice.append(
            Advice(
                "Test on harder images: all of them were recognised, so they cannot show whether a change helps. Take "
                "them on other days and at other places, in other light and from other distances than in training."
            )
        )
    if high - low > 0.1:
        needed = _images_for(test.accuracy, 0.05)
        advice.append(
            Advice(
                f"Test on more images: with {count}, one more mistake moves the accuracy by {100 / count:.1f} points "
                f"and its 95 % interval is {100 * (high - low):.0f} points wide. With about {needed} test images it "
                "would be 5 points wide."
            )
        )
    return advice


def about_val_and_test(val: Evaluation, test: Evaluation) -> list[Advice]:
    """Check whether the test images are significantly harder than the validation images.

    The check is a pooled two-proportion z-test with a threshold of 3 standard errors. The difference in accuracy must
    also be at least 5 points.
    """
    pooled = (val.right.sum() + test.right.sum()) / (len(val.right) + len(test.right))
    error = sqrt(pooled * (1 - pooled) * (1 / len(val.right) + 1 / len(test.right)))
    gap = val.accuracy - test.accuracy
    if gap <= 3 * error or gap < 0.05:
        return []
    text = (
        f"Train on images that resemble the test images: {percent(val.accuracy)} of the validation images are "
        f"recognised, but only {percent(test.accuracy)} of the test images. The test images differ in place, light, "
        "time or objects; add similar images to the training data."
    )
    return [Advice(text, gap / 2)]


def about_data_size(found: DataSize, error: float) -> list[Advice]:
    """Advise the user to label more images, or not to label more of the same kind.

    Args:
        found: the learning curve and its forecasts.
        error: share of the test images that the model misclassifies, 0 to 1.
    """
    if not found.forecasts or error == 0:
        return []
    twice = found.forecasts[0]
    if twice.high * error < 0.01:
        text = (
            f"Do not label more images of the same kind. {size_sentence(found, error)} Images that differ from those "
            "you have, a larger --image-size or another --backbone are more likely to help."
        )
        return [Advice(text)]
    if twice.avoided * error < 0.005:
        return []
    return [Advice(f"Label more images. {size_sentence(found, error)}", twice.avoided * error)]


def size_sentence(found: DataSize, error: float) -> str:
    """Answer the question "Have I labelled enough images?" in one sentence.

    Args:
        found: the learning curve and its forecasts, which are measured with simple heads.
        error: share of the test images that the model misclassifies, 0 to 1. The sentence assumes that more images
            avoid the same share of the mistakes of the model as of the mistakes of the simple heads.
    """
    if found.test_images < MIN_TEST:
        return (
            f"{found.test_images} test images are too few to estimate whether more training images would help; "
            f"at least {MIN_TEST} are needed."
        )
    if not found.points or (len(found.points) < 3 and not found.forecasts):
        return f"{found.train_images} training images are too few for a forecast."
    if not found.forecasts:
        return "No forecast: even simple heads on the frozen network make no mistake on these test images."
    twice = found.forecasts[0]
    gain, low, high = (100 * share * error for share in (twice.avoided, twice.low, twice.high))
    return (
        f"Twice as many training images ({2 * found.train_images:,}) would change the accuracy by about "
        f"{gain:+.1f} points ({low:.1f} to {high:.1f})."
    )


def about_head(found: DataSize, test: Evaluation) -> list[Advice]:
    """Check whether the trained model is less accurate than a least squares head on the pretrained network."""
    if not found.points:
        return []
    quick = found.points[-1].accuracy
    error = sqrt(max(quick * (1 - quick), 0.01) / found.test_images)
    if quick - test.accuracy < max(0.03, 2 * error):
        return []
    text = (
        f"Lower the learning rate or train fewer layers: a simple least squares head on the pretrained network reaches "
        f"{percent(quick)}, this training only {percent(test.accuracy)}."
    )
    return [Advice(text, quick - test.accuracy)]


def about_fit(history: Sequence[Mapping[str, Any]], kept: int | None, classes: int) -> list[Advice]:
    """Detect overfitting, underfitting and too few epochs from the losses.

    Label smoothing and mixing of images can only raise the training loss. Therefore a training loss far below the
    validation loss always means overfitting. However, the model can also overfit if the two losses are close.

    Args:
        history: one row per epoch; see `ReportData`.
        kept: index of the row of the epoch whose weights the model has; None if unknown.
        classes: number of classes.
    """
    rows = [row for row in history if row.get("phase") == history[-1].get("phase")]
    losses = [float(row["loss"]) for row in rows]
    validation = [float(row["val_loss"]) for row in rows]
    if kept is not None and kept < len(history) - len(rows):
        text = (
            "Fine-tuning did not help: the head alone was best on the validation images. Try more --epochs or a lower "
            "--learning-rate, or save the time with --fine-tune none."
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
            "Reduce overfitting: the model does far better on its training images than on the validation images "
            f"(loss {loss:.2f} against {val_loss:.2f}). More varied images, stronger augmentation or a smaller "
            "backbone help."
        )
        return [Advice(text, 0.02)]
    if val_loss > 0.5 * log(classes) and loss > 0.8 * val_loss:
        text = (
            "Reduce underfitting: the model does not even fit its training images well "
            f"(loss {loss:.2f}; guessing gives {log(classes):.2f}). Try a larger --backbone or --image-size."
        )
        return [Advice(text, 0.03)]
    return []


def about_calibration(test: Evaluation) -> list[Advice]:
    """Check whether the calibration error is too large to be explained by the small number of test images."""
    found = test.reliability()
    error = test.calibration_error()
    # If all images are in one bin, 2.5 times the noise is 2 standard errors. With several bins it is more.
    if len(test.truth) < MIN_TEST or error < max(0.05, 2.5 * calibration_noise(found)):
        return []
    used = found.images > 0
    gap = float((found.images[used] * (found.score[used] - found.accuracy[used])).sum() / found.images.sum())
    tendency = "overconfident" if gap > 0 else "underconfident"
    text = (
        f"Do not read scores as probabilities: the model is {tendency}, by {percent(error)} on average. The validation "
        "images used to fit its temperature differ from the test images, or are too few."
    )
    return [Advice(text)]


def calibration_noise(found: Reliability) -> float:
    """Return the calibration error that perfectly calibrated scores would have by chance.

    The fewer images there are, the larger it is. In a bin with n images and a mean score p, it is the mean absolute
    deviation of a binomial share from its expectation, sqrt(2 p (1 - p) / (pi n)).
    """
    used = found.images > 0
    images, share = found.images[used], found.score[used]
    return float((images * np.sqrt(2 * share * (1 - share) / (pi * images))).sum() / images.sum())


def _images_for(accuracy: float, width: float) -> int:
    """Return the number of test images with which the Wilson interval is about ``width`` wide.

    The number is rounded to tens, from 1,000 on to hundreds.

    Args:
        accuracy: expected accuracy, 0 to 1.
        width: width of the 95 % interval, 0 to 1.
    """
    share = min(max(accuracy, 0.1), 0.9)
    count = share * (1 - share) * (2 * 1.96 / width) ** 2
    return int(round(count, -1 if count < 1000 else -2))
