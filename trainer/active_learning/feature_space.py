"""Frames and training images as points that are near each other where they look alike.

A point is an image's features, standardised, in their first principal components. What they are found on is drawn by
a seed from how many there are alone, so that images that lie on many machines give the same space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

COMPONENTS = 128
MOST_KNOWN = 5000
"""Training images distances are measured to and heads learn from: a random sample of more."""
MOST_FITTED = 8000
"""Rows the components are found on."""
MOST_ASKED = 1000
"""Frames whose neighbours tell which distance is near."""
NEIGHBOUR = 3
"""Frames nearer to each other than the median frame is to its third nearest are alike: of 2,000 frames in bursts of 5
to 24 of 30 objects, 99 in 100 such pairs showed the same class (three other draws: 98 to 100)."""
_ROUNDING = 1e-5
"""Squared distances of equal points come out as up to this part of their squared length: float32 has 7 digits, and a
camera that stands still gives equal points."""

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Projection:
    """Features to points. ``mean``, ``scale``: (f,); ``components``: (f, d); ``centre``: (d,), all float32."""

    mean: Floats
    scale: Floats
    components: Floats
    centre: Floats

    def place(self, features: Floats) -> Floats:
        """(k, f) features to (k, d) points."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):
            return np.asarray(((features - self.mean) / self.scale) @ self.components - self.centre, np.float32)


@dataclass(frozen=True, eq=False)
class Space:
    """Points of frames and of training images.

    Attributes:
        frames: (n, d) float32; d is COMPONENTS, or less where there are fewer images or features.
        known: (m, d) of the training images.
        alike: squared distance under which two frames are alike.
        projection: from features.
    """

    frames: Floats
    known: Floats
    alike: float
    projection: Projection


def space_of(features: Floats, known: Floats, *, seed: int = 0) -> Space:
    """The space of (n, f) features of frames and (m, f) of training images; m may be 0."""
    fitted, asked = drawn(len(features), len(known), seed=seed)
    projection = projection_of(np.concatenate([features, known])[fitted], seed=seed)
    frames = projection.place(features)
    alike = alike_of(frames[asked], nearest_distances(frames[asked], frames))
    return Space(frames, projection.place(known), alike, projection)


def drawn(frames: int, known: int, *, seed: int = 0) -> tuple[Places, Places]:
    """Places, among frames and then training images, of what the components are found on; and of frames to ask."""
    random = np.random.default_rng(seed)

    def some(count: int, most: int) -> Places:
        return np.arange(count) if count <= most else random.choice(count, most, replace=False)

    return some(frames + known, MOST_FITTED), some(frames, MOST_ASKED)


def projection_of(sample: Floats, *, seed: int = 0) -> Projection:
    """The projection found on (k, f) features."""
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    mean, scale = sample.mean(axis=0), sample.std(axis=0) + 1e-6
    with threadpool_limits(1):
        found = PCA(min(COMPONENTS, *sample.shape), svd_solver="randomized", random_state=seed)
        found.fit((sample - mean) / scale)
    components = np.ascontiguousarray(found.components_.T, np.float32)
    return Projection(mean, scale, components, np.asarray(found.mean_, np.float32) @ components)


def squared_distances(some: Floats, others: Floats) -> Floats:
    """(k, m) float32 between (k, d) and (m, d)."""
    found: Floats = (some**2).sum(1)[:, None] + (others**2).sum(1) - 2 * some @ others.T
    return np.maximum(found, 0)


def nearest_distances(asked: Floats, frames: Floats) -> Floats:
    """(k, NEIGHBOUR + 1) squared distances of (k, d) points to the nearest of (n, d), unsorted; all where n is less."""
    return smallest(squared_distances(asked, frames))


def smallest(distances: Floats) -> Floats:
    """(k, NEIGHBOUR + 1) smallest of each row, unsorted; all where there are no more."""
    if distances.shape[1] <= NEIGHBOUR + 1:
        return distances
    return np.partition(distances, NEIGHBOUR, axis=1)[:, : NEIGHBOUR + 1]


def alike_of(asked: Floats, nearest: Floats) -> float:
    """`Space.alike` by (k, d) points of frames and their `nearest_distances`, in which they count themselves."""
    rounding = _ROUNDING * float(np.median((asked**2).sum(axis=1)))
    return max(float(np.median(nearest.max(axis=1))), rounding)


def nearest_known(frames: Floats, known: Floats) -> Floats:
    """(n,) squared distance of each of (n, d) frames to the nearest of (m, d) training images.

    To the middle of the space where there are none.
    """
    if not len(known):
        known = np.zeros((1, frames.shape[1]), np.float32)
    nearest = np.full(len(frames), np.inf, np.float32)
    for start in range(0, len(known), 512):
        np.minimum(nearest, squared_distances(frames, known[start : start + 512]).min(axis=1), out=nearest)
    return nearest
