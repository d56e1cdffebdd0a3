"""One folder under review: its frames, what is decided of them, what the network thinks, and what to ask next."""

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
from ..active_learning.embeddings import embed, network_of
from ..active_learning.feature_space import Floats, Places, nearest_known, space_of, squared_distances
from ..active_learning.label_forecast import Outlook, outlook_on
from ..active_learning.ranking import GROUP, fit_head, propose, uncertainty
from ..active_learning.training_set import training_images
from .filters import FrameFilter, camera_of, mask_of

log = logging.getLogger(__name__)

ROUND = 10
"""Decisions after which the head learns what was decided: seldom enough not to keep a core busy."""
OUTLOOK_GROWTH = 1.15
"""What is said of labelling more is worked out again when this many times as much is labelled: it takes seconds."""
LEASE_S = 600.0
"""How long a group that one person was given is not given to another."""
MOST_GROUPS = 50
NONE = "none of these"
"""What a head calls frames that show none of the classes."""
_NO_GUESS, _NO_CLASS, _NOBODYS = -1, -2, -3
"""In place of a class's index: nothing is guessed, none of the classes is, and what nothing is guessed to be."""


@dataclass(frozen=True, eq=False)
class _Opinion:
    """What is thought of the frames at one moment: (n,) index of a class or what is in its place, its score, doubt."""

    guess: Places
    score: Floats
    doubt: Floats


