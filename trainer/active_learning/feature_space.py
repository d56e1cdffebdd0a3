"""Frames and training images as points in a space in which similar images are close to each other.

A point consists of the first principal components of an image's standardised features. The sample on which the
components are fitted depends only on a seed and the number of images, so that the space is the same no matter how
many machines the images are processed on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

COMPONENTS = 128
MAX_KNOWN = 5000
"""Maximum number of training images used for distances and heads; a random sample if there are more."""
MAX_FITTED = 8000
"""Maximum number of rows on which the components are fitted."""
MAX_SAMPLED = 1000
"""Maximum number of frames whose neighbours determine `Space.similar_distance`."""
NEIGHBOUR = 3
"""Frames are similar if they are closer to each other than the median frame is to its third nearest neighbour. Of 2,000
frames of 30 objects in bursts of 5 to 24, 99 in 100 such pairs showed the same class (three other draws: 98 to 100)."""
_ROUNDING = 1e-5
"""Rounding error of the squared distance of equal points, as a fraction of their squared length: float32 has 7 digits,
and a camera in front of an unchanging scene gives equal points."""

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Projection:
    """Projection of features to points.

    Attributes:
        mean, scale: (f,) float32, mean and standard deviation of the features.
        components: (f, d) float32, principal components.
        centre: (d,) float32, offset subtracted from the points.
    """

    mean: Floats
    scale: Floats
    components: Floats
    centre: Floats

    def project(self, features: Floats) -> Floats:
        """Return the (k, d) points of (k, f) features."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):
            return np.asarray(((features - self.mean) / self.scale) @ self.components - self.centre, np.float32)


@dataclass(frozen=True, eq=False)
class Space:
    """Frames and training images as points; similar images are close to each other.

    Attributes:
        frames: (n, d) float32, points of the frames; d is COMPONENTS, or less if there are fewer images
            or features than that.
        known: (m, d) float32, points of the training images.
        similar_distance: squared distance up to which two frames are similar.
        projection: projection from features to points.
    """

    frames: Floats
    known: Floats
    similar_distance: float
    projection: Projection


def build_space(features: Floats, known: Floats, *, seed: int = 0) -> Space:
    """Return the space of (n, f) features of frames and (m, f) features of training images; m may be 0."""
    fit_sample, frame_sample = draw_samples(len(features), len(known), seed=seed)
    projection = fit_projection(np.concatenate([features, known])[fit_sample], seed=seed)
    frames = projection.project(features)
    sample = frames[frame_sample]
    similar_distance = find_similar_distance(sample, neighbour_distances(sample, frames))
    return Space(frames, projection.project(known), similar_distance, projection)


def draw_samples(frames: int, known: int, *, seed: int = 0) -> tuple[Indices, Indices]:
    """Draw the sample for `fit_projection` and the sample for `find_similar_distance`.

    Args:
        frames: number of frames.
        known: number of training images.
        seed: seed of the draw.

    Returns:
        Indices into the frames followed by the training images, and indices into the frames.
    """
    random = np.random.default_rng(seed)

    def draw(count: int, most: int) -> Indices:
        return np.arange(count) if count <= most else random.choice(count, most, replace=False)

    return draw(frames + known, MAX_FITTED), draw(frames, MAX_SAMPLED)


def fit_projection(sample: Floats, *, seed: int = 0) -> Projection:
    """Fit a projection to (k, f) features."""
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    mean, scale = sample.mean(axis=0), sample.std(axis=0) + 1e-6
    with threadpool_limits(1):
        found = PCA(min(COMPONENTS, *sample.shape), svd_solver="randomized", random_state=seed)
        found.fit((sample - mean) / scale)
    components = np.ascontiguousarray(found.components_.T, np.float32)
    return Projection(mean, scale, components, np.asarray(found.mean_, np.float32) @ components)


def squared_distances(some: Floats, others: Floats) -> Floats:
    """Return the (k, m) squared distances between (k, d) and (m, d) points."""
    found: Floats = (some**2).sum(1)[:, None] + (others**2).sum(1) - 2 * some @ others.T
    return np.maximum(found, 0)


def neighbour_distances(points: Floats, frames: Floats) -> Floats:
    """Return the squared distances of (k, d) points to their nearest of (n, d) frames.

    Returns:
        (k, NEIGHBOUR + 1), or (k, n) if n is smaller; unsorted. Points that are frames are their own nearest.
    """
    return smallest(squared_distances(points, frames))


def smallest(distances: Floats) -> Floats:
    """Return the NEIGHBOUR + 1 smallest values of each row, unsorted, or all if there are fewer."""
    if distances.shape[1] <= NEIGHBOUR + 1:
        return distances
    return np.partition(distances, NEIGHBOUR, axis=1)[:, : NEIGHBOUR + 1]


def find_similar_distance(sample: Floats, nearest: Floats) -> float:
    """Return `Space.similar_distance`.

    Args:
        sample: (k, d) points of some frames.
        nearest: their `neighbour_distances` to all frames, including the distance 0 to themselves.
    """
    rounding = _ROUNDING * float(np.median((sample**2).sum(axis=1)))
    return max(float(np.median(nearest.max(axis=1))), rounding)


def distances_to_known(frames: Floats, known: Floats) -> Floats:
    """Return the squared distance of each frame to the nearest training image.

    Args:
        frames: (n, d) points.
        known: (m, d) points. If m is 0, the distance to the centre of the space is returned.

    Returns:
        (n,) float32.
    """
    if not len(known):
        known = np.zeros((1, frames.shape[1]), np.float32)
    nearest = np.full(len(frames), np.inf, np.float32)
    for start in range(0, len(known), 512):
        np.minimum(nearest, squared_distances(frames, known[start : start + 512]).min(axis=1), out=nearest)
    return nearest
