"""Computes the features of the frozen backbone once for every image, and stores them.

This module imports Keras, so import it inside functions.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
from rich.console import Console

from edge_agent.atomic_files import replacing
from edge_agent.native_stderr import native_noise_hidden

from ..progress import track
from .batches import Rows, predict

BATCHES_AT_ONCE = 16


def frozen_features(
    base: keras.Model, pixels: Rows, count: int, *, batch_size: int, folder: Path, console: Console
) -> npt.NDArray[np.float32]:
    """Compute the pooled features of every image, and store them in a file in ``folder``.

    Features that an interrupted call has already stored there are not computed again.

    Args:
        base: backbone; maps pixels, (n, height, width, 3), to features, (n, features).
        pixels: pixels of the images, one row per image.
        count: number of images.
        batch_size: number of images per step.
        folder: folder of two files: `features.f32` contains the features, and `features.done` the number of images
            whose features have been stored.
        console: console for the progress.

    Returns:
        (count, features) float32, a memory map of the file.
    """
    width = base.output_shape[-1]
    path, marker = folder / "features.f32", folder / "features.done"
    done = int(marker.read_text()) if marker.is_file() and path.is_file() else 0
    if path.is_file() and path.stat().st_size != count * width * 4:
        done = 0
    features = np.memmap(path, np.float32, "r+" if done else "w+", shape=(count, width))
    chunk = BATCHES_AT_ONCE * batch_size
    starts = range(done, count, chunk)
    for start in track(starts, "Computing features", total=len(starts), console=console):
        places = np.arange(start, min(start + chunk, count))
        with native_noise_hidden():
            features[places] = predict(base, pixels, places, batch_size)
        # The rows must be on disk before the number that declares them finished.
        features.flush()
        with replacing(marker) as file:
            file.write(b"%d" % (places[-1] + 1))
    return features
