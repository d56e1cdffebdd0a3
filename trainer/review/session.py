"""One folder under review: its frames, their annotations, the model's predictions, and the order of labelling."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from rich.console import Console

from edge_agent.errors import DataError

from ..active_learning.annotations import Annotation, Annotations, now
from ..active_learning.captured_frames import CapturedFrame, find_frames
from ..active_learning.embeddings import embed, load_network
from ..active_learning.feature_space import Floats, Indices, build_space, distances_to_known, squared_distances
from ..active_learning.label_forecast import LabelForecast, forecast_labels
from ..active_learning.ranking import GROUP, fit_head, propose, uncertainty
from ..active_learning.training_set import training_images
from .filters import FrameFilter, camera_of, mask_of

log = logging.getLogger(__name__)

ROUND = 10
"""Number of new annotations after which the head is trained again; fewer would keep a core busy."""
FORECAST_GROWTH = 1.15
"""Factor by which the number of labels must grow before the label forecast, which takes seconds, is computed again."""
LEASE_S = 600.0
"""Time during which the frames sent to one client are not sent to another, in seconds."""
MAX_GROUPS = 50
NONE = "none of these"
"""Name of the prediction for frames that show none of the classes."""
_NO_GUESS, _NO_CLASS, _UNKNOWN_CLASS = -1, -2, -3
"""Used instead of a class index: no prediction, the prediction NONE, and a name that is not a class."""


@dataclass(frozen=True, eq=False)
class _Predictions:
    """Current predictions for all frames.

    Attributes:
        guess: (n,) int, index of the predicted class, or _NO_GUESS or _NO_CLASS.
        score: (n,) float32, score of that class.
        uncertainties: (n,) float32, see `uncertainty`.
    """

    guess: Indices
    score: Floats
    uncertainties: Floats


class Session:
    """A folder under review. Thread-safe.

    A context manager: inside it a background thread trains a head on new annotations.

    Attributes:
        folder: the folder.
        frames: frames that can be shown, sorted by time.
        problems: one message for each file that cannot be used.
    """

    def __init__(self, folder: Path, *, run: Path | None, console: Console, cache: Path | None = None) -> None:
        """Find the frames of a folder and compute their embeddings, or read them from the cache.

        Args:
            folder: folder of captured frames or any images.
            run: run whose model predicts the classes; None for no model.
            console: console for the progress.
            cache: folder of the embeddings cache; the default one if None.

        Raises:
            DataError: the folder, the run or the annotation log is not usable.
            MissingExtraError: Keras is not installed.
        """
        self.folder = folder
        with console.status("Looking through the folder"):
            found = find_frames(folder)
            self._annotations = Annotations(folder)
        with console.status("Loading the model"):
            network = load_network(run)
        images = [(frame.sha256, folder / frame.path) for frame in found.frames]
        embeddings = embed(
            network, images, description="Computing embeddings of the frames", console=console, cache=cache
        )
        usable = np.array([index not in embeddings.failed for index in range(len(images))], np.bool_)
        if not usable.any():
            raise DataError(f"{folder}: none of the {len(images)} images can be read, first: {embeddings.failed[0]}")
        self.problems = (*found.problems, *embeddings.failed.values())
        self.frames = tuple(frame for frame, good in zip(found.frames, usable, strict=True) if good)
        self._index = {frame.sha256: index for index, frame in enumerate(self.frames)}
        known, self._known_truth = training_images(network, run, console, cache)
        with console.status("Comparing the frames"):
            self._space = build_space(embeddings.features[usable], known)
            self._known_distances = distances_to_known(self._space.frames, self._space.known)
        self._trained = network.labels
        self._classes = list(network.labels or sorted({label for frame in self.frames for label, _ in frame.scores}))
        self._model_scores = embeddings.scores[usable] if network.labels else None
        self._model_predictions = None if self._model_scores is None else self._model_scores.argmax(axis=1)
        self._lock = threading.RLock()
        self._leases: dict[int, tuple[str, float]] = {}
        self._forecast: LabelForecast | None = None
        self._predictions = self._initial_predictions()
        self._nearest = self._known_distances.copy()
        self._annotated = np.zeros(len(self.frames), np.bool_)
        self._batch = np.full(len(self.frames), -1, np.intp)
        self._batches = 0
        self._wake = threading.Event()
        self._closing = False
        self._learned = self._annotations.count
        self._apply(list(self._annotations.latest.values()))
        self._thread = threading.Thread(target=self._learn_in_background, name="review", daemon=True)

    def __enter__(self) -> Self:
        """Start the background thread."""
        if self._annotations.count:
            self._wake.set()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the background thread. All annotations have already been saved."""
        self._closing = True
        self._wake.set()
        self._thread.join(1)

    # --- requests of the page ---

    def state(self) -> dict[str, Any]:
        """Return everything but the frames: classes, filter values, progress, forecast and problems."""
        with self._lock:
            self._refresh()
            latest = {sha256: last for sha256, last in self._annotations.latest.items() if sha256 in self._index}
            verdicts = Counter(annotation.verdict for annotation in latest.values())
            labels = Counter(annotation.label for annotation in latest.values() if annotation.verdict == "label")
            annotated = sum(count for verdict, count in verdicts.items() if verdict != "open")
            forecast = self._forecast
            return {
                "folder": str(self.folder.resolve()),
                "trained": bool(self._trained),
                "classes": [
                    {"name": name, "count": labels[name], "new": name not in self._trained} for name in self._classes
                ],
                "cameras": sorted({camera_of(frame) for frame in self.frames} - {""}),
                "days": _days(self.frames),
                "counts": {
                    "frames": len(self.frames),
                    "open": len(self.frames) - annotated,
                    **{name: verdicts[name] for name in ("label", "none", "skip")},
                },
                "disputed": sum(sha256 in self._index for sha256 in self._annotations.disputed),
                "problems": [*self._annotations.problems, *self.problems][:100],
                "outlook": None if forecast is None else asdict(forecast),
            }

    def groups(self, client: str, *, holding: Sequence[str], count: int, criteria: FrameFilter) -> dict[str, Any]:
        """Return the next groups of frames for a client, the most valuable first.

        Args:
            client: identifier of one open page.
            holding: hashes of frames that the page shows, queues or has annotated without confirmation yet.
            count: maximum number of groups.
            criteria: which frames to return.

        Returns:
            ``groups``: lists of frames; ``wanted``: number of all frames that match the criteria.
        """
        with self._lock:
            self._refresh()
            mask = self._mask(criteria)
            # These frames are still open here, but must not be sent again.
            held = {self._index[sha256] for sha256 in holding if sha256 in self._index}
            time_now = time.monotonic()
            self._leases = {
                index: (who, until)
                for index, (who, until) in self._leases.items()
                if until > time_now and (who != client or index in held)
            }
            free = mask.copy()
            free[list(self._leases)] = False
            free[list(held)] = False
            count = min(count, MAX_GROUPS)
            if criteria.status == "open":
                groups = propose(self._space, self._predictions.uncertainties, self._nearest, free, count)
            else:
                groups = self._by_label(free, count)
            for group in groups:
                for index in group.tolist():
                    self._leases[index] = (client, time_now + LEASE_S)
            return {
                "groups": [[self._shown(index) for index in group.tolist()] for group in groups],
                "wanted": int(mask.sum()),
            }

    def annotate(self, hashes: Sequence[str], verdict: str, label: str, by: str) -> dict[str, Any]:
        """Annotate frames; the annotations are on the disk when this returns.

        Args:
            hashes: hashes of the frames.
            verdict: see `Annotation`.
            label: class name, for the verdict `label`.
            by: name of the annotator.

        Returns:
            ``saved``: number of annotations; ``overridden``: frames that another person had annotated differently.

        Raises:
            DataError: the annotation is not valid, or a frame is unknown.
            OSError: the disk is full or read-only; nothing is annotated.
        """
        at = now()
        try:
            added = [
                msgspec.convert(
                    {"sha256": sha256, "verdict": verdict, "label": label, "by": by, "at": at}, Annotation, strict=True
                )
                for sha256 in dict.fromkeys(hashes)
            ]
        except msgspec.ValidationError as error:
            raise DataError(str(error)) from error
        if not added or any(annotation.sha256 not in self._index for annotation in added):
            raise DataError("no such frame; load the page again")
        with self._lock:
            self._refresh()
            before = dict(self._annotations.latest)
            self._apply(self._annotations.add(added))
            overridden = [
                {"id": one.sha256, "by": last.by, "verdict": last.verdict, "label": last.label}
                for one in added
                if (last := before.get(one.sha256)) is not None
                and last.by != by
                and last.verdict != "open"
                and verdict != "open"
                and (last.verdict, last.label) != (one.verdict, one.label)
            ]
        return {"saved": len(added), "overridden": overridden}

    def frame(self, sha256: str) -> CapturedFrame | None:
        """Return the frame with this hash, or None."""
        index = self._index.get(sha256)
        return None if index is None else self.frames[index]

    def labelled(self) -> list[tuple[CapturedFrame, Annotation]]:
        """Return the frames with an annotation other than `open`, sorted by time."""
        with self._lock:
            self._refresh()
            latest = self._annotations.latest
            return [
                (frame, annotation)
                for frame in self.frames
                if (annotation := latest.get(frame.sha256)) is not None and annotation.verdict != "open"
            ]

    # --- annotations ---

    def _refresh(self) -> None:
        before = self._annotations.generation
        added = self._annotations.refresh()
        if self._annotations.generation != before:  # the log was replaced, so all annotations are new
            self._nearest = self._known_distances.copy()
            self._annotated[:] = False
        self._apply(added)

    def _apply(self, annotations: Sequence[Annotation]) -> None:
        """Add new classes, and update the distance of each frame to the nearest annotated frame or training image.

        The head learns from the annotations later, in the background.
        """
        indices = [self._index[one.sha256] for one in annotations if one.sha256 in self._index]
        for annotation in annotations:
            if annotation.verdict == "label" and annotation.label not in self._classes:
                self._classes.append(annotation.label)
        if not indices:
            return
        self._annotated[indices] = [one.verdict != "open" for one in annotations if one.sha256 in self._index]
        self._batch[indices] = self._batches
        self._batches += 1
        if any(annotation.verdict == "open" for annotation in annotations):
            self._nearest = self._known_distances.copy()
            indices = np.flatnonzero(self._annotated).tolist()
        for start in range(0, len(indices), 256):
            some = self._space.frames[indices[start : start + 256]]
            np.minimum(self._nearest, squared_distances(some, self._space.frames).min(axis=0), out=self._nearest)
        if self._annotations.count - self._learned >= ROUND:
            self._learned = self._annotations.count
            self._wake.set()

    def _mask(self, criteria: FrameFilter) -> Any:
        mask = mask_of(self.frames, criteria, annotated=self._annotated, annotations=self._annotations)
        if criteria.guess:
            mask &= self._predictions.guess == self._class_index(criteria.guess)
        score = self._predictions.score
        return mask & (score >= criteria.least) & (score <= criteria.most)

    def _class_index(self, name: str) -> int:
        if name == NONE:
            return _NO_CLASS
        return self._classes.index(name) if name in self._classes else _UNKNOWN_CLASS

    def _by_label(self, free: Any, count: int) -> list[Indices]:
        """Return annotated frames grouped by label; those that the model contradicts most come first."""
        latest = self._annotations.latest
        kinds: dict[tuple[str, str], list[int]] = {}
        for index in np.flatnonzero(free).tolist():
            annotation = latest[self.frames[index].sha256]
            kinds.setdefault((annotation.verdict, annotation.label), []).append(index)
        groups = []
        for (_, label), indices in sorted(kinds.items()):
            class_index, predictions = self._class_index(label or NONE), self._predictions
            agrees = predictions.guess[indices] == class_index
            agreement = np.where(agrees, predictions.score[indices], -predictions.score[indices])
            order = np.array(indices)[np.argsort(agreement, kind="stable")]
            groups += [order[start : start + GROUP] for start in range(0, len(order), GROUP)]
        return groups[:count]

    def _shown(self, index: int) -> dict[str, Any]:
        frame, predictions = self.frames[index], self._predictions
        annotation = self._annotations.latest.get(frame.sha256)
        guess = int(predictions.guess[index])
        return {
            "id": frame.sha256,
            "camera": camera_of(frame),
            "at": frame.captured_at,
            "reason": frame.reason,
            "device_guess": frame.guess,
            "guess": self._classes[guess] if guess >= 0 else NONE if guess == _NO_CLASS else "",
            "score": round(float(predictions.score[index]), 3),
            "verdict": annotation.verdict if annotation else "open",
            "label": annotation.label if annotation else "",
            "by": annotation.by if annotation else "",
        }

    # --- predictions ---

    def _initial_predictions(self) -> _Predictions:
        """Return the predictions of the run or, without a run, of the devices."""
        if self._model_scores is not None:
            scores = self._model_scores
        else:
            scores = np.zeros((len(self.frames), max(1, len(self._classes))), np.float32)
            columns = {name: column for column, name in enumerate(self._classes)}
            for index, frame in enumerate(self.frames):
                for label, score in frame.scores:
                    scores[index, columns[label]] = score
        return _predict(scores, scores.shape[1])

    def _learn_in_background(self) -> None:
        """Train the head whenever there are enough new annotations."""
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._closing:
                return
            try:
                self._learn()
            except Exception:
                log.exception("training the head failed; the order of the frames is not updated")

    def _learn(self) -> None:
        with self._lock:
            classes = list(self._classes)
            class_index = {name: index for index, name in enumerate(classes)}
            latest, indices, truth = self._annotations.latest, [], []
            for sha256, annotation in latest.items():
                if sha256 in self._index and annotation.verdict in ("label", "none"):
                    indices.append(self._index[sha256])
                    truth.append(class_index[annotation.label] if annotation.verdict == "label" else len(classes))
            batch = self._batch.copy()
        labelled, labels = np.array(indices, np.intp), np.array(truth, np.intp)
        known = self._space.known, self._known_truth
        head = fit_head(np.concatenate([known[0], self._space.frames[labelled]]), np.concatenate([known[1], labels]))
        if head is not None:
            scores = head.scores(self._space.frames, len(classes) + 1)
            with self._lock:
                self._predictions = _predict(scores, len(classes))
        if self._forecast is not None and len(labelled) < FORECAST_GROWTH * self._forecast.labelled:
            return
        predicted = None if self._model_predictions is None else self._model_predictions[labelled]
        forecast = forecast_labels(self._space.frames[labelled], labels, predicted, batch[labelled], known)
        with self._lock:
            self._forecast = forecast


def _predict(scores: Floats, classes: int) -> _Predictions:
    """Return the predictions for (n, classes) scores, or for one more column, the score of NONE.

    _NO_CLASS stands for NONE, because the index of that column changes when classes are added.
    """
    best = scores.argmax(axis=1)
    score = scores[np.arange(len(scores)), best]
    guess = np.where(best == classes, _NO_CLASS, best)
    return _Predictions(np.where(score > 0, guess, _NO_GUESS).astype(np.intp), score, uncertainty(scores))


def _days(frames: Sequence[CapturedFrame]) -> list[str]:
    days = sorted({frame.captured_at[:10] for frame in frames} - {""})
    return [days[0], days[-1]] if days else []