class Session:
    """A folder under review, for several threads. A context manager: a thread of it learns what was decided.

    Attributes:
        folder: the folder.
        frames: those that can be shown, by time.
        problems: what was wrong with the rest of the folder.
    """

    def __init__(self, folder: Path, *, run: Path | None, console: Console, cache: Path | None = None) -> None:
        """Look at the folder and at every image in it; what was looked at before is remembered.

        Raises:
            DataError: no usable folder, run or log.
            MissingExtraError: Keras is not installed.
        """
        self.folder = folder
        with console.status("Looking through the folder"):
            found = find_frames(folder)
            self._decisions = Annotations(folder)
        with console.status("Loading the model"):
            network = network_of(run)
        images = [(frame.sha256, folder / frame.path) for frame in found.frames]
        seen = embed(network, images, what="Looking at the frames", console=console, cache=cache)
        usable = np.array([place not in seen.failed for place in range(len(images))], np.bool_)
        if not usable.any():
            raise DataError(f"{folder}: none of the {len(images)} images can be read, first: {seen.failed[0]}")
        self.problems = (*found.problems, *seen.failed.values())
        self.frames = tuple(frame for frame, good in zip(found.frames, usable, strict=True) if good)
        self._place = {frame.sha256: place for place, frame in enumerate(self.frames)}
        known, self._known_truth = training_images(network, run, console, cache)
        with console.status("Comparing the frames"):
            self._space = space_of(seen.features[usable], known)
            self._far = nearest_known(self._space.frames, self._space.known)
        self._trained = network.labels
        self._classes = list(network.labels or sorted({label for frame in self.frames for label, _ in frame.scores}))
        self._model_scores = seen.scores[usable] if network.labels else None
        self._guess_as_it_is = None if self._model_scores is None else self._model_scores.argmax(axis=1)
        self._lock = threading.RLock()
        self._leases: dict[int, tuple[str, float]] = {}
        self._outlook: Outlook | None = None
        self._opinion = self._first_opinion()
        self._nearest = self._far.copy()
        self._settled = np.zeros(len(self.frames), np.bool_)
        self._batch = np.full(len(self.frames), -1, np.intp)
        self._batches = 0
        self._news = threading.Event()
        self._closing = False
        self._learned = self._decisions.count
        self._take_in(list(self._decisions.latest.values()))
        self._thread = threading.Thread(target=self._learn_on, name="review", daemon=True)

    def __enter__(self) -> Self:
        """Begin to learn."""
        if self._decisions.count:
            self._news.set()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End; nothing is waiting to be saved."""
        self._closing = True
        self._news.set()
        self._thread.join(1)

    # --- what the page asks ---

    def state(self) -> dict[str, Any]:
        """Everything but the frames: classes, filters, progress, what speaks against the labels."""
        with self._lock:
            self._refresh()
            latest = {sha256: one for sha256, one in self._decisions.latest.items() if sha256 in self._place}
            verdicts = Counter(decision.verdict for decision in latest.values())
            labels = Counter(decision.label for decision in latest.values() if decision.verdict == "label")
            settled = sum(count for verdict, count in verdicts.items() if verdict != "open")
            outlook = self._outlook
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
                    "open": len(self.frames) - settled,
                    **{name: verdicts[name] for name in ("label", "none", "skip")},
                },
                "disputed": sum(sha256 in self._place for sha256 in self._decisions.disputed),
                "problems": [*self._decisions.problems, *self.problems][:100],
                "outlook": None if outlook is None else asdict(outlook),
            }

    def groups(self, client: str, *, holding: Sequence[str], count: int, wanted: FrameFilter) -> dict[str, Any]:
        """The next groups for a person, the most valuable first, and how many frames are wanted in all.

        Args:
            client: who asks: a page, open once.
            holding: hashes of frames that it has and whose decisions have not arrived here.
            count: groups at most.
            wanted: which frames.
        """
        with self._lock:
            self._refresh()
            mask = self._mask(wanted)
            # They are still open here, and may not be given to it again.
            held = {self._place[sha256] for sha256 in holding if sha256 in self._place}
            moment = time.monotonic()
            self._leases = {
                place: (who, until)
                for place, (who, until) in self._leases.items()
                if until > moment and (who != client or place in held)
            }
            free = mask.copy()
            free[list(self._leases)] = False
            free[list(held)] = False
            count = min(count, MOST_GROUPS)
            if wanted.status == "open":
                groups = propose(self._space, self._opinion.doubt, self._nearest, free, count)
            else:
                groups = self._by_label(free, count)
            for group in groups:
                for place in group.tolist():
                    self._leases[place] = (client, moment + LEASE_S)
            return {
                "groups": [[self._shown(place) for place in group.tolist()] for group in groups],
                "wanted": int(mask.sum()),
            }

    def decide(self, hashes: Sequence[str], verdict: str, label: str, by: str) -> dict[str, Any]:
        """Settle frames; on the disk when this returns.

        Returns:
            ``overridden``: frames that somebody else had decided otherwise.

        Raises:
            DataError: such a decision cannot be made.
            OSError: the disk does not take it; nothing is decided.
        """
        at = now()
        try:
            made = [
                msgspec.convert(
                    {"sha256": sha256, "verdict": verdict, "label": label, "by": by, "at": at}, Annotation, strict=True
                )
                for sha256 in dict.fromkeys(hashes)
            ]
        except msgspec.ValidationError as error:
            raise DataError(str(error)) from error
        if not made or any(decision.sha256 not in self._place for decision in made):
            raise DataError("no such frame; load the page again")
        with self._lock:
            self._refresh()
            before = dict(self._decisions.latest)
            self._take_in(self._decisions.add(made))
            overridden = [
                {"id": one.sha256, "by": last.by, "verdict": last.verdict, "label": last.label}
                for one in made
                if (last := before.get(one.sha256)) is not None
                and last.by != by
                and last.verdict != "open"
                and verdict != "open"
                and (last.verdict, last.label) != (one.verdict, one.label)
            ]
        return {"saved": len(made), "overridden": overridden}

    def frame(self, sha256: str) -> CapturedFrame | None:
        """A frame of this folder."""
        place = self._place.get(sha256)
        return None if place is None else self.frames[place]

    def labelled(self) -> list[tuple[CapturedFrame, Annotation]]:
        """Frames with a decision that is not open, by time."""
        with self._lock:
            self._refresh()
            latest = self._decisions.latest
            return [
                (frame, decision)
                for frame in self.frames
                if (decision := latest.get(frame.sha256)) is not None and decision.verdict != "open"
            ]

    # --- what is known ---

    def _refresh(self) -> None:
        before = self._decisions.generation
        taken = self._decisions.refresh()
        if self._decisions.generation != before:  # replaced: all of it is new
            self._nearest = self._far.copy()
            self._settled[:] = False
        self._take_in(taken)

    def _take_in(self, decisions: Sequence[Annotation]) -> None:
        """Distances and classes that follow from decisions; the head learns them in its own time."""
        places = [self._place[one.sha256] for one in decisions if one.sha256 in self._place]
        for decision in decisions:
            if decision.verdict == "label" and decision.label not in self._classes:
                self._classes.append(decision.label)
        if not places:
            return
        self._settled[places] = [one.verdict != "open" for one in decisions if one.sha256 in self._place]
        self._batch[places] = self._batches
        self._batches += 1
        if any(decision.verdict == "open" for decision in decisions):
            self._nearest = self._far.copy()
            places = np.flatnonzero(self._settled).tolist()
        for start in range(0, len(places), 256):
            some = self._space.frames[places[start : start + 256]]
            np.minimum(self._nearest, squared_distances(some, self._space.frames).min(axis=0), out=self._nearest)
        if self._decisions.count - self._learned >= ROUND:
            self._learned = self._decisions.count
            self._news.set()

    def _mask(self, wanted: FrameFilter) -> Any:
        mask = mask_of(self.frames, wanted, settled=self._settled, decisions=self._decisions)
        if wanted.guess:
            mask &= self._opinion.guess == self._index(wanted.guess)
        return mask & (self._opinion.score >= wanted.least) & (self._opinion.score <= wanted.most)

    def _index(self, name: str) -> int:
        if name == NONE:
            return _NO_CLASS
        return self._classes.index(name) if name in self._classes else _NOBODYS

    def _by_label(self, free: Any, count: int) -> list[Places]:
        """Decided frames, those of one label together, the least believable first."""
        latest = self._decisions.latest
        kinds: dict[tuple[str, str], list[int]] = {}
        for place in np.flatnonzero(free).tolist():
            decision = latest[self.frames[place].sha256]
            kinds.setdefault((decision.verdict, decision.label), []).append(place)
        groups = []
        for (_, label), places in sorted(kinds.items()):
            index, opinion = self._index(label or NONE), self._opinion
            belief = np.where(opinion.guess[places] == index, opinion.score[places], -opinion.score[places])
            order = np.array(places)[np.argsort(belief, kind="stable")]
            groups += [order[start : start + GROUP] for start in range(0, len(order), GROUP)]
        return groups[:count]

    def _shown(self, place: int) -> dict[str, Any]:
        frame, opinion = self.frames[place], self._opinion
        decision = self._decisions.latest.get(frame.sha256)
        guess = int(opinion.guess[place])
        return {
            "id": frame.sha256,
            "camera": camera_of(frame),
            "at": frame.captured_at,
            "reason": frame.reason,
            "device_guess": frame.guess,
            "guess": self._classes[guess] if guess >= 0 else NONE if guess == _NO_CLASS else "",
            "score": round(float(opinion.score[place]), 3),
            "verdict": decision.verdict if decision else "open",
            "label": decision.label if decision else "",
            "by": decision.by if decision else "",
        }

    # --- what the network thinks ---

    def _first_opinion(self) -> _Opinion:
        """Before anything is decided: the run's, else the device's."""
        if self._model_scores is not None:
            scores = self._model_scores
        else:
            scores = np.zeros((len(self.frames), max(1, len(self._classes))), np.float32)
            index = {name: place for place, name in enumerate(self._classes)}
            for place, frame in enumerate(self.frames):
                for label, score in frame.scores:
                    scores[place, index[label]] = score
        return _opinion(scores, scores.shape[1])

    def _learn_on(self) -> None:
        """Learn what was decided, whenever enough was."""
        while True:
            self._news.wait()
            self._news.clear()
            if self._closing:
                return
            try:
                self._learn()
            except Exception:
                log.exception("the order of the frames is not brought up to date")

    def _learn(self) -> None:
        with self._lock:
            classes = list(self._classes)
            index = {name: place for place, name in enumerate(classes)}
            latest, places, truth = self._decisions.latest, [], []
            for sha256, decision in latest.items():
                if sha256 in self._place and decision.verdict in ("label", "none"):
                    places.append(self._place[sha256])
                    truth.append(index[decision.label] if decision.verdict == "label" else len(classes))
            batch = self._batch.copy()
        chosen, given = np.array(places, np.intp), np.array(truth, np.intp)
        known = self._space.known, self._known_truth
        head = fit_head(np.concatenate([known[0], self._space.frames[chosen]]), np.concatenate([known[1], given]))
        if head is not None:
            scores = head.scores(self._space.frames, len(classes) + 1)
            with self._lock:
                self._opinion = _opinion(scores, len(classes))
        if self._outlook is not None and len(chosen) < OUTLOOK_GROWTH * self._outlook.labelled:
            return
        guessed = None if self._guess_as_it_is is None else self._guess_as_it_is[chosen]
        outlook = outlook_on(self._space.frames[chosen], given, guessed, batch[chosen], known)
        with self._lock:
            self._outlook = outlook


def _opinion(scores: Floats, classes: int) -> _Opinion:
    """Of (n, classes) scores, or one column more for none of them. Classes that come later change no index."""
    best = scores.argmax(axis=1)
    score = scores[np.arange(len(scores)), best]
    guess = np.where(best == classes, _NO_CLASS, best)
    return _Opinion(np.where(score > 0, guess, _NO_GUESS).astype(np.intp), score, uncertainty(scores))


def _days(frames: Sequence[CapturedFrame]) -> list[str]:
    days = sorted({frame.captured_at[:10] for frame in frames} - {""})
    return [days[0], days[-1]] if days else []
