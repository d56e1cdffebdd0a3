"""Batches of rows on disk, prefetched for the network."""

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
"""Number of prefetched batches, enough to hide a slow disk; 25 MB with 32 images of 256x256."""


class Rows(Protocol):
    """Anything that returns the rows at given indices as an array: `trainer.data.PixelRows`, a memory map."""

    def __getitem__(self, which: npt.NDArray[np.intp], /) -> Any: ...


class Batches:
    """Training batches in a new random order every epoch; rows that do not fill a batch are left out of that epoch.

    The order depends only on the seed and the epoch, so a resumed training gives the same result as an uninterrupted
    one. (Keras' `PyDataset` is shuffled between epochs, when it may already have prefetched from the next one.)

    Args:
        rows: all rows.
        places: indices of the rows to train on.
        truth: (all rows,) int class indices.
        size: rows per batch.
        classes: number of classes.
        seed: random seed of the order.
        part: index of the part of every batch that this process fetches, and the number of parts; (0, 1) is all of it.
        devices: number of devices that share every batch evenly; the batch is made smaller if it is not divisible.

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
        """Number of batches per epoch."""
        return len(self._places) // self._size

    def epoch(self, number: int) -> Iterator[tuple[Any, npt.NDArray[np.float32]]]:
        """Yield the rows and their one-hot truth, batch by batch."""
        order = np.random.default_rng((self._seed, number)).permutation(self._places)
        mine = self._size // self._part[1]
        for start in range(0, len(self) * self._size, self._size):
            which = order[start + mine * self._part[0] :][:mine]
            yield self._rows[which], self._one_hot[self._truth[which]]

    def for_fit(self, epoch: int) -> Iterator[Any]:
        """Yield endless batches from an epoch on, for `fit` of a model that also takes the truth as input."""
        endless = (batch for number in count(epoch) for batch in self.epoch(number))
        return fetched_ahead(({"pixels": pixels, "truth": truth}, truth) for pixels, truth in endless)


def predict(model: keras.Model, rows: Rows, places: npt.NDArray[np.intp], size: int) -> npt.NDArray[np.float32]:
    """Return the model's outputs for the rows at ``places``, (places, outputs) float32, in that order."""
    # Padded to full batches, because Keras compiles the model again for another shape.
    filled = np.concatenate([places, np.repeat(places[-1:], -len(places) % size)]).reshape(-1, size)
    batches = fetched_ahead((rows[some],) for some in filled)
    outputs: npt.NDArray[np.float32] = model.predict(batches, steps=len(filled), verbose=0)
    return outputs[: len(places)]


def fetched_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield the same batches, prefetched by another thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as worker:
        waiting: deque[Future[Any]] = deque(worker.submit(next, batches, None) for _ in range(AHEAD))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(worker.submit(next, batches, None))
            yield batch
