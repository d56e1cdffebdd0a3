"""Finds near duplicates: the same image saved again, scaled, brightened or slightly cropped, and frames of one burst.

There are three steps. With more than 1,200 images, none of them compares all pairs: 100,000 images take 15 seconds on
two busy cores.

1. Each thumbnail gives 256 bits: signs of random projections of its blurred gradients (Charikar 2002,
   "Similarity estimation techniques from rounding algorithms"). Similar images differ in few bits.
2. Candidates: images are sorted by some of their bits, for many random choices of bits, and each image is compared
   with the next few.
3. A candidate is confirmed by fitting one thumbnail to the other: brightness, contrast, and a shift and scale
   of each axis, by least squares (Lucas and Kanade 1981); first in grey, then in red, green and blue. The residual
   must be small everywhere: a different object in front of the same background leaves a spot.

Measured on 200 photographed objects in front of 6 backgrounds (those of `benchmarks/support/synthetic_images.py`), with
thumbnails of 224x224 images: JPEG at quality 20, 25 % size and noise are found in more than 99 % of cases, brightening
by 15 % in 97 %, crops of 2 and 3 % in 94 and 90 %. Of the pairs of different objects at the same place in front of the
same background, 0.1 % are confirmed by mistake (3.5 % with grey alone). A grey version of an image is not a duplicate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.preprocessing import Pixels

Indices = npt.NDArray[np.intp]
_Floats = npt.NDArray[np.float32]

BITS = 256
NEIGHBOURS = 6
MAX_DIFFERENT_BITS = 56
COMPARED_EACH = 1200
"""Maximum number of images for which all pairs are compared, which is as fast up to this number."""
SEARCHES = ((12, 8), (32, 24), (MAX_DIFFERENT_BITS, 48))
"""Maximum number of differing bits, and number of passes over all images. The closest pairs are searched first: they
are found in few passes, and if many images share a background, the checks are not used up by those."""
CHECKS_PER_IMAGE = 6
"""Mean number of candidates per image that are checked in each search; bounds the time."""
MAX_LEFT_OVER = 0.45
"""Maximum root mean square of the residual in any 4x4 part, in standard deviations of the thumbnail."""
FLAT = 2.5
"""Minimum standard deviation of a thumbnail, in levels; a flatter one is dark, fogged or covered and shows noise."""
_AT_ONCE = 512
"""Images or pairs processed together; their thumbnails fit in the processor's cache."""


