"""The order in which frames of very many are worth labelling: that of `propose`, in few passes.

`trainer.active_learning.ranking.propose` looks at every frame again after each pick. Here a pass over all chunks tells
what every frame is worth, and picks are then made among the most valuable alone, as long as the best of them is worth
more than any frame outside was: a pick never makes another frame more valuable, so none of those can be the best. Then
comes the next pass. This is the lazy evaluation of Minoux, "Accelerated greedy algorithms for maximizing submodular set
functions" (1978).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..active_learning.feature_space import Floats, Places, alike_of, drawn, projection_of, smallest, squared_distances
from ..active_learning.ranking import value
from .chunk_tasks import Part, apart, features_of, likes, neighbours, place, points_of
from .executor import Spread

CONSIDERED = 20_000
"""Frames that picks are made among between two passes: 10 MB of points."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Picks, the best first, by their numbers: frames are counted through all parts, in order.

    Attributes:
        numbers: (p,) of the picks.
        worth: (p,) what labelling each was worth when it was picked.
        likes: of each pick, the numbers of free frames that are alike and not like an earlier pick, nearest first.
    """

    numbers: Places
    worth: Floats
    likes: tuple[Places, ...]


class _Frames:
    """Frames of all parts by their numbers, and passes over them."""

    def __init__(self, work: Path, parts: Sequence[Part], spread: Spread) -> None:
        self.names = [part.name for part in parts]
        self.starts = np.cumsum([0, *(len(part.usable) for part in parts)])
        self._work, self._spread = work, spread

    def each(self, work: Callable[..., Any], *given: Any, what: str) -> list[Any]:
        """A pass's result for each part."""
        return self._spread(partial(work, self._work, *given), self.names, what)

    def rows(self, work: Callable[..., Floats], numbers: Places, what: str) -> Floats:
        """(k, width) what a pass gives for k frames, in their order: `features_of` or `points_of`."""
        order = np.argsort(numbers, kind="stable")
        ends = np.searchsorted(numbers[order], self.starts)
        portions = [order[start:end] for start, end in pairwise(ends)]
        items = [
            (name, numbers[portion] - start)
            for name, start, portion in zip(self.names, self.starts, portions, strict=False)
            if len(portion)
        ]
        found = np.concatenate(self._spread(partial(work, self._work), items, what))
        rows = np.empty_like(found)
        rows[order] = found
        return rows


def rank(
    work: Path, parts: Sequence[Part], known: Floats, count: int, spread: Spread, *, considered: int = CONSIDERED
) -> Ranking:
    """The ``count`` frames most worth labelling; fewer where all others are like one of them.

    Args:
        work: folder of what was seen of each part.
        parts: the chunks, in order.
        known: (m, f) features of the training images.
        count: most picks.
        spread: does the passes.
        considered: most frames that picks are made among between two passes; the ranking is the same whatever it is.
    """
    frames = _Frames(work, parts, spread)
    usable = np.flatnonzero(np.concatenate([part.usable for part in parts]))
    free = np.concatenate([part.free for part in parts])
    settled = usable[~free[usable]]
    fitted, asked = drawn(len(usable), len(known))
    of_frames = fitted < len(usable)
    wanted = [usable[fitted[of_frames]], settled, usable[asked]]
    rows = frames.rows(features_of, np.concatenate(wanted), "Drawing a sample")
    sample, of_settled, of_asked = np.split(rows, np.cumsum([len(numbers) for numbers in wanted])[:-1])
    fitting = np.empty((len(fitted), known.shape[1]), np.float32)
    fitting[of_frames], fitting[~of_frames] = sample, known[fitted[~of_frames] - len(usable)]
    projection = projection_of(fitting)
    points = projection.place(np.concatenate([known, of_settled]))
    doubts = spread(partial(place, work, projection, points), parts, "Comparing with what is known")
    nearest = np.full((len(asked), 0), np.inf, np.float32)
    asked_points = projection.place(of_asked)
    for some in frames.each(neighbours, asked_points, what="Finding neighbours"):
        nearest = smallest(np.concatenate([nearest, some], axis=1))
    alike = alike_of(asked_points, nearest)
    numbers, worth, picks = _picks(frames, np.concatenate(doubts), alike, count, considered)
    return Ranking(numbers, worth, _likes(frames, numbers, picks, alike))


def _picks(frames: _Frames, doubt: Floats, alike: float, count: int, considered: int) -> tuple[Places, Floats, Floats]:
    """Numbers, worth and points of the picks."""
    numbers: list[int] = []
    worth: list[float] = []
    points: list[Floats] = []
    picked = np.zeros((0, 0), np.float32)
    while len(numbers) < count:
        nearest = np.concatenate(
            frames.each(apart, picked, alike, what=f"Ranking, {len(numbers)} of {count} are found")
        )
        nearest[numbers] = -1
        worths = np.where(nearest >= 0, value(np.maximum(nearest, 0), doubt), -1)
        # Of equals the first counts, as in `propose`; a stable sort leaves it in front.
        order = np.argsort(-worths, kind="stable")
        pool = np.sort(order[:considered])
        pool = pool[worths[pool] >= 0]
        if not len(pool):
            break
        bound = float(worths[order[considered]]) if considered < len(order) else -1.0
        rows = frames.rows(points_of, pool, "Reading the most valuable")
        left, near = np.ones(len(pool), np.bool_), nearest[pool]
        begun = len(numbers)
        while left.any() and len(numbers) < count:
            best_of = np.where(left, value(near, doubt[pool]), -1)
            best = int(best_of.argmax())
            if len(numbers) > begun and best_of[best] <= bound:
                break
            distances = squared_distances(rows[best : best + 1], rows)[0]
            left &= distances > alike
            left[best] = False
            np.minimum(near, distances, out=near)
            numbers.append(int(pool[best]))
            worth.append(float(best_of[best]))
            points.append(rows[best])
        picked = np.stack(points)
    return np.array(numbers, np.intp), np.array(worth, np.float32), picked


def _likes(frames: _Frames, numbers: Places, picks: Floats, alike: float) -> tuple[Places, ...]:
    if not len(numbers):
        return ()
    found = frames.each(likes, picks, alike, what="Finding what is alike")
    like = np.concatenate([start + places for start, (places, _, _) in zip(frames.starts, found, strict=False)])
    pick = np.concatenate([firsts for _, firsts, _ in found])
    distance = np.concatenate([distances for _, _, distances in found])
    order = np.lexsort((distance, pick))
    order = order[~np.isin(like[order], numbers)]
    ends = np.searchsorted(pick[order], np.arange(len(numbers) + 1))
    return tuple(like[order[start:end]] for start, end in pairwise(ends))
