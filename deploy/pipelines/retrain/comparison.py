"""Champion against challenger: two bundles through the device's classifier, on the same images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

import edge_agent
from edge_agent.errors import DataError
from edge_agent.images import read_image
from edge_agent.inference.evaluation import Evaluation
from trainer.data import Photo

MAX_DROP, MAX_CLASS_DROP = 1.0, 10.0
"""Points of accuracy, and of one class's recall, that the challenger may be worse on the frozen test split."""
ALMOST = 1e-9


@dataclass(frozen=True, eq=False)
class PairedResults:
    """Both models' answers on some images, in the challenger's classes.

    Attributes:
        photos: the images.
        champion, challenger: their answers. A class the champion does not know gets no score of its.
    """

    photos: tuple[Photo, ...]
    champion: Evaluation
    challenger: Evaluation

    @property
    def gained(self) -> list[int]:
        """Places of images that the challenger alone gets right."""
        return [int(place) for place in np.flatnonzero(self.challenger.right & ~self.champion.right)]

    @property
    def lost(self) -> list[int]:
        """Places of images that the champion alone gets right, the challenger's surest mistake first."""
        places = np.flatnonzero(self.champion.right & ~self.challenger.right)
        sure = self.challenger.scores[places].max(axis=1)
        return [int(place) for place in places[np.argsort(-sure, kind="stable")]]

    @property
    def drop(self) -> float:
        """Points of accuracy that the challenger is worse; negative where it is better."""
        return 100 * (self.champion.accuracy - self.challenger.accuracy)


@dataclass(frozen=True, eq=False)
class Comparison:
    """How it ended.

    Attributes:
        frozen: on the test split of the old run.
        new: on the labelled frames that nobody learned from; None where there are none.
    """

    frozen: PairedResults
    new: PairedResults | None

    def refusals(self, *, max_drop: float = MAX_DROP, max_class_drop: float = MAX_CLASS_DROP) -> list[str]:
        """Why the challenger is not to take the champion's place; empty where it may.

        One image more or less decides nothing.
        """
        found = []
        frozen, new = self.frozen, self.new
        if frozen.drop > max_drop + ALMOST and len(frozen.lost) - len(frozen.gained) > 1:
            found.append(
                f"on the frozen test split it recognises {_percent(frozen.challenger)}, the model before "
                f"{_percent(frozen.champion)}: {frozen.drop:.1f} points lost, {max_drop:g} allowed (--max-drop)"
            )
        before, after, support = frozen.champion.recall(), frozen.challenger.recall(), frozen.champion.support()
        worse = [
            f"{label} {100 * before[label]:.0f} -> {100 * after[label]:.0f} %"
            for label in before
            if 100 * (before[label] - after[label]) > max_class_drop + ALMOST
            and (before[label] - after[label]) * support[label] > 1.5
        ]
        if worse:
            found.append(
                f"classes lost more than {max_class_drop:g} points on the frozen test split (--max-class-drop): "
                f"{', '.join(worse[:5])}"
            )
        if new is not None and new.drop > ALMOST and len(new.lost) - len(new.gained) > 1:
            found.append(
                f"on new frames it recognises {_percent(new.challenger)}, the model before {_percent(new.champion)}: "
                "what was labelled did not help"
            )
        return found


def duel(
    champion: Path,
    challenger: Path,
    frozen: tuple[Path, Sequence[Photo]],
    new: tuple[Path, Sequence[Photo]],
    *,
    console: Console,
) -> Comparison:
    """Ask both bundles about the same images.

    Args:
        champion: the bundle to be replaced.
        challenger: the one to replace it.
        frozen: folder and photos of the old run's test split.
        new: folder and photos of labelled frames that neither learned from; may be none.
        console: for the progress bar.

    Raises:
        DataError: an image cannot be read, or the challenger lacks one of the champion's classes.
        BundleError, ModelError: a bundle is not usable.
    """
    with ExitStack() as held:
        first, second = (held.enter_context(edge_agent.open(bundle)) for bundle in (champion, challenger))
        missing = set(first.labels) - set(second.labels)
        if missing:
            raise DataError(f"{challenger}: does not know {', '.join(sorted(missing))}, which {champion} knows")
        matches = []
        for (root, photos), what in ((frozen, "Testing on the frozen split"), (new, "Testing on new frames")):
            shown = track(photos, what, console=console, disable=not photos)
            matches.append(_match(first, second, root, shown) if photos else None)
    if matches[0] is None:
        raise DataError("the old run has no test split; train it again")
    return Comparison(matches[0], matches[1])


def _match(
    champion: edge_agent.Classifier, challenger: edge_agent.Classifier, root: Path, photos: Iterable[Photo]
) -> PairedResults:
    labels = challenger.labels
    columns = [labels.index(label) for label in champion.labels]
    asked: list[Photo] = []
    old: list[npt.NDArray[np.float32]] = []
    new: list[npt.NDArray[np.float32]] = []
    for photo in photos:
        frame = read_image(root / photo.path)
        padded = np.zeros(len(labels), np.float32)
        padded[columns] = champion.classify(frame).scores
        old.append(padded)
        new.append(challenger.classify(frame).scores)
        asked.append(photo)
    truth = np.array([labels.index(photo.label) for photo in asked], np.intp)
    return PairedResults(
        tuple(asked), Evaluation(labels, truth, np.stack(old)), Evaluation(labels, truth, np.stack(new))
    )


def _percent(found: Evaluation) -> str:
    return f"{100 * found.accuracy:.1f} % of {len(found.truth)}"