def near_duplicates(count: int, thumbs: Callable[[Indices], Pixels]) -> Indices:
    """Find images that are near duplicates of one another, directly or through other images.

    Args:
        count: number of images, all different. Their order influences borderline cases, so sort them by hash.
        thumbs: returns the thumbnails, (k, side, side, 3) uint8, of the images with the given indices; blurred, so
            that a shift by a fraction of a pixel changes them evenly.

    Returns:
        (count,) int: images with the same number belong together; the number is the index of the first one.
    """
    codes, usable = _codes(count, thumbs)
    together = np.arange(count)
    if count <= COMPARED_EACH:
        first, second = _all_alike(codes[usable])
        checks = len(SEARCHES) * CHECKS_PER_IMAGE * len(usable)
        _join_confirmed(together, usable[first][:checks], usable[second][:checks], thumbs)
        return together
    random = np.random.default_rng(0)
    above = -1
    for most, passes in SEARCHES:
        checks_left = CHECKS_PER_IMAGE * len(usable)
        for _ in range(passes):
            key = np.ascontiguousarray(codes[:, random.permutation(BITS // 8)[:8]]).view(">u8").ravel()
            order = usable[np.argsort(key[usable], kind="stable")]
            for step in range(1, NEIGHBOURS + 1):
                first, second = order[:-step], order[step:]
                different = _different_bits(codes[first], codes[second])
                candidate = (different > above) & (different <= most) & (together[first] != together[second])
                first, second = first[candidate][:checks_left], second[candidate][:checks_left]
                checks_left -= len(first)
                _join_confirmed(together, first, second, thumbs)
        above = most
    return together


def _all_alike(codes: Pixels) -> tuple[Indices, Indices]:
    """Return the indices of all pairs of codes, (n, 32) uint8, that differ in few bits, the closest pairs first."""
    signs = np.unpackbits(codes, axis=1).astype(np.float32) * 2 - 1
    different = (BITS - signs @ signs.T) / 2
    first, second = np.nonzero(np.triu(different <= MAX_DIFFERENT_BITS, 1))
    closest = np.argsort(different[first, second], kind="stable")
    return first[closest], second[closest]


def _join_confirmed(together: Indices, first: Indices, second: Indices, thumbs: Callable[[Indices], Pixels]) -> None:
    for start in range(0, len(first), _AT_ONCE):
        a, b = first[start : start + _AT_ONCE], second[start : start + _AT_ONCE]
        apart = together[a] != together[b]
        a, b = a[apart], b[apart]
        same = _show_the_same(thumbs(a), thumbs(b))
        join(together, a[same], b[same])


def _show_the_same(first: Pixels, second: Pixels) -> npt.NDArray[np.bool_]:
    """Compare pairs of thumbnails, (k, side, side, 3); return (k,) True for those that show the same image."""
    one, other = _grey(first), _grey(second)
    same = np.ones(len(first), np.bool_)
    # Grey first: it rejects most pairs, and most of the remaining wrong ones differ in colour.
    channels: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = [(one, other)]
    channels += [(first[..., channel], second[..., channel]) for channel in range(3)]
    for a, b in channels:
        some = np.flatnonzero(same)
        left = left_over(_standardised(a[some], one[some]), _standardised(b[some], other[some]))
        same[some] = left <= MAX_LEFT_OVER
    return same


def join(together: Indices, first: Indices, second: Indices) -> None:
    """Merge the groups of ``first[i]`` and ``second[i]``, for every i, in place.

    ``together`` has the smallest index of the group of each member, before and after.
    """
    while True:
        low, high = np.minimum(together[first], together[second]), np.maximum(together[first], together[second])
        if (low == high).all():
            return
        np.minimum.at(together, high, low)
        while (together != together[together]).any():
            together[:] = together[together]


def left_over(a: _Floats, b: _Floats) -> _Floats:
    """Return the difference of one channel of pairs of thumbnails after the best fit of one to the other.

    Args:
        a: (k, side, side) float32 with mean 0, in standard deviations of the thumbnail.
        b: the second thumbnails of the pairs, in the same form.

    Returns:
        (k,) float32: the largest root mean square difference in any 4x4 part, in standard deviations.
    """
    mean, difference = (a + b) / 2, (a - b)[:, 1:-1, 1:-1]
    count, side = len(a), difference.shape[-1]
    place = np.linspace(-1, 1, side + 2, dtype=np.float32)[1:-1]
    # Brightness, contrast, shift and scale across, shift and scale down.
    causes = np.empty((count, 6, side, side), np.float32)
    causes[:, 0], causes[:, 1] = 1, mean[:, 1:-1, 1:-1]
    causes[:, 2], causes[:, 4] = mean[:, 1:-1, 2:] - mean[:, 1:-1, :-2], mean[:, 2:, 1:-1] - mean[:, :-2, 1:-1]
    causes[:, 3], causes[:, 5] = causes[:, 2] * place, causes[:, 4] * place[:, None]
    flat = causes.reshape(count, 6, side * side)
    # The small ridge makes the system solvable for images without any gradient along an axis.
    normal = flat @ flat.swapaxes(1, 2) + 1e-2 * np.eye(6, dtype=np.float32)
    amounts = np.linalg.solve(normal, flat @ difference.reshape(count, side * side, 1))
    rest = (difference - (amounts.swapaxes(1, 2) @ flat).reshape(difference.shape)) ** 2
    # Sums over 4x4 parts, one axis after the other.
    rows = rest[:, :-3] + rest[:, 1:-2] + rest[:, 2:-1] + rest[:, 3:]
    parts = rows[..., :-3] + rows[..., 1:-2] + rows[..., 2:-1] + rows[..., 3:]
    worst: _Floats = np.sqrt(parts.max((1, 2)) / 16)
    return worst


def _codes(count: int, thumbs: Callable[[Indices], Pixels]) -> tuple[Pixels, Indices]:
    """Return the bits of every image, (count, 32) uint8, and the indices of the images that are not flat."""
    codes = np.zeros((count, BITS // 8), np.uint8)
    usable = np.zeros(count, bool)
    directions: _Floats | None = None
    for start in range(0, count, _AT_ONCE):
        places = np.arange(start, min(start + _AT_ONCE, count))
        some = _grey(thumbs(places))
        usable[places] = some.std((1, 2)) >= FLAT
        smooth = _blurred(some, 1.5)
        steps = np.concatenate(
            [np.diff(smooth, axis=axis).reshape(len(some), -1) for axis in (1, 2)],
            axis=1,
        )
        if directions is None:
            directions = np.random.default_rng(1).standard_normal((steps.shape[1], BITS), np.float32)
        codes[places] = np.packbits(steps @ directions > 0, axis=1)
    return codes, np.flatnonzero(usable)


_BITS_SET = np.unpackbits(np.arange(2**16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(
    1, dtype=np.uint8
)


def _different_bits(first: Pixels, second: Pixels) -> npt.NDArray[np.int64]:
    different: npt.NDArray[np.int64] = _BITS_SET[(first ^ second).view(np.uint16)].sum(1, dtype=np.int64)
    return different


def _grey(thumbs: Pixels) -> _Floats:
    """Return the mean of the channels: (k, side, side, 3) uint8 to (k, side, side) float32."""
    # Takes a third of the time of NumPy's mean over such a short axis.
    mean: _Floats = (thumbs[..., 0].astype(np.float32) + thumbs[..., 1] + thumbs[..., 2]) / np.float32(3)
    return mean


def _blurred(thumbs: _Floats, sigma: float) -> _Floats:
    """Apply a Gaussian blur with mirrored edges, as two matrix products, which is much faster than a call per image."""
    side = thumbs.shape[-1]
    place = np.arange(side)
    sources = np.stack([place, -1 - place, 2 * side - 1 - place])
    weights = np.exp(-((place[:, None] - sources[:, None, :]) ** 2) / (2 * sigma**2)).sum(0)
    kernel = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    blurred: _Floats = kernel @ thumbs @ kernel.T
    return blurred


def _standardised(channel: npt.NDArray[Any], whole: _Floats) -> _Floats:
    """Subtract the channel's mean and divide by the standard deviation of the grey image.

    The standard deviation of the channel itself could be near zero.
    """
    centred = channel - channel.mean((1, 2), keepdims=True, dtype=np.float32)
    standardised: _Floats = centred / (whole.std((1, 2), keepdims=True) + 1e-6)
    return standardised
