"""Augments training images with Keras layers, which run on the same device as the network.

The layers are used only in training and are not part of the saved model. As in RandAugment (Cubuk et al. 2019,
arXiv:1909.13719), a single number, the strength, scales the ranges of all random changes.

This module imports Keras, so import it inside functions.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

FLIP = 0.5
ROTATION_DEGREES = 10.0
ZOOM = 0.25
SHIFT = 0.1
LIGHT = 0.25
TINT = 0.1
MIXED_SHARE = 0.5


class RandomView(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Flips, rotates, zooms, stretches and shifts images at random, and resamples each image only once.

    The layer maps the enlarged images, (n, H, W, 3) of any dtype, to (n, height, width, 3) float32. On average, the
    output shows the same section of the image as on the device, so objects have the same scale in training and on the
    device. Parts of the image that are zoomed in stay sharp, because the enlarged image has more pixels than the
    output.

    Args:
        size: height and width of the output, pixels.
        strength: factor for the ranges ``ROTATION_DEGREES``, ``ZOOM`` and ``SHIFT``: 0 turns these changes off, 1 is
            the default, 2 doubles the ranges.
        flip: True to mirror half of the images. Use False if left and right are different classes.
        seed: random seed.
    """

    def __init__(self, size: tuple[int, int], *, strength: float, flip: bool, seed: int) -> None:
        super().__init__(name="random_view")
        self._size, self._strength, self._flip = size, strength, flip
        self._seeds = keras.random.SeedGenerator(seed)

    def call(self, pixels: Any) -> Any:
        """Resample each image with its own random affine transformation."""
        count, rows, columns = ops.shape(pixels)[0], pixels.shape[1], pixels.shape[2]
        height, width = self._size

        def draw(extent: float) -> Any:
            return keras.random.uniform((count,), -extent, extent, seed=self._seeds)

        angle = draw(self._strength * ROTATION_DEGREES * 3.14159265 / 180)
        zoom, squeeze = ops.exp(draw(self._strength * ZOOM)), ops.exp(draw(self._strength * ZOOM / 3))
        right, down = draw(self._strength * SHIFT * width), draw(self._strength * SHIFT * height)
        mirror = ops.where(draw(1.0) < 2 * FLIP - 1, -1.0, 1.0) if self._flip else 1.0
        # These terms map output pixel (x, y) to coordinates in the enlarged image. The enlarged image shows the same
        # section as the image on the device, so the scale is rows / height, multiplied by zoom and squeeze.
        across, along = mirror * zoom * squeeze * columns / width, zoom / squeeze * rows / height
        cos, sin = ops.cos(angle), ops.sin(angle)
        a, b, c, d = across * cos, -across * sin, along * sin, along * cos
        # keras.ops returns images of the input's size, and only their upper left corner is used as the output.
        # Therefore x0 and y0 map the centre of this corner to the (shifted) centre of the enlarged image.
        x0 = (columns - 1) / 2 + right - (a * (width - 1) + b * (height - 1)) / 2
        y0 = (rows - 1) / 2 + down - (c * (width - 1) + d * (height - 1)) / 2
        zero = ops.zeros_like(x0)
        maps = ops.stack([a, b, x0, c, d, y0, zero, zero], axis=1)
        views = ops.image.affine_transform(
            ops.cast(pixels, "float32"), maps, interpolation="bilinear", fill_mode="reflect"
        )
        return views[:, :height, :width]

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return (n, height, width, 3)."""
        return (shape[0], *self._size, 3)


class RandomLight(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Changes the exposure, contrast and tint of images at random.

    The layer maps pixels, (n, H, W, 3), to the same shape. The values are clipped to the range 0 to 255.
    """

    def __init__(self, *, strength: float, seed: int) -> None:
        super().__init__(name="random_light")
        self._strength = strength
        self._seeds = keras.random.SeedGenerator(seed)

    def call(self, pixels: Any) -> Any:
        """Scale the differences from the mean of the image, which changes the contrast. Then scale each channel."""
        count = ops.shape(pixels)[0]

        def draw(channels: int, extent: float) -> Any:
            return ops.exp(keras.random.uniform((count, 1, 1, channels), -extent, extent, seed=self._seeds))

        gain = draw(1, self._strength * LIGHT) * draw(3, self._strength * TINT)
        contrast = draw(1, self._strength * LIGHT)
        mean = ops.mean(pixels, axis=(1, 2, 3), keepdims=True)
        return ops.clip(gain * (mean + contrast * (pixels - mean)), 0.0, 255.0)


class Mix(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Mixes pairs of images, and mixes their true classes in the same proportion.

    Only a random share of the batches, `MIXED_SHARE`, is mixed. Half of these batches use MixUp (Zhang et al. 2017,
    arXiv:1710.09412), which computes a weighted mean of the two images. The other half use CutMix (Yun et al. 2019,
    arXiv:1905.04899), which pastes a rectangle of one image into the other.

    The layer maps ``[pixels, truth]``, (n, H, W, 3) and (n, classes), to arrays of the same shapes.
    """

    def __init__(self, *, alpha: float, seed: int) -> None:
        super().__init__(name="mix")
        self._alpha = alpha
        self._seeds = keras.random.SeedGenerator(seed)

    def call(self, inputs: Any) -> Any:
        """Mix every image with its neighbour in the (shuffled) batch."""
        pixels, truth = inputs
        count, rows, columns = ops.shape(pixels)[0], pixels.shape[1], pixels.shape[2]
        kind = keras.random.uniform((), seed=self._seeds)
        keep = keras.random.beta((count, 1, 1, 1), self._alpha, self._alpha, seed=self._seeds)
        keep = ops.maximum(keep, 1 - keep)

        # CutMix: the pasted rectangle covers a share of 1 - keep of the image. The rectangle has a random centre, and
        # is clipped at the borders.
        side = ops.sqrt(1 - keep)
        centre = keras.random.uniform((2, count, 1, 1, 1), seed=self._seeds)
        down = ops.abs(ops.reshape(ops.arange(rows, dtype="float32") / rows, (1, rows, 1, 1)) - centre[0])
        across = ops.abs(ops.reshape(ops.arange(columns, dtype="float32") / columns, (1, 1, columns, 1)) - centre[1])
        outside = 1 - ops.cast(down < side / 2, "float32") * ops.cast(across < side / 2, "float32")

        mask = ops.where(kind < MIXED_SHARE / 2, keep, ops.where(kind < MIXED_SHARE, outside, 1.0))
        share = ops.reshape(ops.mean(mask, axis=(1, 2)), (-1, 1))
        return [
            mask * pixels + (1 - mask) * ops.roll(pixels, 1, axis=0),
            share * truth + (1 - share) * ops.roll(truth, 1, axis=0),
        ]

    def compute_output_shape(self, shapes: list[tuple[int | None, ...]]) -> list[tuple[int | None, ...]]:
        """Return the shapes of the inputs."""
        return shapes
