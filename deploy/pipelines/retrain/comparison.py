"""Compares the champion with the challenger.

Both bundles are evaluated on the same images with the classifier that the devices use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

import edge_agent
from edge_agent.errors import DataError
from edge_agent.images import read_image
from edge_agent.inference.evaluation import Evaluation
from trainer.data import Photo
from trainer.progress import track

MAX_DROP, MAX_CLASS_DROP = 1.0, 10.0
"""Maximum losses on the frozen test split, in percentage points: of accuracy, and of the recall of any class."""
TOLERANCE = 1e-9
"""Tolerance for the rounding of floating-point numbers, in percentage points."""


@dataclass(frozen=True, eq=False)
class PairedResults:
    """Evaluations of both models on the same images. Scores are in the order of the challenger's classes.

    Attributes:
        photos: the images.
        champion, challenger: the evaluations. The champion's score is 0 for a class that it does not know.
    """

    photos: tuple[Photo, ...]
    champion: Evaluation
    challenger: Evaluation

    @property
    def gained(self) -> list[int]:
        """Indices of the images that only the challenger classifies correctly."""
        return [int(place) for place in np.flatnonzero(self.challenger.right & ~self.champion.right)]

    @property
    def lost(self) -> list[int]:
        """Indices of the images that only the champion classifies correctly.

        They are sorted by the score with which the challenger made its wrong prediction, highest first.
        """
        places = np.flatnonzero(self.champion.right & ~self.challenger.right)
        sure = self.challenger.scores[places].max(axis=1)
        return [int(place) for place in places[np.argsort(-sure, kind="stable")]]

    @property
    def drop(self) -> float:
        """Accuracy that the challenger loses, in percentage points; negative if it is better."""
        return 100 * (self.champion.accuracy - self.challenger.accuracy)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Result of a comparison.

    Attributes:
        frozen: results on the test split of the old run.
        new: results on the labelled frames that were not used for training; None if there are none.
    """

    frozen: PairedResults
    new: PairedResults | None

    def refusals(self, *, max_drop: float = MAX_DROP, max_class_drop: float = MAX_CLASS_DROP) -> list[str]:
        """Return the reasons against promoting the challenger. The list is empty if it can be promoted.

        A loss of a single image is never a reason.
        """
        found = []
        frozen, new = self.frozen, self.new
        if frozen.drop > max_drop + TOLERANCE and len(frozen.lost) - len(frozen.gained) > 1:
            found.append(
                f"accuracy on the frozen test split: {_percent(frozen.challenger)}, champion "
                f"{_percent(frozen.champion)}: {frozen.drop:.1f} points lost, at most {max_drop:g} allowed (--max-drop)"
            )
        before, after, support = frozen.champion.recall(), frozen.challenger.recall(), frozen.champion.support()
        worse = [
            f"{label} {100 * before[label]:.0f} -> {100 * after[label]:.0f} %"
            for label in before
            if 100 * (before[label] - after[label]) > max_class_drop + TOLERANCE
            and (before[label] - after[label]) * support[label] > 1.5
        ]
        if worse:
            found.append(
                f"classes lost more than {max_class_drop:g} points on the frozen test split (--max-class-drop): "
                f"{', '.join(worse[:5])}"
            )
        if new is not None and new.drop > TOLERANCE and len(new.lost) - len(new.gained) > 1:
            found.append(
                f"accuracy on new frames: {_percent(new.challenger)}, champion {_percent(new.champion)}: "
                "the new labels did not improve the model"
            )
        return found


def compare(
    champion: Path,
    challenger: Path,
    frozen: tuple[Path, Sequence[Photo]],
    new: tuple[Path, Sequence[Photo]],
    *,
    console: Console,
) -> Comparison:
    """Evaluate both bundles on the same images.

    Args:
        champion: the current bundle.
        challenger: the bundle that may replace it.
        frozen: folder and images of the old run's test split.
        new: folder and images of the labelled frames that were not used for training; there may be no such images.
        console: console that shows the progress.

    Raises:
        DataError: an image cannot be read, or the challenger lacks one of the champion's classes.
        BundleError, ModelError: a bundle cannot be used.
    """
    with ExitStack() as held:
        first, second = (held.enter_context(edge_agent.open(bundle)) for bundle in (champion, challenger))
        missing = set(first.labels) - set(second.labels)
        if missing:
            raise DataError(f"{challenger}: lacks {', '.join(sorted(missing))}, a class of {champion}")
        matches = []
        for (root, photos), what in ((frozen, "Testing on the frozen split"), (new, "Testing on new frames")):
            shown = track(photos, what, total=len(photos), console=console)
            matches.append(_match(first, second, root, shown) if photos else None)
    if matches[0] is None:
        raise DataError("the old run has no test split; train it again")
    return Comparison(matches[0], matches[1])


def _match(
    champion: edge_agent.Classifier, challenger: edge_agent.Classifier, root: Path, photos: Iterable[Photo]
) -> PairedResults:
    labels = challenger.labels
    columns = [labels.index(label) for label in champion.labels]
    evaluated: list[Photo] = []
    old: list[npt.NDArray[np.float32]] = []
    new: list[npt.NDArray[np.float32]] = []
    for photo in photos:
        frame = read_image(root / photo.path)
        padded = np.zeros(len(labels), np.float32)
        padded[columns] = champion.classify(frame).scores
        old.append(padded)
        new.append(challenger.classify(frame).scores)
        evaluated.append(photo)
    truth = np.array([labels.index(photo.label) for photo in evaluated], np.intp)
    return PairedResults(
        tuple(evaluated), Evaluation(labels, truth, np.stack(old)), Evaluation(labels, truth, np.stack(new))
    )


def _percent(found: Evaluation) -> str:
    return f"{100 * found.accuracy:.1f} % of {len(found.truth)}"
