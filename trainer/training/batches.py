"""Reads batches of images or features from files for a network, in a background thread.

The data is stored in rows: row i contains the pixels or the features of image i.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_agent.errors import ConfigError

if TYPE_CHECKING:
    import keras

AHEAD = 4
"""Number of prefetched batches. It is large enough to hide the delays of a slow disk.

With batches of 32 images of 256x256 pixels, the prefetched batches take 25 MB."""


class Rows(Protocol):
    """Anything that returns the rows at given indices as an array, such as `trainer.data.PixelRows` or `numpy.memmap`.

    Row i contains the pixels or the features of image i.
    """

    def __getitem__(self, which: npt.NDArray[np.intp], /) -> Any: ...


class Batches:
    """Provides training batches, in a new random order in every epoch.

    All batches have the same size. If the last rows of an epoch do not fill a batch, they are not used in that epoch.
    The order depends only on the seed and the epoch, so a resumed training run gives the same result as an
    uninterrupted one. Keras' `PyDataset` does not guarantee this: it is shuffled between epochs, when batches of the
    next epoch may already have been prefetched.

    Args:
        rows: pixels or features of all images, one row per image.
        places: indices of the rows to train on.
        truth: (n,) int, class index of every image.
        size: number of rows per batch.
        classes: number of classes.
        seed: random seed of the order.
        part: index of the part of every batch that this process reads, and the number of parts. With (0, 1) it reads
            whole batches.
        devices: number of devices among which every batch is divided equally. If ``size`` is not a multiple of it,
            the batches are made smaller.

    Raises:
        ConfigError: there are more devices than images in a batch.
    """

    def __init__(
        self,
        rows: Rows,
        places: npt.NDArray[np.intp],
        truth: npt.NDArray[np.intp],
        *,
        size: int,
        classes: int,
        seed: int,
        part: tuple[int, int] = (0, 1),
        devices: int = 1,
    ) -> None:
        self._rows, self._places, self._truth = rows, places, truth
        self._size = min(size, len(places)) // devices * devices
        if not self._size:
            raise ConfigError(
                f"--distribute: {devices} devices, but only {min(size, len(places))} images per step; "
                "raise --batch-size, or use fewer devices"
            )
        self._seed, self._part = seed, part
        self._one_hot = np.eye(classes, dtype=np.float32)

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return len(self._places) // self._size

    def epoch(self, number: int) -> Iterator[tuple[Any, npt.NDArray[np.float32]]]:
        """Yield the batches of an epoch, each as an array of rows and their true classes, (size, classes) one-hot."""
        order = np.random.default_rng((self._seed, number)).permutation(self._places)
        mine = self._size // self._part[1]
        for start in range(0, len(self) * self._size, self._size):
            which = order[start + mine * self._part[0] :][:mine]
            yield self._rows[which], self._one_hot[self._truth[which]]

    def for_fit(self, epoch: int) -> Iterator[Any]:
        """Yield the batches of the given epoch and of all later epochs, without end.

        Pass them to `fit` of a model that has the true classes as a second input.
        """
        endless = (batch for number in count(epoch) for batch in self.epoch(number))
        return fetched_ahead(({"pixels": pixels, "truth": truth}, truth) for pixels, truth in endless)


def predict(model: keras.Model, rows: Rows, places: npt.NDArray[np.intp], size: int) -> npt.NDArray[np.float32]:
    """Return the outputs of the model for some rows.

    Args:
        model: the model.
        rows: inputs of the model for all images, one row per image.
        places: (k,) int, indices of the rows to use.
        size: number of rows per batch.

    Returns:
        (k, outputs) float32, in the order of ``places``.
    """
    # The last batch is padded to the full size, because Keras would compile the model again for another shape.
    filled = np.concatenate([places, np.repeat(places[-1:], -len(places) % size)]).reshape(-1, size)
    batches = fetched_ahead((rows[some],) for some in filled)
    outputs: npt.NDArray[np.float32] = model.predict(batches, steps=len(filled), verbose=0)
    return outputs[: len(places)]


def fetched_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield the given batches unchanged. Another thread reads them in advance."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as worker:
        waiting: deque[Future[Any]] = deque(worker.submit(next, batches, None) for _ in range(AHEAD))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(worker.submit(next, batches, None))
            yield batch
