"""Ranking of very many frames by the value of labelling them: the same order as `propose`, in few passes.

`trainer.active_learning.ranking.propose` compares every frame again after each pick. Here one pass over all chunks
computes the value of every frame. Then picks are made only among the most valuable frames, as long as the best of them
is worth more than any other frame was in the pass: as a pick never makes another frame more valuable, none of the
others can be the best. Then the next pass follows. This is the lazy evaluation of Minoux, "Accelerated greedy
algorithms for maximizing submodular set functions" (1978).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..active_learning.feature_space import (
    Floats,
    Indices,
    draw_samples,
    find_similar_distance,
    fit_projection,
    smallest,
    squared_distances,
)
from ..active_learning.ranking import value
from .chunk_tasks import (
    Part,
    chunk_neighbour_distances,
    distances_to_picks,
    project_chunk,
    select_features,
    select_points,
    similar_frames,
)
from .executor import Executor

CONSIDERED = 20_000
"""Number of the most valuable frames considered between two passes; their points take 10 MB."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Picks, the most valuable first. Frames are numbered across all chunks, in order.

    Attributes:
        numbers: (p,) int, numbers of the picks.
        worth: (p,) float32, `value` of each pick when it was picked.
        similar: for each pick the numbers of similar free frames, nearest first; frames similar to an earlier pick
            are not included.
    """

    numbers: Indices
    worth: Floats
    similar: tuple[Indices, ...]


class _Frames:
    """Access to the frames of all chunks by their numbers."""

    def __init__(self, work: Path, parts: Sequence[Part], executor: Executor) -> None:
        self.names = [part.name for part in parts]
        self.starts = np.cumsum([0, *(len(part.usable) for part in parts)])
        self._work, self._executor = work, executor

    def each(self, function: Callable[..., Any], *arguments: Any, description: str) -> list[Any]:
        """Call a function of `chunk_tasks` for every chunk, and return the results."""
        return self._executor(partial(function, self._work, *arguments), self.names, description)

    def rows(self, function: Callable[..., Floats], numbers: Indices, description: str) -> Floats:
        """Return (k, width) features or points of k frames, by `select_features` or `select_points`."""
        order = np.argsort(numbers, kind="stable")
        ends = np.searchsorted(numbers[order], self.starts)
        portions = [order[start:end] for start, end in pairwise(ends)]
        items = [
            (name, numbers[portion] - start)
            for name, start, portion in zip(self.names, self.starts, portions, strict=False)
            if len(portion)
        ]
        found = np.concatenate(self._executor(partial(function, self._work), items, description))
        rows = np.empty_like(found)
        rows[order] = found
        return rows


def rank(
    work: Path, parts: Sequence[Part], known: Floats, count: int, executor: Executor, *, considered: int = CONSIDERED
) -> Ranking:
    """Rank the frames most worth labelling.

    Args:
        work: work folder with the embeddings of each chunk.
        parts: masks of the chunks, in order.
        known: (m, f) features of the training images.
        count: maximum number of picks; there are fewer if all other frames are similar to one of them.
        executor: executor of the passes over the chunks.
        considered: number of frames considered between two passes; it does not change the ranking.
    """
    frames = _Frames(work, parts, executor)
    usable = np.flatnonzero(np.concatenate([part.usable for part in parts]))
    free = np.concatenate([part.free for part in parts])
    annotated = usable[~free[usable]]
    fit_sample, frame_sample = draw_samples(len(usable), len(known))
    of_frames = fit_sample < len(usable)
    needed = [usable[fit_sample[of_frames]], annotated, usable[frame_sample]]
    rows = frames.rows(select_features, np.concatenate(needed), "Reading a sample")
    fit_rows, annotated_rows, sample_rows = np.split(rows, np.cumsum([len(numbers) for numbers in needed])[:-1])
    features = np.empty((len(fit_sample), known.shape[1]), np.float32)
    features[of_frames], features[~of_frames] = fit_rows, known[fit_sample[~of_frames] - len(usable)]
    projection = fit_projection(features)
    known_points = projection.project(np.concatenate([known, annotated_rows]))
    compare = partial(project_chunk, work, projection, known_points)
    uncertainties = np.concatenate(executor(compare, parts, "Comparing with labelled images"))
    sample = projection.project(sample_rows)
    nearest = np.full((len(sample), 0), np.inf, np.float32)
    for some in frames.each(chunk_neighbour_distances, sample, description="Finding neighbours"):
        nearest = smallest(np.concatenate([nearest, some], axis=1))
    similar_distance = find_similar_distance(sample, nearest)
    numbers, worth, picks = _pick(frames, uncertainties, similar_distance, count, considered)
    return Ranking(numbers, worth, _similar(frames, numbers, picks, similar_distance))


def _pick(
    frames: _Frames, uncertainties: Floats, similar_distance: float, count: int, considered: int
) -> tuple[Indices, Floats, Floats]:
    """Return the numbers, values and points of the picks."""
    numbers: list[int] = []
    worth: list[float] = []
    points: list[Floats] = []
    picked = np.zeros((0, 0), np.float32)
    while len(numbers) < count:
        nearest = np.concatenate(
            frames.each(
                distances_to_picks, picked, similar_distance, description=f"Ranking, {len(numbers)} of {count} found"
            )
        )
        nearest[numbers] = -1
        worths = np.where(nearest >= 0, value(np.maximum(nearest, 0), uncertainties), -1)
        # Of equally valuable frames the first is picked, as in `propose`, so the sort must be stable.
        order = np.argsort(-worths, kind="stable")
        pool = np.sort(order[:considered])
        pool = pool[worths[pool] >= 0]
        if not len(pool):
            break
        bound = float(worths[order[considered]]) if considered < len(order) else -1.0
        rows = frames.rows(select_points, pool, "Reading the most valuable frames")
        left, near = np.ones(len(pool), np.bool_), nearest[pool]
        already = len(numbers)
        while left.any() and len(numbers) < count:
            best_of = np.where(left, value(near, uncertainties[pool]), -1)
            best = int(best_of.argmax())
            if len(numbers) > already and best_of[best] <= bound:
                break
            distances = squared_distances(rows[best : best + 1], rows)[0]
            left &= distances > similar_distance
            left[best] = False
            np.minimum(near, distances, out=near)
            numbers.append(int(pool[best]))
            worth.append(float(best_of[best]))
            points.append(rows[best])
        picked = np.stack(points)
    return np.array(numbers, np.intp), np.array(worth, np.float32), picked


def _similar(frames: _Frames, numbers: Indices, picks: Floats, similar_distance: float) -> tuple[Indices, ...]:
    if not len(numbers):
        return ()
    found = frames.each(similar_frames, picks, similar_distance, description="Finding similar frames")
    similar = np.concatenate([start + indices for start, (indices, _, _) in zip(frames.starts, found, strict=False)])
    pick = np.concatenate([firsts for _, firsts, _ in found])
    distance = np.concatenate([distances for _, _, distances in found])
    order = np.lexsort((distance, pick))
    order = order[~np.isin(similar[order], numbers)]
    ends = np.searchsorted(pick[order], np.arange(len(numbers) + 1))
    return tuple(similar[order[start:end]] for start, end in pairwise(ends))
